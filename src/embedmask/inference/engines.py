"""What runs the network: torch as it is, torch compiled, or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from embedmask.errors import BadInput
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch

Engine = Literal["torch", "compile", "openvino"]
Network = Callable[[ImageBatch], Any]
"""A preprocessed batch in, what the model's own `forward` gives out (`Predictions`, all maps float32)."""


def make_network(model: Detector, engine: Engine = "torch", dtype: torch.dtype = torch.float32) -> Network:
    """The network of `model`, ready to be called for inference; `model` itself stays as it is.

    Args:
        model: in evaluation mode, on its device.
        engine: `torch` runs at once; `compile` spends up to minutes on the first picture of a size; `openvino`
            converts the network once (CPU).
        dtype: of the convolutions; embeddings and what is built from them stay float32.

    Raises:
        BadInput: no such engine, or one that cannot run this model here.
    """
    if engine != "torch":
        raise BadInput(f"engine {engine!r}: not available")
    device = next(model.parameters()).device

    def run(batch: ImageBatch) -> Any:
        reduced = dtype != torch.float32
        with torch.inference_mode(), torch.autocast(device.type, dtype if reduced else None, enabled=reduced):
            return model(batch)

    return run
