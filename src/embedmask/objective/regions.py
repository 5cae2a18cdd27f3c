"""Mask targets and the pixels that the mask loss looks at, on the grid of the upsampled pixel embedding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.structures import Size


def mask_targets(masks: Tensor, grid: Size, stride: int) -> Tensor:
    """Ground-truth masks on a grid of `stride` px, zero beyond their own frame.

    The authors resize bilinearly without antialiasing and keep what is above 0. At an even stride that is the OR of
    the two by two pixels around each cell's centre, which is taken here directly.

    Args:
        masks: bool `[G, H, W]`.
        grid: `(h, w)` cells.
        stride: even, px.

    Returns:
        bool `[G, h, w]`.
    """
    height, width = grid[0] * stride, grid[1] * stride
    padded = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
    low, high = stride // 2 - 1, stride // 2
    rows = padded[:, low::stride] | padded[:, high::stride]
    return rows[:, :, low::stride] | rows[:, :, high::stride]


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
