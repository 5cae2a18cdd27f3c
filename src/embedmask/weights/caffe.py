"""Reader of the paper's ImageNet weights: MSRA's ResNets in Detectron's pickles, without running code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedmask.errors import BadInput
from embedmask.unpickling import load_arrays
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
"""Fields of `DetectorConfig` that these weights require; their BatchNorm is a fixed scale and shift."""

# conv1_w, res_conv1_bn_s (stem); res2_0_branch2a_w, res2_0_branch2a_bn_s (stage 2, block 0, first convolution)
NAME = re.compile(r"(?:res_)?conv1_(.+)|res(\d)_(\d+)_branch(1|2a|2b|2c)_(.+)")
LAYERS = {"1": "downsample.0", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
PARTS = {"w": "conv.weight", "b": "conv.bias", "bn_s": "norm.weight", "bn_b": "norm.bias"}
UNUSED = re.compile(r"(fc1000|pred)_[wb]|.*_momentum")
"""Tensors of the classifier and of the solver."""


def read_caffe_file(path: Path) -> dict[str, Tensor]:
    """Read the backbone from a pickle of Detectron's model zoo (`R-50.pkl`, `R-101.pkl`).

    Returns:
        timm's name -> float32 tensor on the CPU. The weights require `SETTINGS`.

    Raises:
        BadInput: the file is damaged, contains objects other than arrays, or is not a plain ResNet.
    """
    with path.open("rb") as file:
        # Python 2 pickles: latin1 maps the bytes of arrays one to one
        values = load_plain(path, lambda _: load_arrays(file, "latin1"))
    blobs = values.get("blobs", values) if isinstance(values, Mapping) else None
    if not isinstance(blobs, Mapping) or "conv1_w" not in blobs:
        raise BadInput(f"{path}: not a ResNet of Detectron's model zoo, no tensor 'conv1_w'")
    # weights are [out, in / groups, 3, 3], with as many outputs as inputs in the 3x3 convolution
    kernel = blobs.get("res2_0_branch2b_w")
    if isinstance(kernel, np.ndarray) and kernel.ndim == 4 and kernel.shape[0] != kernel.shape[1]:
        raise BadInput(f"{path}: grouped convolutions (ResNeXt); only ResNet-50, -101 and -152 are supported")
    tensors = {}
    for name, value in blobs.items():
        if UNUSED.fullmatch(str(name)):
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise BadInput(f"{path}: {name!r} is not a float array; download the file again")
        tensors[timm_name(str(name))] = torch.from_numpy(np.array(value, dtype=np.float32))
    return fold_conv_biases(tensors)


def timm_name(name: str) -> str:
    """Return timm's name of a Caffe2 blob; a blob that is not part of a ResNet keeps its name."""
    match = NAME.fullmatch(name)
    part = PARTS.get((match[1] or match[5]) if match else "")
    if match is None or part is None:
        return name
    block, layer = "", "conv1"
    if match[2]:  # stages are counted from 2 in Caffe2, from 1 in timm
        block, layer = f"layer{int(match[2]) - 1}.{match[3]}.", LAYERS[match[4]]
    norm = layer.replace("downsample.0", "downsample.1").replace("conv", "bn")
    module, parameter = part.split(".")
    return f"{block}{layer if module == 'conv' else norm}.{parameter}"


def fold_conv_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy with running statistics of every norm that express a fixed scale and shift.

    timm's convolutions have no bias. The norm computes scale (x - mean) / sqrt(var + eps) + shift; with mean = -bias,
    var = 1 and eps = 0 this is scale (x + bias) + shift.
    """
    state = {}
    for name, value in tensors.items():
        layer, _, kind = name.rpartition(".")
        is_norm = value.ndim == 1 and re.search(r"(bn\d|downsample\.1)$", layer) is not None
        if is_norm and kind == "weight":
            # bn1 follows conv1, downsample.1 follows downsample.0
            conv = layer.replace("downsample.1", "downsample.0").replace("bn", "conv")
            bias = tensors.get(f"{conv}.bias")
            state[f"{layer}.running_mean"] = torch.zeros_like(value) if bias is None else -bias
            state[f"{layer}.running_var"] = torch.ones_like(value)
        if is_norm or kind != "bias":
            state[name] = value
    return state
