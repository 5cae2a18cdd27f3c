"""Detectron's pickles: the same outputs as in Caffe2, and no code is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from embedmask.errors import BadInput
from embedmask.model.backbone import Backbone
from embedmask.weights.caffe import SETTINGS, read_caffe_file
from embedmask.weights.pretrained import load_pretrained, read_backbone_file

Blobs = dict[str, Any]
LAYERS = {"downsample": "1", "1": "2a", "2": "2b", "3": "2c"}


@cache
def timm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in timm.create_model(name).state_dict().items()}


def blob_name(key: str) -> str | None:
    """Return Detectron's name of a tensor of timm's ResNet; None if it has none."""
    *block, layer, kind = key.split(".")
    if layer == "fc":
        return f"fc1000_{kind[0]}"
    if kind not in ("weight", "bias"):
        return None
    if block[-1:] == ["downsample"]:
        block, layer = block[:-1], "downsample" + layer
    is_norm = layer.startswith("bn") or layer == "downsample1"
    stem = f"res{int(block[0][-1]) + 1}_{block[1]}_branch" if block else "res_conv1" if is_norm else "conv1"
    number = ("downsample" if "downsample" in layer else layer[-1]) if block else ""
    return (
        f"{stem}{LAYERS.get(number, '')}_{ ({'weight': 'bn_s', 'bias': 'bn_b'}[kind] if is_norm else 'w') }"
    )


def detectron_blobs(name: str = "resnet50", make: Callable[[tuple[int, ...]], Any] = np.zeros) -> Blobs:
    """Return blobs with the names and shapes of Detectron's model zoo, with the biases of its ResNet-50."""
    blobs: Blobs = {}
    for key, shape in timm_shapes(name).items():
        blob = blob_name(key)
        if blob is not None:
            blobs[blob] = make(shape).astype(np.float32)
            if blob.endswith("_w"):
                blobs[blob[:-1] + "b"] = make(shape[:1]).astype(np.float32)
    blobs["conv1_w_momentum"] = np.zeros(1, np.float32)
    return blobs


def write(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def caffe_stem_and_first_block(blobs: Blobs, images: Tensor) -> Tensor:
    """Compute the reference up to res2_0 from the blobs: convolution, bias, scale, shift."""

    def conv(x: Tensor, name: str, norm: str, stride: int, padding: int) -> Tensor:
        x = nn.functional.conv2d(x, *(torch.from_numpy(blobs[f"{name}_{k}"]) for k in "wb"), stride, padding)
        scale, shift = (torch.from_numpy(blobs[f"{norm}_bn_{k}"]).view(-1, 1, 1) for k in "sb")
        return x * scale + shift

    x = conv(images, "conv1", "res_conv1", 2, 3).relu()
    x = nn.functional.max_pool2d(x, 3, 2, 1)
    y = conv(x, "res2_0_branch2a", "res2_0_branch2a", 1, 0).relu()
    y = conv(y, "res2_0_branch2b", "res2_0_branch2b", 1, 1).relu()
    y = conv(y, "res2_0_branch2c", "res2_0_branch2c", 1, 0)
    return (y + conv(x, "res2_0_branch1", "res2_0_branch1", 1, 0)).relu()


def test_backbone_matches_caffe(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    blobs = detectron_blobs(make=lambda shape: random.random(shape, np.float32) / 5 - 0.1)
    path = write(tmp_path / "R-50.pkl", {"blobs": blobs})
    backbone = Backbone(
        "resnet50", finest_stride=8, norm_eps=SETTINGS["backbone_norm_eps"], stride_in_1x1=True
    )
    line = load_pretrained(backbone.eval(), str(path))
    assert line == f"backbone resnet50: 265 of 265 tensors from {path}; missing: none; not used: none"
    images = torch.randn(1, 3, 32, 32)
    body = backbone.body
    found = body["layer1"][0](body["maxpool"](body["act1"](body["bn1"](body["conv1"](images)))))
    assert torch.allclose(found, caffe_stem_and_first_block(blobs, images), rtol=1e-4, atol=1e-5)
    last = torch.from_numpy(blobs["res5_2_branch2c_bn_s"])
    assert torch.equal(body["layer4"][2].bn3.weight, last)


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda blobs: {"blobs": blobs, "cfg": "text"}])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_file_formats(tmp_path: Path, wrap: Callable[[Blobs], object], protocol: int) -> None:
    values = {
        "conv1_w": np.ones((2, 3, 7, 7), np.float32), "res_conv1_bn_s": np.array([1, 2], np.float64),
        "res_conv1_bn_b": np.array([3, 4], np.float32), "fc1000_w": np.ones((5, 2)),
    }  # fmt: skip
    state = read_caffe_file(write(tmp_path / "R-50.pkl", wrap(values), protocol))
    assert {name: value.tolist() for name, value in state.items() if "bn1" in name} == {
        "bn1.weight": [1, 2], "bn1.bias": [3, 4], "bn1.running_mean": [0, 0], "bn1.running_var": [1, 1]
    }  # fmt: skip
    assert state.keys() - {"conv1.weight"} == {name for name in state if "bn1" in name}
    assert {value.dtype for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_every_name_is_converted(tmp_path: Path, name: str) -> None:
    blobs = {blob: np.zeros(1, np.float32) for blob in map(blob_name, timm_shapes(name)) if blob}
    state = read_caffe_file(write(tmp_path / "R.pkl", blobs))
    assert state.keys() == {
        key for key in timm_shapes(name) if not key.startswith("fc.") and "num_batches" not in key
    }


class Runs:
    """Object whose unpickling would call a function."""

    def __init__(self, function: Any, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "names"),
    [(os.system, "posix.system"), (eval, "builtins.eval|__builtin__.eval"), (np.load, "numpy.load"),
     (os.makedirs, "os.makedirs"), (nn.Linear, "torch.nn.modules.linear.Linear")],
)  # fmt: skip
def test_code_is_rejected_and_not_run(tmp_path: Path, function: Any, names: str, protocol: int) -> None:
    target = tmp_path / "ran"
    argument = f"mkdir {target}" if function is os.system else f"__import__('os').mkdir({str(target)!r})"
    run = Runs(function, str(target) if function is os.makedirs else argument)
    path = write(tmp_path / "R-50.pkl", {"blobs": {"conv1_w": np.ones(1), "x": run}}, protocol)
    with pytest.raises(BadInput, match=r"R-50\.pkl: refused, since .* could run code") as caught:
        read_backbone_file(path)
    assert "\n" not in str(caught.value)
    assert any(name in str(caught.value).replace("nt.system", "posix.system") for name in names.split("|"))
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"blobs": {"fpn_w": np.zeros(1, np.float32)}}, "no tensor 'conv1_w'"),
        ([1, 2], "no tensor 'conv1_w'"),
        ({"conv1_w": "text"}, "'conv1_w' is not a float array"),
        ({"conv1_w": np.array([None])}, "'conv1_w' is not a float array"),
    ],
)
def test_raises_on_other_pickles(tmp_path: Path, content: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_caffe_file(write(tmp_path / "x.pkl", content))


def test_raises_on_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"conv1_w": np.ones((64, 3, 7, 7), np.float32)}, 2)[:10_000])
    with pytest.raises(BadInput, match="truncated, damaged"):
        read_caffe_file(path)


def test_raises_on_grouped_convolutions(tmp_path: Path) -> None:
    """Reject ResNeXt, whose file does not contain the settings that it needs."""
    blobs = {"conv1_w": np.ones((64, 3, 7, 7)), "res2_0_branch2b_w": np.ones((128, 4, 3, 3))}
    with pytest.raises(BadInput, match=r"X-101\.pkl: grouped convolutions"):
        read_caffe_file(write(tmp_path / "X-101.pkl", blobs))


def test_raises_on_deeper_network(tmp_path: Path) -> None:
    blobs = {**detectron_blobs(), "res4_6_branch2a_w": np.zeros((256, 1024, 1, 1), np.float32)}
    path = write(tmp_path / "R-101.pkl", blobs)
    with pytest.raises(
        BadInput,
        match=r"not weights of resnet50: unexpected tensor 'layer3.6.conv1.weight' \[256, 1024, 1, 1\]",
    ):
        load_pretrained(Backbone("resnet50", finest_stride=8), str(path))


def test_unknown_blobs_keep_their_names(tmp_path: Path) -> None:
    """Check the names, by which `load_pretrained` rejects them as unexpected tensors."""
    values = {
        "conv1_w": np.ones((2, 3, 7, 7)),
        "conv_rpn_w": np.zeros((4, 4)),
        "res2_0_branch2a_gn_s": np.ones(2),
    }
    state = read_caffe_file(write(tmp_path / "R-50.pkl", values))
    assert state.keys() == {"conv1.weight", "conv_rpn_w", "res2_0_branch2a_gn_s"}
