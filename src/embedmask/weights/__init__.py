"""Reading and writing of weights: checkpoints, the authors' files and pretrained backbones."""

from __future__ import annotations

from embedmask.weights.checkpoint import Checkpoint, load, load_checkpoint, read_torch_file, save

__all__ = ["Checkpoint", "load", "load_checkpoint", "read_torch_file", "save"]
