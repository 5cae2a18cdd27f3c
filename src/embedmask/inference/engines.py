"""Engines that run the network: torch, compiled torch, or OpenVINO; `exported.py` has those of exported files."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from embedmask.config import Engine, Precision, model_type_of
from embedmask.device import choose_precision, full_float32
from embedmask.errors import BadInput
from embedmask.inference.fused import Maps, Trunk
from embedmask.inference.openvino import openvino_trunk
from embedmask.model.detector import Detector
from embedmask.model.embedmask import EmbedMask
from embedmask.model.head import Head
from embedmask.structures import ImageBatch, Predictions

Network = Callable[..., Any]
"""Maps a preprocessed batch to the output of the model's `forward` (for EmbedMask `Predictions`, all maps float32), and
takes the keyword arguments of `forward`."""

STEP_PIXELS = 2**20
"""Pixels per call on a CPU, which already run it at full rate; larger calls are slower, because the allocator requests
their memory from the system each time."""
LEVEL_MAPS = ("class_logits", "box_ltrb", "centerness_logits", "proposal_embed", "proposal_margin")


def make_network(model: Detector, engine: Engine = "torch", dtype: torch.dtype = torch.float32) -> Network:
    """Build the network of `model` for inference; `model` is not changed.

    Args:
        model: in evaluation mode, on its device; later changes do not affect the network.
        engine: `torch` starts at once, and chooses the engine of an exported file; `compile` takes up to several
            minutes for the first image, and again for the first batch of several images, then accepts any size;
            `openvino` converts the network once (CPU); `onnxruntime` runs exported files.
        dtype: of the convolutions; embeddings and distances stay float32.

    Returns:
        A network with its own copy of the weights, which casts and lays out its inputs itself.

    Raises:
        BadInput: the engine does not exist or cannot run this model here.
    """
    if engine not in get_args(Engine):
        raise BadInput(f"engine {engine!r}: use {', '.join(get_args(Engine))}")
    network: Network = model_type_of(model.config).load("network")(model, engine, dtype)
    return network


def choose_dtype(model: Detector, device: torch.device, precision: Precision) -> torch.dtype:
    """Return the number format of a model's convolutions; see `choose_precision`."""
    is_free = precision == "auto" and model.float32_only
    return choose_precision(device, "float32" if is_free else precision)


def fused_network(model: EmbedMask, engine: Engine, dtype: torch.dtype) -> Network:
    """Return the network of an EmbedMask: its fused trunk, run by the engine, then its head."""
    if engine == "onnxruntime":
        raise BadInput("engine 'onnxruntime' runs files of embedmask export; use torch, compile or openvino")
    if engine == "openvino":
        return _with_head(copy.deepcopy(model.head).eval(), openvino_trunk(model, dtype))
    trunk = Trunk(model, dtype, portable=False)
    if engine == "torch":
        return _with_head(trunk.head, trunk)
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if not any(shutil.which(name) for name in compilers if name):
        raise BadInput("engine 'compile' needs a C++ compiler; install g++ or clang++, or use engine torch")
    return _with_head(trunk.head, torch.compile(trunk, dynamic=True))


def _with_head(head: Head, trunk: Callable[[Tensor], Maps]) -> Network:
    """Return the network of a trunk and `head.predict`; on a CPU it runs in steps of `STEP_PIXELS`."""

    @torch.inference_mode()
    def network(batch: ImageBatch) -> Predictions:
        images = batch.tensors
        step = max(1, STEP_PIXELS // (images.shape[2] * images.shape[3]))
        parts = []
        for part in [images] if images.device.type != "cpu" else torch.split(images, step):
            with full_float32(images.device):
                pixels, logits, box_features = trunk(part)
                # `predict` returns the logits as they are, but an engine may reuse their memory for the next image
                logits = [level.to(torch.float32, copy=True) for level in logits]
                parts.append(head.predict(pixels, logits, box_features))
        if len(parts) == 1:
            return parts[0]
        # concatenate the images of each map, level by level
        maps: dict[str, Any] = {
            name: [torch.cat(level) for level in zip(*(getattr(part, name) for part in parts), strict=True)]
            for name in LEVEL_MAPS
            if getattr(parts[0], name) is not None
        }
        return replace(parts[0], **maps, pixel_embed=torch.cat([part.pixel_embed for part in parts]))

    return network


def copy_network(model: Detector, engine: Engine, dtype: torch.dtype) -> Network:
    """Return a copy of a model as it is, under autocast if `dtype` is reduced; for types without own engines."""
    if engine != "torch":
        raise BadInput(f"engine {engine!r} supports EmbedMask only; use torch for a {type(model).__name__}")
    if model.float32_only:
        raise BadInput(
            "reference masks need the network without folded norms; use the model file, not an exported one"
        )
    device, reduced = model.mean.device.type, dtype != torch.float32
    # convolutions in reduced precision are faster in this layout
    layout = torch.channels_last if reduced else torch.contiguous_format
    copied = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=layout)

    @torch.inference_mode()
    def network(batch: ImageBatch, **options: Any) -> Any:
        images = replace(batch, tensors=batch.tensors.contiguous(memory_format=layout))
        autocast = torch.autocast(device, dtype if reduced else None, enabled=reduced)
        with full_float32(images.tensors.device), autocast:
            return copied(images, **options)

    return network
