"""Round trips of checkpoints, and errors on other files."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import messages
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import small_baseline
from torch import Tensor

from embedmask.config import ModelConfig, to_dict
from embedmask.errors import BadInput
from embedmask.model.embedmask import EmbedMask
from embedmask.model.maskrcnn import MaskRCNN
from embedmask.weights import load, load_checkpoint, read_torch_file, save

NAMES = ["cat", "Hündin", 'a "quoted", name']
SMALL: dict[str, Any] = {
    "num_classes": 3,
    "backbone": "test_resnet",
    "channels": 16,
    "norm_groups": 4,
    "tower_convs": 1,
}


def make(preset: Any = "paper", **overrides: Any) -> EmbedMask:
    torch.manual_seed(0)
    return EmbedMask(ModelConfig.preset(preset, **{**SMALL, **overrides}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save(make(), path, class_names=NAMES)
    return path


def parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def refused(action: Callable[[Path], object], path: Path) -> str:
    message = messages.refused(action, path)
    assert path.name in message
    return message


# --- round trip -------------------------------------------------------------


def test_baseline_round_trip(tmp_path: Path) -> None:
    model = MaskRCNN(small_baseline(max_detections=17))
    save(model, tmp_path / "model.safetensors", class_names=NAMES)
    checkpoint = load_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.config == model.config
    assert checkpoint.class_names == NAMES
    assert not checkpoint.model.training
    state = checkpoint.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_raises_on_unknown_model_type(path: Path) -> None:
    tensors, metadata = parts(path)
    config = {**json.loads(metadata["config"]), "kind": "yolo"}
    save_file(tensors, path, metadata={**metadata, "config": json.dumps(config)})
    assert "unknown model type 'yolo'" in refused(load, path)
    assert "upgrade embedmask" in refused(load, path)


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
def test_round_trip(tmp_path: Path, preset: str) -> None:
    unusual = {"box_expansion": None, "mask_threshold": 0.4, "image_mean": (1.0, 2.0, 3.5)}
    model = make(preset, strides=(4, 8, 16, 32), size_ranges=(32, 64, 128), **unusual)
    path = tmp_path / "model.safetensors"
    save(model, path, class_names=NAMES)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config == model.config == checkpoint.model.config
    assert checkpoint.class_names == NAMES
    expected, found = model.state_dict(), checkpoint.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_loaded_model_predicts_the_same(path: Path) -> None:
    images = torch.randn(1, 3, 64, 96)
    model, loaded = make().eval(), load(path)
    assert not loaded.training
    with torch.no_grad():
        expected, found = model(images), loaded(images)
    assert torch.equal(expected.pixel_embed, found.pixel_embed)
    assert all(map(torch.equal, expected.class_logits, found.class_logits))


def test_saving_a_loaded_model_changes_nothing(path: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(path)
    again = tmp_path / "again.safetensors"
    save(checkpoint.model, again, class_names=checkpoint.class_names)
    (before, header), (after, new_header) = parts(path), parts(again)
    assert json.loads(new_header.pop("config")) == json.loads(header.pop("config"))
    assert new_header == header
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_equal_models_give_equal_files(path: Path, tmp_path: Path) -> None:
    """Check the order of the metadata, which the library writes at random."""
    for number in range(4):
        save(make(), tmp_path / "again.safetensors", class_names=NAMES)
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes(), number


def test_saving_replaces_the_file_and_leaves_no_others(path: Path) -> None:
    model = make()
    with torch.no_grad():
        next(model.head.parameters()).add_(1)
    save(model, path, class_names=NAMES)
    assert os.listdir(path.parent) == [path.name]
    assert torch.equal(next(load(path).head.parameters()), next(model.head.parameters()))


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a"] * 4, "abc"])
def test_raises_on_wrong_class_names(tmp_path: Path, names: Any) -> None:
    with pytest.raises(BadInput, match="class names for a model of 3 classes"):
        save(make(), tmp_path / "model.safetensors", class_names=names)
    assert os.listdir(tmp_path) == []


def test_full_disk_preserves_the_old_file(path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits on file sizes are a matter of POSIX")
    before = path.read_bytes()
    model = make(channels=64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal = pytest.importorskip("signal")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(BadInput, match="cannot be written"):
            save(model, path, class_names=NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


# --- invalid files ------------------------------------------------------------


def test_raises_on_missing_file_and_folder(tmp_path: Path) -> None:
    for action in (load, read_torch_file):
        assert "no such weights file" in refused(action, tmp_path / "none.safetensors")
        assert "a folder" in refused(action, tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.001, 0.5, 0.999999])
def test_raises_on_truncated_file(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert "truncated or damaged" in refused(load, path)


@pytest.mark.parametrize("content", [b"hello", b"\xff" * 100, bytes(1000), struct.pack("<Q", 2) + b"{}"])
def test_raises_on_other_content(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(load, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_message_suggests_convert(path: Path, zipped: bool) -> None:
    torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
    assert "convert it: embedmask convert" in refused(load, path)


def test_state_of_a_training_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    message = refused(load, tmp_path / "last.ckpt")
    assert message.endswith("the state of a training, to resume it; give model.safetensors of that folder")


def test_header_length_is_not_mistaken_for_a_pickle(path: Path) -> None:
    """Check a header length whose first byte is 0x80, as in pickles."""
    tensors, metadata = parts(path)
    for extra in range(0, 256, 8):
        save_file(tensors, path, metadata={**metadata, "padding": "x" * extra})
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert load_checkpoint(path).class_names == NAMES


def test_raises_on_foreign_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)
    assert "not an EmbedMask checkpoint" in refused(load, path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("config", None, "header is damaged"),
        ("config", "{", "header is damaged"),
        ("config", "7", "header is damaged"),
        ("class_names", None, "header is damaged"),
        ("class_names", "3", "header is damaged"),
        ("class_names", '["cat"]', "1 class names for 3 classes"),
        ("version", "x", "header is damaged"),
        ("version", "2", "checkpoint format 2.*upgrade embedmask"),
        ("format", "other", "not an EmbedMask checkpoint"),
    ],
)
def test_raises_on_damaged_header(path: Path, key: str, value: str | None, message: str) -> None:
    tensors, metadata = parts(path)
    changed = {**metadata, key: value}
    save_file(tensors, path, metadata={k: v for k, v in changed.items() if v is not None})
    with pytest.raises(BadInput, match=message):
        load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dims": 8}, "unknown field 'embed_dims' (did you mean 'embed_dim'?); if a newer version"),
        ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        ({"margin": "learned"}, "margin must be one of"),
    ],
)
def test_raises_on_invalid_config(path: Path, change: dict[str, Any], message: str) -> None:
    tensors, metadata = parts(path)
    config = json.dumps({**json.loads(metadata["config"]), **change})
    save_file(tensors, path, metadata={**metadata, "config": config})
    assert message in refused(load, path)


def test_missing_config_fields_take_their_defaults(path: Path) -> None:
    tensors, metadata = parts(path)
    config = json.loads(metadata["config"])
    del config["max_detections"]
    save_file(tensors, path, metadata={**metadata, "config": json.dumps(config)})
    assert load_checkpoint(path).config == make().config


def test_raises_if_tensors_differ_from_the_config(path: Path) -> None:
    tensors, metadata = parts(path)
    name, value = list(tensors.items())[5]
    changes = {
        f"tensor {name!r} is missing": {k: v for k, v in tensors.items() if k != name},
        "unexpected tensor 'extra.weight'": {**tensors, "extra.weight": value.clone()},
        f"tensor {name!r} is [7], expected {list(value.shape)}": {**tensors, name: torch.zeros(7)},
    }
    for message, changed in changes.items():
        save_file(changed, path, metadata=metadata)
        assert message in refused(load, path)


# --- torch files -------------------------------------------------------------


class Command:
    """Object whose unpickling would make a folder."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s, "iteration": 90000, "optimizer": {}}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_read(
    tmp_path: Path, prefix: str, wrap: Callable[[dict[str, Tensor]], object], zipped: bool
) -> None:
    tensors = {"a.weight": torch.randn(3, 4), "module.count": torch.tensor(7), "b": torch.zeros(0)}
    path = tmp_path / "model.pth"
    state = {prefix + name: value for name, value in tensors.items()}
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    found = read_torch_file(path)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("protocol", ["zip", "legacy", 0, 2, 4])
def test_code_is_never_run(tmp_path: Path, protocol: str | int) -> None:
    path, witness = tmp_path / "model.pth", tmp_path / "was_here"
    content = {"model": {"a": torch.zeros(3), "b": Command(witness)}}
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"model": Command(witness)}, protocol=protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    message = refused(read_torch_file, path)
    assert "refused" in message
    assert "could run code" in message
    assert not witness.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_rejected_objects_are_listed_by_name(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": torch.nn.Linear(2, 2)}, path, _use_new_zipfile_serialization=zipped)
    assert "torch.nn.modules.linear.Linear" in refused(read_torch_file, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_raises_on_torch_files_truncated_anywhere(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(500)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    for keep in range(0, len(content), 13):
        path.write_bytes(content[:keep])
        assert refused(read_torch_file, path)
    path.write_bytes(content[: len(content) // 2])
    assert "truncated, damaged" in refused(read_torch_file, path)


@pytest.mark.parametrize(
    "content", [{}, {"model": {}}, {"a": 1}, torch.zeros(3), [torch.zeros(3)], {"model": 3}]
)
def test_raises_on_missing_state_dict(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pth"
    torch.save(content, path)
    assert "contains no state dict" in refused(read_torch_file, path)


def test_config_in_the_file_is_plain_json(path: Path) -> None:
    _, metadata = parts(path)
    assert json.loads(metadata["config"]) == json.loads(json.dumps(to_dict(make().config)))
    assert json.loads(metadata["class_names"]) == NAMES
    assert (metadata["format"], metadata["version"]) == ("embedmask", "1")
