"""Reading and writing weights: our own checkpoints, and the authors' files."""

from __future__ import annotations

from embedmask.weights.checkpoint import Checkpoint, load, load_checkpoint, read_torch_file, save

__all__ = ["Checkpoint", "load", "load_checkpoint", "read_torch_file", "save"]
