"""What is wanted of the masks, on the grids of the losses: mask targets, their pixels B_k, classes of cells."""

from __future__ import annotations

import torch
from torch import Tensor

from embedmask.objective.lookup import MaskLookup, Masks
from embedmask.structures import Size


def mask_targets(
    masks: Masks, grid: Size, stride: int, *, index: Tensor | None = None, aligned: bool = False
) -> Tensor:
    """Ground-truth masks on a grid of `stride` px, zero beyond their own frame.

    The authors' first repository resizes bilinearly without antialiasing and keeps what is above 0. At an even stride
    that is the OR of the two by two pixels around each cell's centre, which is taken here directly. Their second
    (`aligned`) takes the one pixel at the cell's location.

    Args:
        masks: bool `[G, H, W]`, or crops.
        grid: `(h, w)` cells.
        stride: even, or 1, px.
        index: int64 `[M]`, which masks; None: all, M = G.

    Returns:
        bool `[M, h, w]`.
    """
    middle = (stride // 2,) if aligned or stride == 1 else (stride // 2 - 1, stride // 2)
    return MaskLookup.of(masks).any_of([(y, x) for y in middle for x in middle], stride, grid, index)


def semantic_targets(masks: Masks, labels: Tensor, grid: Size, stride: int) -> Tensor:
    """The class at each cell's location: that of the mask with the fewest pixels, the first of equal ones.

    Args:
        masks: bool `[G, H, W]`, or crops.
        labels: int64 `[G]`.

    Returns:
        int64 `[h, w]`, -1 where there is no object.
    """
    if len(masks) == 0:
        return torch.full(grid, -1, device=labels.device)
    lookup = MaskLookup.of(masks)
    order = lookup.areas().sort(stable=True).indices
    there = mask_targets(lookup, grid, stride, index=order, aligned=True)
    return torch.where(there.any(0), labels[order[there.byte().argmax(0)]], -1)


def box_regions(boxes: Tensor, grid: Size, stride: int, expansion: float) -> Tensor:
    """B_k of eq. 4: cells inside the ground-truth box with each side `expansion` times as long, and one cell around.

    Args:
        boxes: `[G, 4]` xyxy px.
        grid: `(h, w)` cells.
        stride: px a cell.

    Returns:
        bool `[G, h, w]`; the last row and column are never inside, as in the authors' code.
    """
    height, width = grid
    cells = boxes / stride
    margin = (cells[:, 2:] - cells[:, :2]) * ((expansion - 1) / 2) + 1
    x1, y1 = (cells[:, :2] - margin).clamp(min=0).unbind(1)
    x2, y2 = torch.minimum(cells[:, 2:] + margin, cells.new_tensor([width - 1, height - 1])).unbind(1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns = (x >= x1[:, None]) & (x < x2[:, None])
    rows = (y >= y1[:, None]) & (y < y2[:, None])
    return rows[:, :, None] & columns[:, None, :]
