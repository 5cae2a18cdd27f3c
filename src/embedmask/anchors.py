"""Anchors of RetinaNet relative to their locations, with torchvision's generator and box coding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator

CODER = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
"""Coding of a box relative to its anchor: offset of the center in sides, logarithm of the ratio of sides."""


def cell_anchors(strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return the anchors of a cell of each level, relative to the location of the cell.

    torchvision centers the anchors of cell (y, x) at (x s, y s), half a stride before the location.

    Args:
        strides: of the L levels, px per cell.
        scales: side of the square anchors, in strides, rounded down to px.
        ratios: height / width of the anchors of each scale.

    Returns:
        float32 `[L, A, 4]` xyxy px; all scales of the first ratio come first.
    """
    sides = tuple(tuple(int(stride * scale) for scale in scales) for stride in strides)
    generator = AnchorGenerator(sides, (tuple(ratios),) * len(strides))  # type: ignore[no-untyped-call]
    centers = torch.tensor([stride // 2 for stride in strides])
    return torch.stack(list(generator.cell_anchors)) - centers[:, None, None]
