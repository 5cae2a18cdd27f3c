"""Pixels of an image's masks, looked up where a loss needs them: nothing of the size objects x image is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from embedmask.structures import CropMasks, Size

Masks: TypeAlias = "Tensor | CropMasks | MaskLookup"
"""bool `[G, H, W]`, crops, or either already made ready."""


@dataclass
class MaskLookup:
    """G masks of one image, each its own crop, one after the other in one tensor; False outside the crops.

    Attributes:
        pixels: bool `[P]`, row-major crops.
        crops: int64 `[G, 5]`: where a crop begins in `pixels`, its first row and column in the image, height, width.
    """

    pixels: Tensor
    crops: Tensor

    @classmethod
    def of(cls, masks: Masks, device: torch.device | None = None) -> MaskLookup:
        """From bool `[G, H, W]` (each crop is the whole frame, nothing is copied) or from crops; on a device."""
        if isinstance(masks, MaskLookup):
            return masks
        if isinstance(masks, CropMasks):
            pixels = masks.pixels()
            shapes = [(*place, *crop.shape) for place, crop in zip(masks.offsets, masks.crops, strict=True)]
        else:
            pixels, shapes = masks.bool().reshape(-1), [(0, 0, *masks.shape[1:])] * len(masks)
        device = pixels.device if device is None else device
        frames = torch.tensor(shapes, dtype=torch.int64).reshape(-1, 4)
        areas = frames[:, 2:].prod(1)
        crops = torch.cat(((areas.cumsum(0) - areas)[:, None], frames), 1)
        return cls(pixels.to(device), crops.to(device))

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        """Each crop, bool `[h, w]`, with its first row and column."""
        for start, row, column, height, width in self.crops.tolist():
            yield self.pixels[start : start + height * width].view(height, width), row, column

    def areas(self) -> Tensor:
        """Pixels of each mask, int64 `[G]`."""
        return torch.stack([crop.sum() for crop, _, _ in self]) if len(self) else self.crops[:, 0]

    def any_of(
        self, places: Sequence[tuple[int, int]], stride: int, grid: Size, index: Tensor | None = None
    ) -> Tensor:
        """Whether a mask has one of some pixels of each cell of a grid: bool `[M, h, w]`.

        Args:
            places: (y, x) of the pixels, counted inside the cell, 0 <= y, x < stride.
            grid: `(h, w)` cells; what lies beyond it is left out.
            index: int64 `[M]`, which masks; None: all.
        """
        crops = self.crops if index is None else self.crops[index]
        values = torch.zeros((len(crops), *grid), dtype=torch.bool, device=self.pixels.device)
        for value, (start, row, column, height, width) in zip(values, crops.tolist(), strict=True):
            crop = self.pixels[start : start + height * width].view(height, width)
            for y, x in places:
                # first row and column of the grid that lie in the crop
                top, left = max(-((y - row) // stride), 0), max(-((x - column) // stride), 0)
                seen = crop[top * stride + y - row :: stride, left * stride + x - column :: stride]
                seen = seen[: max(grid[0] - top, 0), : max(grid[1] - left, 0)]
                value[top : top + seen.shape[0], left : left + seen.shape[1]] |= seen
        return values

    def at(self, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Values of the masks `index`, int64 `[M]`, at pixels `y`, `x`, int64 that broadcast: bool `[M, ...]`.

        Takes eight bytes a value: ask for a few masks at a time.
        """
        shape = (5, len(index), *[1] * y.ndim)
        start, row, column, height, width = self.crops[index].T.reshape(shape)
        y, x = y - row, x - column
        inside: Tensor = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if self.pixels.numel() == 0:
            return inside
        place = torch.where(inside, start + y * width + x, 0)
        return self.pixels[place] & inside
