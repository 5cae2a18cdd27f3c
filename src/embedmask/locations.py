"""Locations of the pyramid's cells in the image, their order in one list of K, and the boxes around them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.structures import Size

MASK_UPSAMPLING = 2
"""Factor from the grid of the pixel embedding to that of masks, in the loss and in inference: stride 8 -> 4."""


def level_locations(size: Size, stride: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the locations of one level, row-major: cell (y, x) lies at (x s + s // 2, y s + s // 2) (section 3.1).

    Args:
        size: `(height, width)` cells.
        stride: s, px per cell.
        device: of the result.

    Returns:
        float32 `[H * W, 2]` px, x before y.
    """
    height, width = size
    y = torch.arange(height, device=device) * stride + stride // 2
    x = torch.arange(width, device=device) * stride + stride // 2
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).reshape(-1, 2).float()


def all_locations(
    sizes: Sequence[Size], strides: Sequence[int], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return the locations of all levels, finest first, and the level of each: float32 `[K, 2]`, int64 `[K]`."""
    per_level = [level_locations(size, stride, device) for size, stride in zip(sizes, strides, strict=True)]
    counts = torch.tensor([len(part) for part in per_level], device=device)
    return torch.cat(per_level), torch.arange(len(per_level), device=device).repeat_interleave(counts)


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate L maps `[N, C, Hl, Wl]` to `[N, C, K]`, in the order of `all_locations`."""
    return torch.cat([level.flatten(2) for level in maps], 2)


def ltrb_to_xyxy(locations: Tensor, ltrb: Tensor) -> Tensor:
    """Convert distances to the sides into corners: `[..., 2]` and `[..., 4]` px -> `[..., 4]` px."""
    return torch.cat([locations - ltrb[..., :2], locations + ltrb[..., 2:]], -1)


def xyxy_to_ltrb(locations: Tensor, boxes: Tensor) -> Tensor:
    """Convert corners into distances to the sides: `[..., 2]` and `[..., 4]` px -> `[..., 4]` px."""
    return torch.cat([locations - boxes[..., :2], boxes[..., 2:] - locations], -1)


def box_areas(boxes: Tensor, box_offset: float = 0.0) -> Tensor:
    """Compute the areas of boxes `[N, 4]` (xyxy px), `[N]`; `box_offset` is added to every side."""
    return (boxes[:, 2] - boxes[:, 0] + box_offset) * (boxes[:, 3] - boxes[:, 1] + box_offset)


def paired_iou(boxes: Tensor, others: Tensor, box_offset: float = 0.0) -> Tensor:
    """Compute the IoU of each box with the other box of its row; nan for two without area.

    Args:
        boxes: `[P, 4]` xyxy px.
        others: `[P, 4]` xyxy px.
        box_offset: added to every side.

    Returns:
        `[P]`.
    """
    top_left = torch.maximum(boxes[:, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (bottom_right - top_left + box_offset).clamp(min=0).prod(1)
    return intersection / (box_areas(boxes, box_offset) + box_areas(others, box_offset) - intersection)


def resize_aligned(maps: Tensor, factor: int) -> Tensor:
    """Upsample maps bilinearly so that every cell keeps its location.

    Cell i of stride s lies at s i + s // 2, not in the middle of its s pixels as half-pixel resizing assumes. Output
    cell o therefore reads the input at (o - factor // 2) / factor, clamped to the map.

    Args:
        maps: `[N, C, h, w]`.
        factor: cells of the output per cell of the input.

    Returns:
        `[N, C, factor h, factor w]`.
    """
    height, width = maps.shape[-2:]
    # h + 1 cells from corner to corner are factor h + 1 outputs in steps of exactly 1 / factor
    longer = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    resized = F.interpolate(longer, size=size, mode="bilinear", align_corners=True)
    # shift by factor // 2, repeating the border, and cut the surplus
    before = factor // 2
    shifted = F.pad(resized, (before, 0, before, 0), mode="replicate")
    return shifted[..., : factor * height, : factor * width]
