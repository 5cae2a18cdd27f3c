"""The ImageNet weights that the paper starts from: MSRA's ResNets in Detectron's pickles, read without running code."""

from __future__ import annotations

import codecs
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedmask.errors import BadInput
from embedmask.weights.checkpoint import load_plain
from embedmask.weights.official import CAFFE_MEAN_BGR

SETTINGS: Mapping[str, Any] = {
    "channel_order": "bgr",
    "image_mean": CAFFE_MEAN_BGR,
    "image_std": (1.0, 1.0, 1.0),
    "stride_in_1x1": True,
    "backbone_norm": "frozen",
    "backbone_norm_eps": 0.0,
}
"""What these networks see and compute, as fields of `DetectorConfig`: their BatchNorm is a fixed scale and shift."""

NAME = re.compile(r"(?:res_)?conv1_(.+)|res(\d)_(\d+)_branch(1|2a|2b|2c)_(.+)")
LAYERS = {"1": "downsample.0", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
PARTS = {"w": "conv.weight", "b": "conv.bias", "bn_s": "norm.weight", "bn_b": "norm.bias"}
UNUSED = re.compile(r"(fc1000|pred)_[wb]|.*_momentum")
"""The classifier and the solver's state."""

ALLOWED: Mapping[tuple[str, str], Any] = {
    # numpy has moved these functions, so they are taken from what it pickles today
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce_ex__(2)[0],
    ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
    ("collections", "OrderedDict"): OrderedDict,
}
"""All that a pickle may ask for: what arrays are made of."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays in plain containers; refuse anything else before it runs."""

    def find_class(self, module: str, name: str) -> Any:
        found = ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"unsupported global {module}.{name}")
        return found


def read_caffe_file(path: Path) -> dict[str, Tensor]:
    """Read the backbone from a pickle of Detectron's model zoo (`R-50.pkl`, `R-101.pkl`).

    Returns:
        Name, as in timm, -> float32 tensor on the CPU. `SETTINGS` belong to them.

    Raises:
        BadInput: damaged, asks for more than arrays, or holds no plain ResNet.
    """
    values = load_plain(path, _unpickle)
    blobs = values.get("blobs", values) if isinstance(values, Mapping) else None
    if not isinstance(blobs, Mapping) or "conv1_w" not in blobs:
        raise BadInput(f"{path}: not a ResNet of Detectron's model zoo, no tensor 'conv1_w'")
    kernel = blobs.get("res2_0_branch2b_w")
    if isinstance(kernel, np.ndarray) and kernel.ndim == 4 and kernel.shape[0] != kernel.shape[1]:
        raise BadInput(f"{path}: grouped convolutions, a ResNeXt; only ResNet-50, -101 and -152 are read")
    tensors = {}
    for name, value in blobs.items():
        if not UNUSED.fullmatch(str(name)):
            tensors[_timm_name(str(name))] = _tensor(value, name, path)
    return _without_conv_bias(tensors)


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _tensor(value: Any, name: object, path: Path) -> Tensor:
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise BadInput(f"{path}: {name!r} is no array of floats; download the file again")
    return torch.from_numpy(np.array(value, dtype=np.float32))


def _timm_name(name: str) -> str:
    """Return timm's name of a Caffe2 blob; one that is no part of a ResNet keeps its own, and is refused later."""
    match = NAME.fullmatch(name)
    part = PARTS.get((match[1] or match[5]) if match else "")
    if match is None or part is None:
        return name
    stage, layer = "", "conv1"
    if match[2]:
        stage, layer = f"layer{int(match[2]) - 1}.{match[3]}.", LAYERS[match[4]]
    norm = layer.replace("downsample.0", "downsample.1").replace("conv", "bn")
    which, kind = part.split(".")
    return f"{stage}{layer if which == 'conv' else norm}.{kind}"


def _without_conv_bias(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the norms the statistics of a fixed scale and shift, which also take up the biases in front of them."""
    state = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        is_norm = value.ndim == 1 and re.search(r"(bn\d|downsample\.1)$", layer) is not None
        if is_norm and kind == "weight":
            conv = layer.replace("downsample.1", "downsample.0").replace("bn", "conv")
            bias = tensors.get(f"{conv}.bias")
            state[f"{layer}.running_mean"] = torch.zeros_like(value) if bias is None else -bias
            state[f"{layer}.running_var"] = torch.ones_like(value)
        if is_norm or kind != "bias":
            state[name] = value
    return state
