"""Prediction of files: `embedmask.predict.run`, the job of the command `embedmask predict`, and its summary."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embedmask.predict.job import PredictSummary, run

__all__ = ["PredictSummary", "run"]


def __getattr__(name: str) -> object:
    """Import a public name on first use, because the job imports torch and all readers and writers."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("embedmask.predict.job"), name)
