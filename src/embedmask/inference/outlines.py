"""From cells to the run lengths of masks, without a pixel in between.

A column of the image reads two columns of cells, and along it values are linear from cell to cell: where they pass
the limit tells its runs. They pass it only between four cells that are not all on one side. So the work grows with
the cells of a box and the length of the mask's outline in the image, not with its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedmask.coupling import own_distance
from embedmask.structures import CropMasks, RunCrops, Runs, Size

BLOCK_VALUES = 1 << 20
"""Numbers that are worked on at once: they should fit a core's cache."""

Ints = npt.NDArray[np.int64]


@dataclass
class Cells:
    """The pixel embedding on the grid on which it is coupled, and the way from there to the image.

    Attributes:
        embed: p, float32 `[w * h, D]`, column by column: a window's cells are near each other in memory.
        grid: `(h, w)`.
        rows: the place that each row of the image reads, in cells, float64 `[H]`, ascending, 0..h - 1.
        columns: the same of its columns, `[W]`.
        limit: a pixel whose value is above belongs to the mask.
        outside: value of cells that are out of a proposal's range; not above `limit`.
        in_log: values are log phi; else phi.
    """

    embed: Tensor
    grid: Size
    rows: Tensor
    columns: Tensor
    limit: float
    outside: float
    in_log: bool


@dataclass
class _Windows:
    """Proposals, the cells in which they are coupled, and the image's columns that these reach.

    Attributes:
        embed: q, `[B, D]`.
        margin: s, `[B, 1 or D]`.
        y1, x1, y2, x2: half-open ranges of cells, int64 `[B, 1]`.
        begin, end: half-open range of the image's columns, int64 `[B, 1]`.
    """

    embed: Tensor
    margin: Tensor
    y1: Tensor
    y2: Tensor
    x1: Tensor
    x2: Tensor
    begin: Tensor
    end: Tensor

    def __getitem__(self, index: Tensor) -> _Windows:
        return _Windows(*(value[index] for value in vars(self).values()))


def trace(cells: Cells, embed: Tensor, margin: Tensor, ranges: Tensor, image_size: Size) -> CropMasks:
    """Masks of R proposals, each in the crop that just holds it.

    Args:
        embed: q, `[R, D]`.
        margin: s, `[R, 1 or D]`.
        ranges: y1, y2, x1, x2: half-open ranges of cells in which each is coupled, int64 `[R, 4]`.
        image_size: `(height, width)`.
    """
    y1, y2, x1, x2 = torch.split(ranges, 1, 1)
    begin = torch.searchsorted(cells.columns, (x1 - 1).double(), right=True)
    end = torch.searchsorted(cells.columns, x2.double())
    windows = _Windows(embed, margin, y1, y2, x1, x2, begin, end)
    runs: list[Runs] = [np.zeros((0, 2), np.int32)] * len(embed)
    shapes, offsets = [(0, 0)] * len(embed), [(0, 0)] * len(embed)
    sizes = torch.cat([y2 - y1 + 2, x2 - x1 + 2, end - begin], 1)
    for members, step in _groups(sizes.cpu().numpy(), embed.shape[1]):
        group = windows[torch.from_numpy(members).to(embed.device)]
        starts = range(0, int(sizes[members, 2].max()), step)
        found = np.concatenate([_runs(cells, group, start, step) for start in starts], 1)
        _place(found, members, runs, shapes, offsets)
    return CropMasks(RunCrops(runs, shapes), offsets, image_size)


def _groups(sizes: Ints, dims: int) -> Iterator[tuple[Ints, int]]:
    """Windows that are worked on together, padded to the largest of them, and how many columns of each at once.

    Args:
        sizes: rows and columns of cells of each window, one around it included, and columns of pixels `[R, 3]`.
        dims: D.
    """
    heights = np.rint(2 * np.log2(sizes[:, 0]))
    order = np.lexsort((sizes[:, 2], heights))
    order = order[(sizes[order] > [2, 2, 0]).all(1)]
    group: list[int] = []
    largest = np.zeros(3, np.int64)
    for index in order.tolist():
        grown = np.maximum(largest, sizes[index])
        if group and _values(grown, dims) * (len(group) + 1) > BLOCK_VALUES:
            yield np.array(group), _step(largest, dims)
            group, grown = [], sizes[index]
        group.append(index)
        largest = grown
    if group:
        yield np.array(group), _step(largest, dims)


def _values(size: Ints, dims: int) -> int:
    rows, columns, pixels = map(int, size)
    return rows * max(columns * dims, pixels)


def _step(size: Ints, dims: int) -> int:
    return max(1, int(size[2]) // -(-_values(size, dims) // BLOCK_VALUES))


def _runs(cells: Cells, group: _Windows, start: int, step: int) -> Ints:
    """Runs in the columns `start`.. of each window: its place in the group, column, top, bottom of each, `[4, T]`."""
    device = cells.embed.device
    column = group.begin + torch.arange(start, start + step, device=device)
    at = cells.columns[torch.minimum(column, group.end - 1)]
    low = at.floor()
    left = low.long() - low[:, :1].long()
    values = _couple(cells, group, low[:, :1].long(), int(left[:, -1].max()) + 2)
    count, width, height = values.shape
    line, row = _candidates(values > cells.limit, left, column < group.end)
    weight = _take((at - low).float(), line)
    corner = _take(left + torch.arange(count, device=device)[:, None] * width, line) * height + row
    before, after = (
        _between(_take(values, corner + i), _take(values, corner + height + i), weight).sub_(cells.limit)
        for i in (0, 1)
    )
    # the outermost rows are not above the limit: every line has an even number of edges, up and down in turn
    edge = ((before > 0) != (after > 0)).nonzero()[:, 0]
    line, row, before, after = (_take(of, edge) for of in (line, row, before.double(), after))
    member = line // step
    place = (row - 1 + _take(group.y1, member)) + before / (before - after)
    top = torch.searchsorted(cells.rows, place[::2].contiguous(), right=True)
    bottom = torch.searchsorted(cells.rows, place[1::2].contiguous())
    found = torch.stack([member[::2], _take(column, line[::2]), top, bottom])
    return found[:, bottom > top].cpu().numpy()


def _candidates(above: Tensor, left: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of pixels and upper cells between which, and the cell below, a column can pass the limit.

    Args:
        above: the cells above the limit, bool `[B, width, height]`.
        left: the column of cells left of each column of pixels, int64 `[B, J]`.
        wanted: bool `[B, J]`.

    Returns:
        int64 `[T]`, line by line and downwards: index into the `B * J` columns, and into the rows of cells.
    """
    some, every = above[:, 1:] | above[:, :-1], above[:, 1:] & above[:, :-1]
    mixed = (some[..., 1:] | some[..., :-1]) & ~(every[..., 1:] & every[..., :-1])
    rows = mixed.flatten().nonzero()[:, 0] % mixed.shape[2]
    counts = mixed.sum(2)
    first = (counts.flatten().cumsum(0) - counts.flatten()).view(counts.shape).gather(1, left).flatten()
    repeats = (counts.gather(1, left) * wanted).flatten()
    line = torch.repeat_interleave(repeats)
    shift = first - (repeats.cumsum(0) - repeats)
    return line, _take(rows, torch.arange(len(line), device=line.device) + _take(shift, line))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Elements of a flattened tensor; `values.flatten()[index]` takes nine times as long on a CPU."""
    return values.flatten().index_select(0, index)


def _between(left: Tensor, right: Tensor, weight: Tensor) -> Tensor:
    """Linear, and never beyond the two, whatever is rounded."""
    value = left * (1 - weight) + right * weight
    return value.clamp_(torch.minimum(left, right), torch.maximum(left, right))


def _couple(cells: Cells, group: _Windows, left: Tensor, width: int) -> Tensor:
    """Values of `width` columns of cells from `left` `[B, 1]` on, from one row above each window to one below.

    Returns:
        float32 `[B, width, rows]`; `outside` beyond each window.
    """
    device = left.device
    x = left + torch.arange(width, device=device)
    y = group.y1 + torch.arange(-1, int((group.y2 - group.y1).max()) + 1, device=device)
    beyond_x, beyond_y = (x < group.x1) | (x >= group.x2), (y < group.y1) | (y >= group.y2)
    height, across = cells.grid
    index = x.clamp(0, across - 1)[:, :, None] * height + y.clamp(0, height - 1)[:, None]
    pixels = cells.embed.index_select(0, index.flatten()).view(len(left), -1, cells.embed.shape[1])
    values = own_distance(pixels, group.embed, group.margin).view(index.shape).neg_()
    if not cells.in_log:
        values.exp_()
    return values.masked_fill_(beyond_x[:, :, None] | beyond_y[:, None], cells.outside)


def _place(
    found: Ints,
    members: Ints,
    runs: list[Runs],
    shapes: list[Size],
    offsets: list[tuple[int, int]],
) -> None:
    """Put the runs of a group's members, which come in their order, into the crops that just hold them."""
    member, column, top, bottom = found
    ends = np.searchsorted(member, np.arange(len(members)), side="right")
    seen = np.unique(member)
    first, last = np.append(0, ends)[seen], ends[seen]
    if not len(seen):
        return
    x, y = column[first], np.minimum.reduceat(top, first)
    height = np.maximum.reduceat(bottom, first) - y
    corner = (column - np.repeat(x, last - first)) * np.repeat(height, last - first) - np.repeat(
        y, last - first
    )
    flat = np.stack([corner + top, corner + bottom], 1).astype(np.int32)
    width = column[last - 1] + 1 - x
    rows = zip(*(part.tolist() for part in (members[seen], first, last, height, width, y, x)), strict=True)
    for index, begin, end, h, w, top_row, left in rows:
        runs[index], shapes[index], offsets[index] = flat[begin:end], (h, w), (top_row, left)
