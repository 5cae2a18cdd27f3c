"""Where the cells of the pyramid lie in the image, and how level maps become one list of K locations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.structures import Size


def level_locations(size: Size, stride: int, device: torch.device | str = "cpu") -> Tensor:
    """Locations of one level, row-major: cell (y, x) lies at (x s + s // 2, y s + s // 2) px (section 3.1).

    Returns:
        float32 `[H * W, 2]`, x before y.
    """
    height, width = size
    y = torch.arange(height, device=device) * stride + stride // 2
    x = torch.arange(width, device=device) * stride + stride // 2
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).reshape(-1, 2).float()


def all_locations(
    sizes: Sequence[Size], strides: Sequence[int], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Locations of all levels, finest first, and the level of each: float32 `[K, 2]` and int64 `[K]`."""
    per_level = [level_locations(size, stride, device) for size, stride in zip(sizes, strides, strict=True)]
    counts = torch.tensor([len(part) for part in per_level], device=device)
    return torch.cat(per_level), torch.arange(len(per_level), device=device).repeat_interleave(counts)


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """L maps `[N, C, Hl, Wl]` -> `[N, C, K]`, in the order of `all_locations`."""
    return torch.cat([level.flatten(2) for level in maps], 2)


def ltrb_to_xyxy(locations: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes from distances to their sides: `[..., 2]` and `[..., 4]` px -> `[..., 4]` px."""
    return torch.cat([locations - ltrb[..., :2], locations + ltrb[..., 2:]], -1)


def resize_aligned(maps: Tensor, factor: int) -> Tensor:
    """Enlarge maps so that every cell keeps its location: `[N, C, h, w]` -> `[N, C, factor h, factor w]`.

    Cell i of stride s lies at s i + s // 2, not at the middle of its s pixels as half-pixel resizing takes it. Output
    o so reads the input at (o - factor // 2) / factor, clamped to the map; bilinear.
    """
    height, width = maps.shape[-2:]
    # one more cell than there is, so that interpolation from corner to corner has steps of exactly 1 / factor
    longer = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    resized = F.interpolate(longer, size=size, mode="bilinear", align_corners=True)
    before = factor // 2
    shifted = F.pad(resized, (before, 0, before, 0), mode="replicate")
    return shifted[..., : factor * height, : factor * width]
