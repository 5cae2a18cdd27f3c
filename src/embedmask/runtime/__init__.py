"""Prediction with an exported file, without torch: numpy, Pillow and onnxruntime (or openvino for `.xml`) are enough.

The folder imports nothing else of embedmask, so it may be copied into another project.

Example:
    >>> from embedmask.runtime import Model
    >>> result = Model("model.onnx")("photo.jpg")
    >>> result.boxes, result.scores, result.labels, result.masks()
"""

from __future__ import annotations

from .graph_file import BadFile, Settings, read_metadata, settings_of
from .model import Model, Result, predict_files
from .session import Session

__all__ = [
    "BadFile",
    "Model",
    "Result",
    "Session",
    "Settings",
    "predict_files",
    "read_metadata",
    "settings_of",
]
