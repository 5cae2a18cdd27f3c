"""What runs the network: torch as it is, torch compiled, or OpenVINO."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from embedmask.config import Engine
from embedmask.errors import BadInput
from embedmask.inference.fused import Maps, Trunk
from embedmask.inference.openvino import openvino_trunk
from embedmask.model.detector import Detector
from embedmask.model.embedmask import EmbedMask
from embedmask.model.head import Head
from embedmask.structures import ImageBatch, Predictions

Network = Callable[..., Any]
"""A preprocessed batch in, what the model's own `forward` gives out (`Predictions`, all maps float32); its keywords
are that `forward`'s too."""

STEP_PIXELS = 2**20
"""A CPU is at its full rate with an image of this many px: more at a time take more memory, which the allocator then
asks of the system anew, and are slower."""
LEVEL_MAPS = ("class_logits", "box_ltrb", "centerness_logits", "proposal_embed", "proposal_margin")


def make_network(model: Detector, engine: Engine = "torch", dtype: torch.dtype = torch.float32) -> Network:
    """The network of `model`, ready to be called for inference; `model` itself stays as it is.

    Args:
        model: in evaluation mode, on its device; later changes to it do not reach the network.
        engine: `torch` runs at once; `compile` spends up to minutes on the first image, then takes any size (a
            second time for the first batch of more than one); `openvino` converts the network once (CPU).
        dtype: of the convolutions; embeddings and what is built from them stay float32.

    Raises:
        BadInput: no such engine, or one that cannot run this model here.
    """
    if engine not in get_args(Engine):
        raise BadInput(f"engine {engine!r}: use {', '.join(get_args(Engine))}")
    if not isinstance(model, EmbedMask):
        return _under_autocast(model, engine, dtype)
    if engine == "openvino":
        return _with_head(copy.deepcopy(model.head).eval(), openvino_trunk(model, dtype))
    trunk = Trunk(model, dtype, portable=False)
    return _with_head(trunk.head, trunk if engine == "torch" else _compiled(trunk))


def _with_head(head: Head, trunk: Callable[[Tensor], Maps]) -> Network:
    def network(batch: ImageBatch) -> Predictions:
        images = batch.tensors
        step = max(1, STEP_PIXELS // (images.shape[2] * images.shape[3]))
        parts = [images] if images.device.type != "cpu" else torch.split(images, step)
        with torch.inference_mode():
            return _joined([_predict(head, *trunk(part)) for part in parts])

    return network


def _predict(head: Head, pixels: Tensor, logits: list[Tensor], box_features: list[Tensor]) -> Predictions:
    # the logits alone come out as they are, and an engine may use its memory again for the next image
    return head.predict(pixels, [level.to(torch.float32, copy=True) for level in logits], box_features)


def _joined(parts: list[Predictions]) -> Predictions:
    """Predictions of one frame size as those of one batch."""
    first = parts[0]
    if len(parts) == 1:
        return first
    levels = {name: [getattr(part, name) for part in parts] for name in LEVEL_MAPS}
    joined: dict[str, Any] = {
        name: [torch.cat(level) for level in zip(*maps, strict=True)] for name, maps in levels.items()
    }
    return replace(first, **joined, pixel_embed=torch.cat([part.pixel_embed for part in parts]))


def _compiled(trunk: Trunk) -> Callable[[Tensor], Maps]:
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if not any(shutil.which(name) for name in compilers if name):
        raise BadInput("engine 'compile' needs a C++ compiler; install g++ or clang++, or use engine torch")
    compiled: Callable[[Tensor], Maps] = torch.compile(trunk, dynamic=True)
    return compiled


def _under_autocast(model: Detector, engine: Engine, dtype: torch.dtype) -> Network:
    """Any other kind of model: as it is, whole."""
    if engine != "torch":
        raise BadInput(f"engine {engine!r}: runs EmbedMask alone; use torch for a {type(model).__name__}")
    device, reduced = next(model.parameters()).device, dtype != torch.float32

    def run(batch: ImageBatch, **limits: Any) -> Any:
        with torch.inference_mode(), torch.autocast(device.type, dtype if reduced else None, enabled=reduced):
            return model(batch, **limits)

    return run
