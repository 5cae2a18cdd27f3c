"""Targets of the mask losses on the grids of the losses: masks, the pixels B_k, the class of each cell."""

from __future__ import annotations

import torch
from torch import Tensor

from embedmask.masks import BitMasks
from embedmask.structures import Size


def mask_targets(
    masks: Tensor | BitMasks, grid: Size, stride: int, *, index: Tensor | None = None, aligned: bool = False
) -> Tensor:
    """Sample ground-truth masks on a grid of `stride` px, False beyond their frame.

    The authors' first repository resizes bilinearly without antialiasing and thresholds at 0. For an even stride this
    is the OR of the two by two pixels around each cell's center, computed here directly. Their second repository
    (`aligned`) reads the single pixel at the cell's location.

    Args:
        masks: bool `[G, H, W]`, or crops.
        grid: `(h, w)` cells.
        stride: px per cell, 1 or even.
        index: int64 `[M]`, masks to sample; None: all, M = G.
        aligned: read one pixel per cell.

    Returns:
        bool `[M, h, w]`.
    """
    middle = (stride // 2,) if aligned or stride == 1 else (stride // 2 - 1, stride // 2)
    return BitMasks.of(masks).any_of([(y, x) for y in middle for x in middle], stride, grid, index)


def semantic_targets(masks: Tensor | BitMasks, labels: Tensor, grid: Size, stride: int) -> Tensor:
    """Return the class at each cell's location; where masks overlap, the smallest wins, then the first.

    Args:
        masks: bool `[G, H, W]`, or crops.
        labels: int64 `[G]`.
        grid: `(h, w)` cells.
        stride: px per cell.

    Returns:
        int64 `[h, w]`, -1 where there is no object.
    """
    if len(masks) == 0:
        return torch.full(grid, -1, device=labels.device)
    lookup = BitMasks.of(masks)
    order = lookup.areas().sort(stable=True).indices
    covered = mask_targets(lookup, grid, stride, index=order, aligned=True)  # [G, h, w], by ascending area
    # argmax of 0 and 1 is the first mask that covers a cell; `byte`, because argmax does not accept bool
    first = covered.byte().argmax(0)  # [h, w]
    return torch.where(covered.any(0), labels[order[first]], -1)


def box_regions(boxes: Tensor, grid: Size, stride: int, expansion: float) -> Tensor:
    """Return B_k of eq. 4: the cells of the ground-truth box, its sides scaled by `expansion`, plus one cell around.

    Args:
        boxes: `[G, 4]` xyxy px.
        grid: `(h, w)` cells.
        stride: px per cell.
        expansion: factor of the sides.

    Returns:
        bool `[G, h, w]`; the last row and column are always False, as in the authors' code.
    """
    height, width = grid
    cells = boxes / stride
    margin = (cells[:, 2:] - cells[:, :2]) * ((expansion - 1) / 2) + 1
    x1, y1 = (cells[:, :2] - margin).clamp(min=0).unbind(1)
    x2, y2 = torch.minimum(cells[:, 2:] + margin, cells.new_tensor([width - 1, height - 1])).unbind(1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns = (x >= x1[:, None]) & (x < x2[:, None])  # [G, w]
    rows = (y >= y1[:, None]) & (y < y2[:, None])  # [G, h]
    # outer product of the two ranges: [G, h, 1] & [G, 1, w]
    return rows[:, :, None] & columns[:, None, :]
