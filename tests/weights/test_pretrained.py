"""Initial weights of a backbone: files, timm's hub with and without a connection, and random weights."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from small_models import small_config
from torch import Tensor, nn

from embedmask import EmbedMask, save
from embedmask.config import ModelConfig, TrainConfig
from embedmask.errors import BadInput
from embedmask.model.backbone import Backbone
from embedmask.weights import hub as weights_hub
from embedmask.weights import pretrained
from embedmask.weights.official import CAFFE_MEAN_BGR
from embedmask.weights.pretrained import adapt_config, load_pretrained, read_backbone_file

State = dict[str, Tensor]


def random_state(name: str = "test_resnet") -> State:
    """Return random values for all tensors of a timm model."""
    torch.manual_seed(1)
    state: State = timm.create_model(name).state_dict()
    return {n: torch.rand_like(v) + 0.1 if v.is_floating_point() else v + 5 for n, v in state.items()}


def backbone(name: str = "test_resnet", norm: str = "frozen") -> Backbone:
    torch.manual_seed(2)
    return Backbone(name, finest_stride=8, norm=norm).eval()


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files ---------------------------------------------------------------------

FORMS: dict[str, Callable[[State, Path], object]] = {
    "bare.safetensors": save_file,
    "bare.pth": torch.save,
    "legacy.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "model.pt": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
    "state_dict.pth": lambda state, path: torch.save({"state_dict": state, "arch": "x"}, path),
    "parallel.pth": lambda state, path: torch.save({f"module.{n}": v for n, v in state.items()}, path),
    "parallel.safetensors": lambda state, path: save_file({f"module.{n}": v for n, v in state.items()}, path),
    "both.pth": lambda state, path: torch.save(
        {"state_dict": {f"module.{n}": v for n, v in state.items()}}, path
    ),
    "half.safetensors": lambda state, path: save_file({n: v.half() for n, v in state.items()}, path),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_file_formats(tmp_path: Path, form: str, norm: str) -> None:
    state, path, model = random_state(), tmp_path / form, backbone(norm=norm)
    FORMS[form](state, path)
    own = model.body.state_dict()
    line = load_pretrained(model, str(path))
    assert line == (
        f"backbone test_resnet: {len(own)} of {len(own)} tensors from {path}; "
        "missing: none; not used: fc.weight, fc.bias"
    )
    for name, value in model.body.state_dict().items():
        expected = state[name].half().float() if form == "half.safetensors" else state[name].float()
        assert torch.equal(value.float(), expected), name


def test_feature_maps_equal_those_of_the_source_model(tmp_path: Path) -> None:
    """Check a model without BatchNorm whose modules timm flattens (`stages_0`)."""
    source = timm.create_model("test_convnext", num_classes=7).eval()
    torch.save(source.state_dict(), tmp_path / "file.pth")
    model = backbone("test_convnext")
    line = load_pretrained(model, str(tmp_path / "file.pth"))
    assert line.endswith("not used: head.norm.weight, head.norm.bias, head.fc.weight, head.fc.bias")
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(model(images)[-1], source.forward_features(images), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"]
)
def test_torchvision_and_timm_share_names(name: str) -> None:
    with torch.device("meta"):
        shapes = {n: v.shape for n, v in getattr(torchvision.models, name)().state_dict().items()}
        assert shapes == {n: v.shape for n, v in timm.create_model(name).state_dict().items()}


def test_torchvision_resnet(tmp_path: Path) -> None:
    source = torchvision.models.resnet18().eval()
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    # files from before torch 0.4.1 have no counters
    state = {n: v for n, v in source.state_dict().items() if "num_batches" not in n}
    torch.save(state, tmp_path / "resnet18.pth")
    model = backbone("resnet18", "batch")
    line = load_pretrained(model, str(tmp_path / "resnet18.pth"))
    assert "100 of 120 tensors" in line
    assert "missing: bn1.num_batches_tracked, layer1.0.bn1.num_batches_tracked" in line
    assert line.endswith("and 16 more; not used: fc.weight, fc.bias")
    images = torch.randn(1, 3, 64, 64)
    expected = nn.Sequential(*list(source.children())[:-2])(images)
    assert torch.allclose(model.eval()(images)[-1], expected, rtol=1e-4, atol=1e-4)


def efficientnet_names(state: State) -> State:
    """Return a state dict with the names of EfficientNet-PyTorch, in the same order."""
    renamed, blocks = (
        {},
        list(dict.fromkeys(n.split(".conv")[0].split(".bn")[0] for n in state if "blocks" in n)),
    )
    for name, value in state.items():
        start = next((f"{b}." for b in blocks if name.startswith(f"{b}.")), "")
        place = f"_blocks.{blocks.index(start[:-1])}." if start else ""
        layer, kind = name.removeprefix(start).split(".")
        renamed[f"{place}_{layer.replace('classifier', 'fc').replace('bn1', 'bn0')}.{kind}"] = value
    assert len(renamed) == len(state)
    return renamed


def test_efficientnet_file_is_matched_by_order(tmp_path: Path) -> None:
    state, path = random_state("tf_efficientnet_lite0"), tmp_path / "efficientnet-lite0.pth"
    torch.save(efficientnet_names(state), path)
    model = backbone("tf_efficientnet_lite0", "batch")
    assert "288 of 288 tensors" in (line := load_pretrained(model, str(path)))
    assert "matched by their order; missing: none" in line
    assert line.endswith("conv_head.weight, bn2.weight, bn2.bias, bn2.running_mean and 3 more")
    assert all(torch.equal(value, state[name]) for name, value in model.body.state_dict().items())


def test_matching_by_order_requires_names_and_shapes(tmp_path: Path) -> None:
    state, path = random_state("tf_efficientnet_lite0"), tmp_path / "file.pth"
    load = lambda name="tf_efficientnet_lite0": load_pretrained(backbone(name), str(path))  # noqa: E731
    torch.save({f"x{index}.weight": value for index, value in enumerate(state.values())}, path)
    assert "tensor 'conv_stem.weight' [32, 3, 3, 3] is missing" in refusal(load)
    torch.save(efficientnet_names(state), path)
    wrong = refusal(lambda: load("tf_efficientnet_lite1"))
    assert wrong.endswith("tensor 'blocks.1.2.conv_dw.weight' is [144, 1, 5, 5], expected [144, 1, 3, 3]")
    other_head = efficientnet_names({**state, "classifier.bias": torch.zeros(7)})
    torch.save(other_head, path)
    assert "tensor 'classifier.bias' is [7], expected [1000]" in refusal(load)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: s.pop("layer1.0.conv1.weight"),
            "tensor 'layer1.0.conv1.weight' [32, 32, 3, 3] is missing",
        ),
        (
            lambda s: s.update({"layer2.0.bn1.bias": torch.zeros(3)}),
            "'layer2.0.bn1.bias' is [3], expected [48]",
        ),
        (
            lambda s: s.update({"layer9.0.bn1.bias": torch.zeros(3)}),
            "unexpected tensor 'layer9.0.bn1.bias' [3]",
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if n != "fc.bias"],
            "tensor 'conv1.0.weight' [16, 3, 3, 3] is missing",
        ),
    ],
)
def test_raises_on_another_architecture(tmp_path: Path, change: Callable[[State], object], says: str) -> None:
    state, path, model = random_state(), tmp_path / "file.safetensors", backbone()
    change(state)
    save_file(state, path)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    message = refusal(lambda: load_pretrained(model, str(path)))
    assert message.startswith(f"{path}: not weights of test_resnet: ")
    assert says in message
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_classifier_is_ignored(tmp_path: Path) -> None:
    state = {**random_state(), "fc.weight": torch.zeros(3, 96), "fc.bias": torch.zeros(3)}
    save_file(state, tmp_path / "file.safetensors")
    assert "not used: fc.weight, fc.bias" in load_pretrained(backbone(), str(tmp_path / "file.safetensors"))


def test_raises_on_invalid_files(tmp_path: Path) -> None:
    missing = refusal(lambda: read_backbone_file(tmp_path / "R-50.pkl"))
    assert "R-50.pkl: no such weights file" in missing
    assert "--model.backbone" in missing
    assert "a folder" in refusal(lambda: read_backbone_file(tmp_path))
    (tmp_path / "text.pth").write_text("hello")
    assert "text.pth: truncated, damaged or not a torch file" in refusal(
        lambda: read_backbone_file(tmp_path / "text.pth")
    )
    save_file(random_state(), tmp_path / "short.safetensors")
    content = (tmp_path / "short.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[: len(content) // 2])
    assert "truncated or damaged" in refusal(lambda: read_backbone_file(tmp_path / "short.safetensors"))
    torch.save({"epoch": 3}, tmp_path / "no.pth")
    assert "contains no state dict" in refusal(lambda: read_backbone_file(tmp_path / "no.pth"))


def test_whole_model_message_suggests_init(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(EmbedMask(small_config(backbone="test_resnet")), path, class_names=["a", "b", "c"])
    assert f"--train.init {path}" in refusal(lambda: read_backbone_file(path))


# --- timm's weights --------------------------------------------------------------


class Hub:
    """Session of the hub that answers, raises or never answers."""

    def __init__(self, answer: object) -> None:
        self.answer, self.requests = answer, 0

    def head(self, url: str, **options: object) -> object:
        self.requests += 1
        assert url.startswith("https://")
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, float):
            time.sleep(self.answer)
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], Hub]:
    """Install a hub with an empty cache."""

    def install(answer: object) -> Hub:
        session = Hub(answer)
        monkeypatch.setattr(weights_hub, "get_session", lambda: session)
        monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_: None)
        return session

    return install


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(OSError("no route\nto host"), "no route"), (KeyError(), "KeyError"), (9.0, "no answer")],
)
def test_missing_connection_message_names_the_file(
    hub: Callable[[object], Hub], monkeypatch: pytest.MonkeyPatch, answer: object, reason: str
) -> None:
    monkeypatch.setattr(weights_hub, "TIMEOUT", 0.05)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("the hub's retries take a minute"))
    model = backbone_without_timm()
    session, start = hub(answer), time.monotonic()
    message = refusal(lambda: load_pretrained(model))
    assert time.monotonic() - start < 60
    assert session.requests == 1
    assert f"weights of 'resnet50.tv_in1k' could not be downloaded ({reason}" in message
    assert "https://huggingface.co/timm/resnet50.tv_in1k/resolve/main/model.safetensors" in message
    assert "--train.pretrained FILE" in message
    assert "false" not in message


def backbone_without_timm(name: str = "resnet50") -> Any:
    """Return a substitute with the name of a backbone, which is all that is used before the download."""
    return SimpleNamespace(name=name)


def test_raises_on_failed_download(hub: Callable[[object], Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **options: object) -> None:
        raise RuntimeError("checksum is wrong\nsecond line")

    hub("200")
    monkeypatch.setattr(timm, "create_model", broken)
    assert "(checksum is wrong)" in refusal(lambda: load_pretrained(backbone_without_timm()))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_timm_weights_are_loaded(
    hub: Callable[[object], Hub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, norm: str, cached: bool
) -> None:
    state, model, create = random_state(), backbone(norm=norm), timm.create_model
    session = hub("200")
    save_file(state, tmp_path / "model.safetensors")
    file = {"file": str(tmp_path / "model.safetensors")}
    if cached:
        found = {("timm/test_resnet.r160_in1k", "model.safetensors"): file["file"]}
        monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda repo, name: found.get((repo, name)))
    else:

        def downloads(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
            return create(
                name, pretrained, **{**options, **({"pretrained_cfg_overlay": file} if pretrained else {})}
            )

        monkeypatch.setattr(timm, "create_model", downloads)
    line = load_pretrained(model)
    assert session.requests == (not cached)
    assert "tensors from timm's test_resnet.r160_in1k; missing: none; not used: none" in line
    assert all(torch.equal(v.float(), state[n].float()) for n, v in model.body.state_dict().items())


def test_raises_on_model_without_weights(hub: Callable[[object], Hub]) -> None:
    session = hub(OSError())
    message = refusal(lambda: load_pretrained(backbone_without_timm("resnetblur18")))
    assert "timm has no weights of backbone 'resnetblur18'" in message
    assert session.requests == 0


# --- required settings ---------------------------------------------------------------


def adapted(config: ModelConfig, **train: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return adapt_config(config, TrainConfig(**train), lines.append), lines


def test_random_weights_are_not_frozen() -> None:
    config, lines = adapted(ModelConfig.preset("paper"), pretrained=False)
    assert (config.backbone_norm, config.frozen_stages) == ("batch", 0)
    assert lines == [
        "random weights cannot be frozen: sets model.backbone_norm to batch, model.frozen_stages to 0"
    ]
    config, lines = adapted(ModelConfig(backbone_norm="batch", frozen_stages=1), pretrained=False)
    assert (config.backbone_norm, config.frozen_stages) == ("batch", 0)
    assert lines == ["random weights cannot be frozen: sets model.frozen_stages to 0"]


def test_no_changes_if_none_are_required() -> None:
    free = ModelConfig(backbone_norm="batch", frozen_stages=0)
    assert adapted(free, pretrained=False) == (free, [])
    assert adapted(ModelConfig(), pretrained=True) == (ModelConfig(), [])


def test_plain_file_requires_no_settings(tmp_path: Path) -> None:
    save_file(random_state(), tmp_path / "file.safetensors")
    config = small_config(backbone="test_resnet", backbone_norm="frozen", frozen_stages=2)
    assert adapted(config, pretrained=str(tmp_path / "file.safetensors")) == (config, [])


def test_detectron_files_require_caffe_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": torch.ones(2, 3, 7, 7).numpy()}, 2))
    config, lines = adapted(ModelConfig(), pretrained=str(path))
    assert (config.channel_order, config.stride_in_1x1) == ("bgr", True)
    assert (config.image_mean, config.image_std) == (CAFFE_MEAN_BGR, (1.0, 1.0, 1.0))
    assert (config.backbone_norm, config.backbone_norm_eps) == ("frozen", 0.0)
    (line,) = lines
    for part in (
        "R-50.pkl: sets",
        "channel_order to bgr",
        "stride_in_1x1 to True",
        "102.9801",
        "image_std to (1.0,",
    ):
        assert part in line
    own = ModelConfig(image_mean=(103.53, 116.28, 123.675), backbone_norm_eps=1e-5)
    config, _ = adapted(own, pretrained=str(path))
    assert (config.image_mean, config.backbone_norm_eps) == (own.image_mean, 1e-5)
    again, lines = adapted(config, pretrained=str(path))
    assert (again, lines) == (config, [])


def test_init_requires_the_settings_of_its_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values: dict[str, Any] = {
        "channel_order": "bgr",
        "image_mean": (1.0, 2.0, 3.0),
        "image_std": (4.0, 5.0, 6.0),
        "image_norm": "image",
    }
    base = {"backbone": "test_resnet", "backbone_norm_eps": 0.25}
    save(EmbedMask(small_config(**base, **values)), path, class_names=["a", "b", "c"])
    recipe = small_config(backbone="test_resnet.r160_in1k", backbone_norm="frozen", frozen_stages=2)
    config, lines = adapted(recipe, init=str(path), pretrained=False)
    assert {name: getattr(config, name) for name in values} == values
    assert config.backbone_norm_eps == 0.25
    assert (config.backbone_norm, config.frozen_stages) == ("frozen", 2)  # these weights are not random
    assert lines[0].startswith(
        f"train.init {path}: sets model.channel_order to bgr, model.image_norm to image"
    )
    same, lines = adapted(small_config(**base, channel_order="bgr", image_norm="image"), init=str(path))
    assert (same.image_mean, lines) == ((1.0, 2.0, 3.0), [])
    message = refusal(lambda: adapted(small_config(), init=str(path)))
    assert "its backbone is test_resnet, the recipe's resnet10t" in message
