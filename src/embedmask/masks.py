"""The masks of an image in two storages with a common interface: `RunMasks` (run lengths) and `BitMasks` (pixels).

Results and annotations are stored as run lengths: memory grows with the length of the outlines. The objective looks up
single pixels of masks on any device, in one flat tensor. Neither form needs memory for objects x image.

Masks have a frame, the `(height, width)` of their image. Boxes are int64 xyxy px, half-open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray
from torch import Tensor

from embedmask.run_lengths import (
    Bools,
    Ints,
    Runs,
    Size,
    alternating_lengths,
    check_counts,
    decode_counts,
    encode_pixels,
    move_runs,
    paint_runs,
    run_dtype,
    split_at_columns,
    tight_boxes,
)


class MaskCrop(NamedTuple):
    """Part of a mask, bool `[h, w]`, and the row and column of the frame where it begins."""

    pixels: Bools
    y: int
    x: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return the bounds of the crop, xyxy px."""
        height, width = self.pixels.shape
        return self.x, self.y, self.x + width, self.y + height

    def tight(self) -> MaskCrop:
        """Return the crop without empty rows and columns around the mask: a view, `[0, 0]` for an empty mask."""
        columns, rows = np.flatnonzero(self.pixels.any(0)), np.flatnonzero(self.pixels.any(1))
        if not len(columns):
            return MaskCrop(self.pixels[:0, :0], self.y, self.x)
        top, left = int(rows[0]), int(columns[0])
        inside = self.pixels[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        return MaskCrop(inside, self.y + top, self.x + left)


@dataclass(frozen=True)
class RunMasks:
    """G masks as run lengths. Pixels of the frame are numbered column by column, as COCO does.

    Attributes:
        runs: of each mask, int32 or int64 `[T, 2]`: first pixel of each run and the pixel after its last, ascending; no
            run continues into the next column.
        frame: `(height, width)` of the image.
    """

    runs: Sequence[Runs]
    frame: Size

    def __len__(self) -> int:
        return len(self.runs)

    @classmethod
    def from_crops(cls, crops: Iterable[MaskCrop], frame: Size) -> Self:
        """Encode crops that lie inside the frame, one at a time."""
        return cls([encode_pixels(crop.pixels, (crop.y, crop.x), frame) for crop in crops], frame)

    @classmethod
    def from_dense(cls, masks: Tensor) -> Self:
        """Encode bool `[G, H, W]`."""
        crops = (MaskCrop(mask.cpu().numpy(), 0, 0) for mask in masks)
        return cls.from_crops(crops, (masks.shape[1], masks.shape[2]))

    @classmethod
    def from_rle(cls, rles: Iterable[dict[str, Any]], frame: Size) -> Self:
        """Decode COCO's compressed run lengths, `{"counts": text}`.

        Raises:
            BadInput: the text is damaged, or the run lengths do not add up to the frame.
        """
        counts = decode_counts(rle["counts"] for rle in rles)
        for own in counts:
            check_counts(own, frame)
        return cls(split_at_columns(counts, frame), frame)

    def select(self, index: Iterable[int]) -> Self:
        """Return the masks at `index`, in that order. Their runs are shared, not copied."""
        return type(self)([self.runs[i] for i in index], self.frame)

    def areas(self) -> Ints:
        """Return the number of pixels of each mask, int64 `[G]`."""
        return np.array([(runs[:, 1] - runs[:, 0]).sum() for runs in self.runs], np.int64)

    def boxes(self) -> Ints:
        """Return the tight box of each mask, int64 `[G, 4]`; 0 for empty masks."""
        boxes = np.zeros((len(self), 4), np.int64)
        counts = np.array([len(runs) for runs in self.runs], np.int64)
        nonempty = np.flatnonzero(counts)
        if len(nonempty):
            firsts = (np.cumsum(counts) - counts)[nonempty]
            starts, stops = np.concatenate(self.runs).T
            boxes[nonempty] = tight_boxes(starts, stops, firsts, self.frame[0])
        return boxes

    def window(self, index: int, box: Sequence[int]) -> Bools:
        """Decode one mask inside a box of the frame, bool `[h, w]`. The cost grows with the box."""
        left, top, right, bottom = box
        height, width = bottom - top, right - left
        runs = self.runs[index]
        first, last = np.searchsorted(runs[:, 0], (left * self.frame[0], right * self.frame[0]))
        runs = runs[first:last].astype(np.int64)
        column = runs[:, :1] // self.frame[0]
        # rows inside the box, then pixel numbers inside the box
        rows = np.minimum(np.maximum(runs - (column * self.frame[0] + top), 0), height)
        ends = (rows + (column - left) * height)[rows[:, 0] < rows[:, 1]]
        return paint_runs(ends, (height, width))

    def crop(self, index: int) -> MaskCrop:
        """Decode one mask inside its tight box."""
        return next(self.select([index]).crops())

    def crops(self) -> Iterator[MaskCrop]:
        """Decode every mask inside its tight box, one at a time."""
        boxes = self.boxes()
        moved = move_runs(self.runs, self.frame[0], -boxes[:, 1::-1], boxes[:, 3] - boxes[:, 1])
        for runs, (x1, y1, x2, y2) in zip(moved, boxes.tolist(), strict=True):
            yield MaskCrop(paint_runs(runs, (y2 - y1, x2 - x1)), y1, x1)

    def overlaps(self, index: Ints, other: RunMasks, other_index: Ints) -> Ints:
        """Return the number of pixels that the two masks of each pair share, int64 `[E]`.

        Args:
            index: int64 `[E]`, masks of these.
            other: masks of the same frame.
            other_index: int64 `[E]`, masks of `other`.
        """
        if not len(index):
            return np.zeros(0, np.int64)
        # the runs of all other masks in one ascending sequence: mask j is shifted by j * pixels
        pixels, counts = self.frame[0] * self.frame[1], [len(runs) for runs in other.runs]
        start, stop = np.concatenate(other.runs).astype(np.int64).T + np.repeat(
            np.arange(len(other)) * pixels, counts
        )
        below = np.append(0, np.cumsum(stop - start))
        # the ends of the runs of each pair, shifted to its other mask: [2 T]
        runs = [self.runs[i] for i in index.tolist()]
        lengths = [len(own) for own in runs]
        ends = (np.concatenate(runs) + np.repeat(other_index * pixels, lengths)[:, None]).ravel()
        # pixels of the sequence below each end: the runs that begin there, minus the rest of the last one
        place = np.searchsorted(start, ends)
        rest = np.maximum(np.append(0, stop)[place] - ends, 0)
        covered = (below[place] - rest).reshape(-1, 2)
        sums = np.bincount(np.repeat(np.arange(len(runs)), lengths), covered[:, 1] - covered[:, 0], len(runs))
        return sums.astype(np.int64)

    def union(self, index: Sequence[int]) -> Runs:
        """Return the runs of the union of one or more masks."""
        if len(index) == 1:
            return self.runs[index[0]]
        runs = np.concatenate([self.runs[i] for i in index])
        runs = runs[runs[:, 0].argsort(kind="stable")]
        column = runs[:, 0] // self.frame[0]
        # a run is joined to the earlier ones of its column if one of them reaches it
        reach = np.maximum.accumulate(runs[:, 1])
        begins = np.ones(len(runs), bool)
        begins[1:] = (runs[1:, 0] > reach[:-1]) | (column[1:] != column[:-1])
        ends = np.append(begins[1:], True)[: len(runs)]
        return np.stack([runs[begins, 0], reach[ends]], 1)

    def place(self, corner: tuple[int, int], frame: Size) -> Self:
        """Return the masks in a larger frame, in which row and column `corner` are the first pixel of this one."""
        corners, heights = np.tile(corner, (len(self), 1)), np.full(len(self), frame[0])
        moved = move_runs(self.runs, self.frame[0], corners, heights)
        return type(self)([runs.astype(run_dtype(frame)) for runs in moved], frame)

    def to_dense(self) -> Tensor:
        """Return all masks, bool `[G, H, W]` on the CPU. Memory grows with objects x image."""
        dense = torch.zeros((len(self), *self.frame), dtype=torch.bool)
        for index in range(len(self)):
            dense[index] = torch.from_numpy(self.window(index, (0, 0, self.frame[1], self.frame[0])))
        return dense

    def to_label_image(self, dtype: type[np.integer[Any]] = np.int32) -> NDArray[np.integer[Any]]:
        """Return all masks as one label image, `[H, W]`: 1, 2, ... in their order, 0 is background.

        Where masks overlap, the first keeps the pixels; a mask that is fully covered disappears.
        """
        image = np.zeros(self.frame, dtype)
        for label, (pixels, y, x) in enumerate(self.crops(), start=1):
            # a view: writing to it changes the image
            window = image[y : y + pixels.shape[0], x : x + pixels.shape[1]]
            window[pixels & (window == 0)] = label
        return image

    def to_counts(self) -> list[NDArray[Any]]:
        """Return COCO's run lengths of each mask: lengths of alternating runs, background first."""
        return alternating_lengths(self.runs, [self.frame[0] * self.frame[1]] * len(self))

    def to_coco_rle(self) -> list[dict[str, Any]]:
        """Return the compressed RLE of each mask: `{"size": [H, W], "counts": text}`."""
        size = list(self.frame)
        rles: Any = [
            mask_api.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
            for counts in self.to_counts()
        ]
        return [{"size": size, "counts": rle["counts"].decode("ascii")} for rle in rles]


@dataclass(frozen=True)
class BitMasks:
    """G masks as the pixels of one crop each, concatenated in one tensor; a mask is False outside its crop.

    Attributes:
        pixels: bool `[P]`, the row-major pixels of all crops.
        bounds: int64 `[G, 4]` xyxy px, the bounds of the crops; they may reach beyond the frame.
        frame: `(height, width)` of the image.
    """

    pixels: Tensor
    bounds: Tensor
    frame: Size

    def __len__(self) -> int:
        return len(self.bounds)

    @classmethod
    def of(cls, masks: Tensor | BitMasks) -> BitMasks:
        """Return masks as they are, or bool `[G, H, W]` as crops of the frame's size, which are not copied."""
        if isinstance(masks, BitMasks):
            return masks
        height, width = masks.shape[1:]
        bounds = torch.tensor([[0, 0, width, height]], device=masks.device).expand(len(masks), 4)
        return cls(masks.bool().reshape(-1), bounds, (height, width))

    @classmethod
    def from_crops(cls, crops: Sequence[MaskCrop], frame: Size) -> BitMasks:
        """Return masks of crops, whose pixels are copied."""
        flat = [np.zeros(0, bool), *(crop.pixels.ravel() for crop in crops)]
        return cls._restore(torch.from_numpy(np.concatenate(flat)), [crop.box for crop in crops], frame)

    @classmethod
    def _restore(cls, pixels: Tensor, bounds: Sequence[Sequence[int]], frame: Size) -> BitMasks:
        bounds_tensor = torch.tensor(bounds, dtype=torch.int64, device=pixels.device).reshape(-1, 4)
        return cls(pixels, bounds_tensor, frame)

    def __reduce__(self) -> tuple[object, ...]:
        # pickle one tensor instead of several: torch sends each tensor to another process as a file descriptor
        return BitMasks._restore, (self.pixels, self.bounds.tolist(), self.frame)

    @cached_property
    def layout(self) -> Tensor:
        """Return offset in `pixels`, first row and column, height and width of each crop, int64 `[G, 5]`."""
        x1, y1, x2, y2 = self.bounds.unbind(1)
        areas = (y2 - y1) * (x2 - x1)
        # the exclusive cumulative sum of the areas is where each crop begins
        return torch.stack([areas.cumsum(0) - areas, y1, x1, y2 - y1, x2 - x1], 1)

    def to(self, device: torch.device | str) -> BitMasks:
        """Return the masks on a device."""
        return BitMasks(self.pixels.to(device), self.bounds.to(device), self.frame)

    def crops(self, index: Tensor | None = None) -> Iterator[tuple[Tensor, int, int]]:
        """Yield crops of masks, views bool `[h, w]` on their device, with their first row and column.

        Args:
            index: int64 `[M]`; None: all G.
        """
        layout = self.layout if index is None else self.layout[index]
        for start, y, x, height, width in layout.tolist():
            yield self.pixels[start : start + height * width].view(height, width), y, x

    def areas(self) -> Tensor:
        """Return the number of pixels of each mask, int64 `[G]`."""
        return torch.stack([crop.sum() for crop, _, _ in self.crops()]) if len(self) else self.bounds[:, 0]

    def to_runs(self) -> RunMasks:
        """Encode the masks as run lengths. Their crops must lie inside the frame."""
        crops = (MaskCrop(pixels.cpu().numpy(), y, x) for pixels, y, x in self.crops())
        return RunMasks.from_crops(crops, self.frame)

    def to_dense(self) -> Tensor:
        """Return all masks, bool `[G, H, W]` on their device. Memory grows with objects x image."""
        return self.any_of([(0, 0)], 1, self.frame)

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
        count = len(self) if index is None else len(index)
        values = torch.zeros((count, *grid), dtype=torch.bool, device=self.pixels.device)
        for value, (crop, row, column) in zip(values, self.crops(index), strict=True):
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
        start, row, column, height, width = self.layout[index].T.reshape(shape)
        y, x = y - row, x - column
        inside: Tensor = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if self.pixels.numel() == 0:
            return inside
        # pixels outside read element 0, a valid address whose value is masked out
        place = torch.where(inside, start + y * width + x, 0)
        return self.pixels[place] & inside
