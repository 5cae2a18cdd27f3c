"""The masks of an image, in two storages with one interface: `RunMasks` (run lengths) and `BitMasks` (pixels).

Results and annotations are kept as run lengths: memory grows with the length of outlines. The objective reads pixels of
masks at random, on any device, from one flat tensor. Neither ever holds objects x image.

G masks of one frame `(height, width)`; boxes are int64 xyxy px, half-open. Pixels of run lengths are counted column by
column, as COCO does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedmask.errors import BadInput

Size = tuple[int, int]
"""`(height, width)` px."""
Window = tuple[int, int, int, int]
"""left, top, right, bottom px, half-open."""
Runs = NDArray[Any]
"""int32 or int64 `[T, 2]`: first pixel of each run and the one after its last, ascending."""
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MAX_RUNS = 1 << 18
"""Runs of several masks that are encoded at once."""


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
        return cls([_runs_of(crop, frame) for crop in crops], frame)

    @classmethod
    def from_dense(cls, masks: Tensor) -> Self:
        """Encode bool `[G, H, W]`."""
        return cls.from_crops(
            (MaskCrop(mask.cpu().numpy(), 0, 0) for mask in masks), (masks.shape[1], masks.shape[2])
        )

    @classmethod
    def from_counts(cls, counts: Iterable[NDArray[Any]], frame: Size) -> Self:
        """Take over COCO's run lengths: lengths of alternating runs, background first, that add up to the frame."""
        return cls([_split_at_columns(own, frame) for own in counts], frame)

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


def checked_counts(text: str | bytes, frame: Size) -> Ints:
    """Decode compressed run lengths of a frame.

    Raises:
        BadInput: the text is damaged, or the run lengths do not add up to the frame.
    """
    counts = decode_counts(text)
    if (counts < 0).any() or counts.sum() != frame[0] * frame[1]:
        raise BadInput(f"a mask's run lengths do not add up to its image {list(frame)}; encode it again")
    return counts


def decode_counts(text: str | bytes) -> Ints:
    """Decode compressed run lengths of COCO, int64 `[runs]`, background first.

    Each count is written in groups of five bits, lowest first, on top of character 48; the sixth bit says that more
    follow, the last group's fifth bit is the sign. From the fourth count on, the difference to the last but one is
    stored.

    Raises:
        BadInput: the text is not such a code.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    groups = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise BadInput("run lengths whose text is damaged; encode the mask again")
    # groups of five bits belong to the count that ends at the next group without the sixth bit
    stops = np.flatnonzero(last)
    starts = np.concatenate(([0], stops[:-1] + 1))
    places = np.arange(len(groups)) - np.repeat(starts, stops - starts + 1)
    if places.max() > 7:
        raise BadInput("run lengths whose text is damaged; encode the mask again")
    counts = np.add.reduceat((groups & 31) << (5 * places), starts)
    # two's complement: a set sign bit takes one more than the largest value away
    negative = groups[stops] & 16 != 0
    counts -= np.where(negative, np.int64(1) << (5 * (stops - starts + 1)), 0)
    # undo the differences, of odd and even places apart
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def alternating_lengths(runs: Sequence[Runs], pixels: Sequence[int]) -> list[NDArray[Any]]:
    """Return the lengths of alternating runs of many masks, the first of False; runs that touch become one.

    Args:
        runs: of each mask, `[T, 2]`.
        pixels: number of pixels, set or not, of each mask.
    """
    if not runs:
        return []
    if len(runs) > 1 and sum(map(len, runs)) > MAX_RUNS:
        middle = len(runs) // 2
        return [
            *alternating_lengths(runs[:middle], pixels[:middle]),
            *alternating_lengths(runs[middle:], pixels[middle:]),
        ]
    joined = np.concatenate(runs)
    counts = np.array([len(own) for own in runs])
    stops = np.cumsum(counts)
    some = counts > 0
    # the pixel where the following run of the same mask begins, for the last run the end of the mask
    following = np.append(joined[1:, 0], 0)
    following[stops[some] - 1] = np.array(pixels)[some]
    # ends of runs that touch cancel; the first start of a mask always stays
    apart = joined[:, 1] != following
    kept = np.stack([np.append(True, apart)[:-1], apart], 1)
    kept[(stops - counts)[some], 0] = True
    # all remaining ends, and after those of each mask its number of pixels: their differences are the lengths
    ends = np.append(0, np.cumsum(kept.sum(1)))[stops]
    flat = np.insert(joined[kept], ends, pixels)
    first = np.append(0, ends + np.arange(1, len(runs) + 1))
    lengths = np.diff(flat, prepend=flat.dtype.type(0))
    lengths[first[:-1]] = flat[first[:-1]]
    return [lengths[begin:end] for begin, end in itertools.pairwise(first.tolist())]


def run_dtype(frame: Size) -> type[np.int32] | type[np.int64]:
    """Return the type of pixel numbers of a frame."""
    return np.int32 if frame[0] * frame[1] < 2**31 else np.int64


def _runs_of(crop: MaskCrop, frame: Size) -> Runs:
    height, width = crop.pixels.shape
    # a column with an empty pixel above and below: every run has two edges inside it
    fenced = np.zeros((width, height + 2), bool)
    fenced[:, 1:-1] = crop.pixels.T
    column, row = np.nonzero(fenced[:, 1:] != fenced[:, :-1])
    ends = (column + crop.x) * frame[0] + row + crop.y
    return ends.astype(run_dtype(frame)).reshape(-1, 2)


def _split_at_columns(counts: NDArray[Any], frame: Size) -> Runs:
    ends = np.cumsum(counts, dtype=np.int64)
    start, stop = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    start, stop = start[start < stop], stop[start < stop]
    first, last = start // frame[0], (stop - 1) // frame[0]
    # one run for each column that a run passes through
    repeats = last - first + 1
    owner = np.repeat(np.arange(len(start)), repeats)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(repeats) - repeats - first, repeats)
    low = np.maximum(start[owner], column * frame[0])
    high = np.minimum(stop[owner], (column + 1) * frame[0])
    return np.stack([low, high], 1).astype(run_dtype(frame))
