"""EmbedMask: one-stage instance segmentation by coupling pixel and proposal embeddings (arXiv 1912.01954)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedmask import predict
    from embedmask.config import ModelConfig
    from embedmask.inference.postprocess import Postprocessor
    from embedmask.inference.predictor import Predictor
    from embedmask.model.embedmask import EmbedMask
    from embedmask.objective.criterion import Criterion
    from embedmask.structures import Predictions, Target
    from embedmask.weights.checkpoint import load, save

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "EmbedMask",
    "ModelConfig",
    "Postprocessor",
    "Predictions",
    "Predictor",
    "Target",
    "load",
    "predict",
    "save",
]

_HOMES = {
    "Criterion": "embedmask.objective.criterion",
    "EmbedMask": "embedmask.model.embedmask",
    "ModelConfig": "embedmask.config",
    "Postprocessor": "embedmask.inference.postprocess",
    "Predictions": "embedmask.structures",
    "Predictor": "embedmask.inference.predictor",
    "Target": "embedmask.structures",
    "load": "embedmask.weights.checkpoint",
    "save": "embedmask.weights.checkpoint",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that the help of the command line does not import torch."""
    if name == "predict":
        return import_module("embedmask.predict")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
