"""Prediction of files: `embedmask.predict.run`, the job of the command `embedmask predict`, and its summary."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from embedmask.predict.summary import PredictSummary

if TYPE_CHECKING:
    from embedmask.predict.job import run

__all__ = ["PredictSummary", "run"]


def __getattr__(name: str) -> object:
    """Import `run` on first use, because it imports torch and all readers and writers."""
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("embedmask.predict.job").run
