"""Lookup of single mask pixels, so that no tensor of the size objects x image is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from embedmask.structures import CropMasks, Size

Masks: TypeAlias = "Tensor | CropMasks | MaskLookup"
"""bool `[G, H, W]`, crops, or a lookup built from either."""


@dataclass
class MaskLookup:
    """G masks of one image as crops, concatenated in one tensor; a mask is False outside its crop.

    Attributes:
        pixels: bool `[P]`, the row-major pixels of all crops.
        crops: int64 `[G, 5]`: offset of the crop in `pixels`, its first row and column in the image, height, width.
    """

    pixels: Tensor
    crops: Tensor

    @classmethod
    def of(cls, masks: Masks, device: torch.device | None = None) -> MaskLookup:
        """Build a lookup on a device, from crops or from bool `[G, H, W]` (whole frames, not copied)."""
        if isinstance(masks, MaskLookup):
            return masks
        if isinstance(masks, CropMasks):
            pixels = masks.pixels()
            shapes = [(*place, *crop.shape) for place, crop in zip(masks.offsets, masks.crops, strict=True)]
        else:
            pixels, shapes = masks.bool().reshape(-1), [(0, 0, *masks.shape[1:])] * len(masks)
        device = pixels.device if device is None else device
        frames = torch.tensor(shapes, dtype=torch.int64).reshape(-1, 4)  # [G, 4]: row, column, height, width
        areas = frames[:, 2:].prod(1)
        # the exclusive cumulative sum of the areas is where each crop begins
        crops = torch.cat(((areas.cumsum(0) - areas)[:, None], frames), 1)  # [G, 5]
        return cls(pixels.to(device), crops.to(device))

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        """Yield each crop, bool `[h, w]`, with its first row and column."""
        for start, row, column, height, width in self.crops.tolist():
            yield self.pixels[start : start + height * width].view(height, width), row, column

    def areas(self) -> Tensor:
        """Return the number of pixels of each mask, int64 `[G]`."""
        return torch.stack([crop.sum() for crop, _, _ in self]) if len(self) else self.crops[:, 0]

    def any_of(
        self, places: Sequence[tuple[int, int]], stride: int, grid: Size, index: Tensor | None = None
    ) -> Tensor:
        """Return whether a mask contains at least one of the given pixels of each grid cell.

        Args:
            places: (y, x) of the pixels relative to their cell, 0 <= y, x < stride.
            stride: px per cell.
            grid: `(h, w)` cells; mask pixels beyond it are ignored.
            index: int64 `[M]`, masks to look up; None: all G.

        Returns:
            bool `[M, h, w]`.
        """
        crops = self.crops if index is None else self.crops[index]
        values = torch.zeros((len(crops), *grid), dtype=torch.bool, device=self.pixels.device)
        for value, (start, row, column, height, width) in zip(values, crops.tolist(), strict=True):
            crop = self.pixels[start : start + height * width].view(height, width)
            for y, x in places:
                # cell (i, j) reads image pixel (i stride + y, j stride + x); the first cells whose pixel is not
                # above or left of the crop: ceil((row - y) / stride), ceil((column - x) / stride)
                top, left = max(-((y - row) // stride), 0), max(-((x - column) // stride), 0)
                # the same pixels as a strided slice of the crop, from its own first row and column
                part = crop[top * stride + y - row :: stride, left * stride + x - column :: stride]
                part = part[: max(grid[0] - top, 0), : max(grid[1] - left, 0)]
                value[top : top + part.shape[0], left : left + part.shape[1]] |= part
        return values

    def at(self, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Return the values of some masks at pixels.

        Needs eight bytes per value: pass a few masks at a time.

        Args:
            y: int64, rows; broadcasts with `x`.
            x: int64, columns.
            index: int64 `[M]`, masks to look up.

        Returns:
            bool `[M, ...]`; False outside a crop.
        """
        # [M, 5] -> five columns [M, 1, ...], which broadcast against the pixels
        shape = (5, len(index), *[1] * y.ndim)
        start, row, column, height, width = self.crops[index].T.reshape(shape)
        y, x = y - row, x - column
        inside: Tensor = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if self.pixels.numel() == 0:
            return inside
        # pixels outside read element 0, a valid address whose value is masked out
        place = torch.where(inside, start + y * width + x, 0)
        return self.pixels[place] & inside
