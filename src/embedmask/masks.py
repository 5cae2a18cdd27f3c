"""The masks of an image, in two storages with one interface: `RunMasks` (run lengths) and `BitMasks` (pixels).

Results and annotations are kept as run lengths: memory grows with the length of outlines. The objective reads pixels of
masks at random, on any device, from one flat tensor. Neither ever holds objects x image.

G masks of one frame `(height, width)`; boxes are int64 xyxy px, half-open. Pixels of run lengths are counted column by
column, as COCO does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedmask.run_lengths import (
    Bools,
    Ints,
    Runs,
    Size,
    alternating_lengths,
    checked_counts,
    encode_pixels,
    split_at_columns,
)

Window = tuple[int, int, int, int]
"""left, top, right, bottom px, half-open."""


class MaskCrop(NamedTuple):
    """Part of a mask, bool `[h, w]`, and the row and column of the frame where it begins."""

    pixels: Bools
    y: int
    x: int

    def tight(self) -> MaskCrop:
        """Return the crop without empty rows and columns around the mask, of size 0 x 0 where the mask is empty."""
        columns, rows = np.flatnonzero(self.pixels.any(0)), np.flatnonzero(self.pixels.any(1))
        if not len(columns):
            return MaskCrop(self.pixels[:0, :0], self.y, self.x)
        top, left = int(rows[0]), int(columns[0])
        inside = self.pixels[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        return MaskCrop(inside, self.y + top, self.x + left)

    @property
    def box(self) -> Window:
        """The bounds of the crop in the frame."""
        height, width = self.pixels.shape
        return self.x, self.y, self.x + width, self.y + height


@dataclass(frozen=True)
class RunMasks:
    """G masks as run lengths.

    Attributes:
        runs: of each mask, int `[T, 2]` pixel numbers in the frame, ascending and disjoint; no run continues into the
            next column.
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
        return cls.from_crops(
            (MaskCrop(mask.cpu().numpy(), 0, 0) for mask in masks), (masks.shape[1], masks.shape[2])
        )

    @classmethod
    def from_counts(cls, counts: Iterable[NDArray[Any]], frame: Size) -> Self:
        """Take over COCO's run lengths: lengths of alternating runs, background first, that add up to the frame."""
        return cls([split_at_columns(own, frame) for own in counts], frame)

    @classmethod
    def from_rle(cls, rles: Iterable[dict[str, Any]], frame: Size) -> Self:
        """Decode COCO's compressed run lengths.

        Raises:
            BadInput: damaged text, or run lengths that do not add up to the frame.
        """
        return cls.from_counts((checked_counts(rle["counts"], frame) for rle in rles), frame)

    def select(self, index: Sequence[int]) -> Self:
        """Return the masks of `index`, in that order."""
        return type(self)([self.runs[i] for i in index], self.frame)

    def areas(self) -> Ints:
        """Return the number of pixels of each mask, `[G]`."""
        return np.array([int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.runs], np.int64)

    def boxes(self) -> Ints:
        """Return the tight box of each mask, `[G, 4]`; zeros for an empty mask."""
        boxes = np.zeros((len(self), 4), np.int64)
        counts = np.array([len(runs) for runs in self.runs], np.int64)
        some = np.flatnonzero(counts)
        if len(some):
            joined = np.concatenate(list(self.runs))
            stops = np.cumsum(counts)[some]
            firsts = stops - counts[some]
            # the columns of a mask ascend; its rows need a look at every run
            column = joined[:, 0] // self.frame[0]
            rows = joined - column[:, None] * self.frame[0]
            boxes[some, 0], boxes[some, 2] = column[firsts], column[stops - 1] + 1
            boxes[some, 1] = np.minimum.reduceat(rows[:, 0], firsts)
            boxes[some, 3] = np.maximum.reduceat(rows[:, 1], firsts)
        return boxes

    def window(self, index: int, box: Sequence[int]) -> Bools:
        """Decode one mask inside a box of the frame, bool `[h, w]`; the cost grows with the box."""
        left, top, right, bottom = box
        height, width = bottom - top, right - left
        starts = self.runs[index][:, 0]
        first, last = np.searchsorted(starts, [left * self.frame[0], right * self.frame[0]])
        runs = self.runs[index][first:last].astype(np.int64)
        column = runs[:, :1] // self.frame[0]
        # rows inside the box, then pixel numbers inside the box
        rows = np.clip(runs - column * self.frame[0] - top, 0, height)
        ends = (rows + (column - left) * height)[rows[:, 0] < rows[:, 1]]
        lengths = np.diff(ends.ravel(), prepend=0, append=height * width)
        flat = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        return np.ascontiguousarray(flat.reshape(width, height).T)

    def crop(self, index: int) -> MaskCrop:
        """Decode one mask inside its tight box."""
        box = self.select([index]).boxes()[0].tolist()
        return MaskCrop(self.window(index, box), box[1], box[0])

    def crops(self) -> Iterator[MaskCrop]:
        """Decode every mask inside its tight box, one at a time."""
        for index, box in enumerate(self.boxes().tolist()):
            yield MaskCrop(self.window(index, box), box[1], box[0])

    def overlap(self, index: int, other: RunMasks, other_index: int) -> int:
        """Return the number of pixels that two masks of one frame share."""
        runs, others = self.runs[index], other.runs[other_index]
        if not len(runs) or not len(others):
            return 0
        # pixels of the other mask below a pixel number: its whole runs, less the rest of the last one
        below = np.append(0, np.cumsum(others[:, 1] - others[:, 0], dtype=np.int64))
        ends = runs.ravel()
        place = np.searchsorted(others[:, 0], ends)
        rest = np.maximum(others[place - 1, 1].astype(np.int64) - ends, 0) * (place > 0)
        covered = (below[place] - rest).reshape(-1, 2)
        return int((covered[:, 1] - covered[:, 0]).sum())

    def union(self, index: Sequence[int]) -> Runs:
        """Return the runs of the union of some masks, at least one."""
        if len(index) == 1:
            return self.runs[index[0]]
        runs = np.concatenate([self.runs[i] for i in index])
        runs = runs[runs[:, 0].argsort(kind="stable")]
        # a run begins a new one where no earlier run of its column reaches it
        reach = np.maximum.accumulate(runs[:, 1])
        apart = (runs[1:, 0] > reach[:-1]) | (runs[1:, 0] // self.frame[0] != runs[:-1, 0] // self.frame[0])
        begins = np.flatnonzero(np.append(True, apart)) if len(runs) else np.zeros(0, np.int64)
        stops = np.append(begins[1:] - 1, len(runs) - 1)[: len(begins)]
        return np.stack([runs[begins, 0], reach[stops]], 1)

    def to_dense(self) -> Tensor:
        """Return all masks, bool `[G, H, W]` on the CPU: memory grows with objects x image."""
        whole = (0, 0, self.frame[1], self.frame[0])
        dense = torch.zeros((len(self), *self.frame), dtype=torch.bool)
        for index in range(len(self)):
            dense[index] = torch.from_numpy(self.window(index, whole))
        return dense

    def to_counts(self) -> list[NDArray[Any]]:
        """Return COCO's run lengths of each mask."""
        return alternating_lengths(self.runs, [self.frame[0] * self.frame[1]] * len(self))

    def in_crops(self) -> tuple[list[Runs], Ints]:
        """Return the runs of each mask counted inside its tight box, and the boxes `[G, 4]`."""
        boxes = self.boxes()
        moved = []
        for runs, (left, top, _, bottom) in zip(self.runs, boxes.tolist(), strict=True):
            column = runs[:, :1] // self.frame[0]
            # a column of the crop is shorter than one of the frame by the rows above and below it
            moved.append(runs - column * (self.frame[0] - (bottom - top)) - (left * (bottom - top) + top))
        return moved, boxes


@dataclass
class BitMasks:
    """G masks as the pixels of one crop each, all in one tensor; False outside the crops.

    A process that loads data sends them as they are; the objective reads them on its device.

    Attributes:
        pixels: bool `[P]`, the crops one after the other, row by row.
        boxes: int64 `[G, 4]`, the crops' bounds; they may reach beyond the frame.
        frame: `(height, width)` of the image.
    """

    pixels: Tensor
    boxes: Tensor
    frame: Size

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_crops(cls, crops: Sequence[tuple[Tensor, int, int]], frame: Size) -> Self:
        """Join crops, bool `[h, w]`, each with its first row and column in the frame."""
        flat = [pixels.reshape(-1).bool() for pixels, _, _ in crops]
        boxes = [(x, y, x + pixels.shape[1], y + pixels.shape[0]) for pixels, y, x in crops]
        pixels = torch.cat(flat) if flat else torch.zeros(0, dtype=torch.bool)
        return cls(pixels, torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4), frame)

    @classmethod
    def from_dense(cls, masks: Tensor) -> Self:
        """Take over bool `[G, H, W]`, each mask a crop of the frame's size; nothing is copied."""
        height, width = masks.shape[1:]
        boxes = torch.tensor([0, 0, width, height], device=masks.device).repeat(len(masks), 1)
        return cls(masks.bool().reshape(-1), boxes, (height, width))

    @property
    def sizes(self) -> Tensor:
        """Height and width of each crop, int64 `[G, 2]`."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).flip(1)

    @property
    def starts(self) -> Tensor:
        """Index in `pixels` of each crop's first pixel, int64 `[G]`."""
        counts = self.sizes.prod(1)
        return counts.cumsum(0) - counts

    def to(self, device: torch.device | str) -> BitMasks:
        """Return the masks on a device."""
        return BitMasks(self.pixels.to(device), self.boxes.to(device), self.frame)

    def crops(self) -> Iterator[tuple[Tensor, int, int]]:
        """Yield each crop, a view bool `[h, w]`, with its first row and column."""
        sizes = self.sizes.tolist()
        parts = torch.split(self.pixels, [height * width for height, width in sizes])
        for part, size, (x, y, _, _) in zip(parts, sizes, self.boxes.tolist(), strict=True):
            yield part.view(size), y, x

    def select(self, index: Sequence[int]) -> BitMasks:
        """Return the masks of `index`, in that order."""
        crops = list(self.crops())
        return type(self).from_crops([crops[i] for i in index], self.frame)

    def areas(self) -> Tensor:
        """Return the number of pixels of each mask, int64 `[G]`."""
        owner = torch.repeat_interleave(self.sizes.prod(1))
        counts = torch.zeros(len(self), dtype=torch.int64, device=self.pixels.device)
        return counts.index_add_(0, owner, self.pixels.long())

    def to_dense(self) -> Tensor:
        """Return all masks, bool `[G, H, W]`: memory grows with objects x image."""
        return self.any_of([(0, 0)], 1, self.frame)

    def to_runs(self) -> RunMasks:
        """Encode the masks as run lengths; their crops lie inside the frame."""
        crops = (MaskCrop(pixels.cpu().numpy(), y, x) for pixels, y, x in self.crops())
        return RunMasks.from_crops(crops, self.frame)

    def any_of(
        self, places: Sequence[tuple[int, int]], stride: int, grid: Size, index: Tensor | None = None
    ) -> Tensor:
        """Return whether a mask has one of some pixels of each cell of a grid, bool `[M, h, w]`.

        Args:
            places: (y, x) of the pixels inside the cell, 0 <= y, x < stride.
            stride: px a cell.
            grid: `(h, w)` cells; pixels beyond it are left out.
            index: int64 `[M]`, the masks; None: all.
        """
        rows = range(len(self)) if index is None else index.tolist()
        starts, sizes, boxes = self.starts.tolist(), self.sizes.tolist(), self.boxes.tolist()
        values = torch.zeros((len(rows), *grid), dtype=torch.bool, device=self.pixels.device)
        for value, mask in zip(values, rows, strict=True):
            (height, width), (column, row) = sizes[mask], boxes[mask][:2]
            crop = self.pixels[starts[mask] : starts[mask] + height * width].view(height, width)
            for y, x in places:
                # first row and column of the grid whose pixel (y, x) lies in the crop
                top, left = max(-((y - row) // stride), 0), max(-((x - column) // stride), 0)
                part = crop[top * stride + y - row :: stride, left * stride + x - column :: stride]
                part = part[: max(grid[0] - top, 0), : max(grid[1] - left, 0)]
                value[top : top + part.shape[0], left : left + part.shape[1]] |= part
        return values

    def at(self, y: Tensor, x: Tensor, index: Tensor) -> Tensor:
        """Return the values of the masks `index` at pixels of the frame, bool `[M, ...]`.

        It takes eight bytes a value: ask for a few masks at a time.

        Args:
            y: int64 `[M, ...]`, rows; broadcasts with `x`.
            x: int64 `[M, ...]`, columns.
            index: int64 `[M]`.
        """
        shape = (-1, *[1] * y.ndim)
        start, (height, width) = self.starts[index].view(shape), self.sizes[index].T.reshape(2, *shape)
        column, row = self.boxes[index, 0].view(shape), self.boxes[index, 1].view(shape)
        y, x = y - row, x - column
        inside: Tensor = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if self.pixels.numel() == 0:
            return inside
        # outside the crop the first pixel of all is read, and masked
        place = torch.where(inside, start + y * width + x, 0)
        return self.pixels[place] & inside
