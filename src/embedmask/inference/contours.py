"""Run lengths of masks, computed from the cells of the pixel embedding without rasterizing the image.

An image column lies between two columns of cells. Along it values are linear from cell to cell, so its runs begin and
end where they cross the threshold, and they can cross it only between four cells that are not all on one side. The
cost grows with the cells of a box and the length of the mask's outline, not with the pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedmask.coupling import paired_distance
from embedmask.masks import RunMasks
from embedmask.run_lengths import Runs, run_dtype
from embedmask.structures import Columns, Size

BLOCK_VALUES = 1 << 20
"""Values processed at once: they should fit a core's cache."""

Ints = npt.NDArray[np.int64]


@dataclass
class Cells:
    """The pixel embedding on the grid of the coupling, and the sampling positions of the image on this grid.

    Attributes:
        embed: p, float32 `[w * h, D]`, column by column, so that the cells of a window are close in memory.
        grid: `(h, w)`.
        rows: position of each image row on the grid, in cells, float64 `[H]`, ascending, 0..h - 1.
        columns: position of each image column on the grid, in cells, float64 `[W]`, ascending, 0..w - 1.
        limit: pixels with a larger value belong to the mask.
        outside: value of the cells outside a proposal's range; at most `limit`.
        in_log: whether values are log phi instead of phi.
    """

    embed: Tensor
    grid: Size
    rows: Tensor
    columns: Tensor
    limit: float
    outside: float
    in_log: bool


@dataclass
class _Windows(Columns):
    """B proposals with their ranges of cells and the ranges of image columns that these cover.

    Attributes:
        embed: q, `[B, D]`.
        margin: s, `[B, 1 or D]`.
        y1, y2, x1, x2: half-open ranges of cells, int64 `[B, 1]`.
        begin, end: half-open range of image columns, int64 `[B, 1]`.
    """

    embed: Tensor
    margin: Tensor
    y1: Tensor
    y2: Tensor
    x1: Tensor
    x2: Tensor
    begin: Tensor
    end: Tensor

    def couple(self, cells: Cells, left: Tensor, width: int) -> Tensor:
        """Compute phi or log phi in W = `width` columns of cells from `left` `[B, 1]` on.

        Returns:
            float32 `[B, W, H]`, rows from one above each window to one below; `outside` beyond the window.
        """
        device = left.device
        x = left + torch.arange(width, device=device)  # [B, W]
        y = self.y1 + torch.arange(-1, int((self.y2 - self.y1).max()) + 1, device=device)  # [B, H]
        beyond_x, beyond_y = (x < self.x1) | (x >= self.x2), (y < self.y1) | (y >= self.y2)
        height, across = cells.grid
        # cells lie column by column: x * height + y, [B, W, H]; clamped indices are overwritten at the end
        index = x.clamp(0, across - 1)[:, :, None] * height + y.clamp(0, height - 1)[:, None]
        pixels = cells.embed.index_select(0, index.flatten()).view(len(left), -1, cells.embed.shape[1])
        # p [B, W * H, D], q [B, D] -> d [B, W * H]
        values = paired_distance(pixels, self.embed, self.margin).view(index.shape).neg_()
        if not cells.in_log:
            values.exp_()
        return values.masked_fill_(beyond_x[:, :, None] | beyond_y[:, None], cells.outside)


def trace(cells: Cells, embed: Tensor, margin: Tensor, ranges: Tensor, image_size: Size) -> RunMasks:
    """Trace the masks of R proposals.

    Args:
        embed: q, `[R, D]`.
        margin: s, `[R, 1 or D]`.
        ranges: y1, y2, x1, x2: half-open ranges of cells in which each proposal is coupled, int64 `[R, 4]`.
        image_size: `(height, width)`.
    """
    y1, y2, x1, x2 = torch.split(ranges, 1, 1)
    # interpolation reaches one cell beyond the range: image columns strictly between cells x1 - 1 and x2
    begin = torch.searchsorted(cells.columns, (x1 - 1).double(), right=True)
    end = torch.searchsorted(cells.columns, x2.double())
    windows = _Windows(embed, margin, y1, y2, x1, x2, begin, end)
    dtype = run_dtype(image_size)
    runs: list[Runs] = [np.zeros((0, 2), dtype)] * len(embed)
    sizes = torch.cat([y2 - y1 + 2, x2 - x1 + 2, end - begin], 1)  # [R, 3]
    for members, step in _groups(sizes.cpu().numpy(), embed.shape[1]):
        group = windows.select(torch.from_numpy(members).to(embed.device))
        starts = range(0, int(sizes[members, 2].max()), step)
        # only a group of one window takes several steps, so the joined runs stay sorted by member
        parts = [_runs(cells, group, start, step) for start in starts]
        member, column, *rows = np.concatenate(parts, 1)  # int64 [T] each
        # pixels are numbered column by column
        numbers = (np.stack(rows, 1) + column[:, None] * image_size[0]).astype(dtype)  # [T, 2]
        ends = np.searchsorted(member, np.arange(len(members) + 1)).tolist()
        for index, begin, end in zip(members.tolist(), ends[:-1], ends[1:], strict=True):
            runs[index] = numbers[begin:end]
    return RunMasks(runs, image_size)


def _groups(sizes: Ints, dims: int) -> Iterator[tuple[Ints, int]]:
    """Group windows of similar size, which are padded to the largest, with the image columns to process at once.

    Args:
        sizes: rows and columns of cells of each window, with a border of one cell, and image columns, `[R, 3]`.
        dims: D.
    """
    # sort by height in steps of sqrt(2), then by columns: little padding within a group
    heights = np.rint(2 * np.log2(sizes[:, 0]))
    order = np.lexsort((sizes[:, 2], heights))
    order = order[(sizes[order] > [2, 2, 0]).all(1)]  # skip empty windows
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
    """Compute the runs in J = `step` image columns of each window, from column `start` of the window on.

    Returns:
        int64 `[4, T]`: member of the group, image column, first row, row after the last; sorted by member and column.
    """
    # image columns of each window and their positions in cells; padding repeats the last column: [B, J]
    column = group.begin + torch.arange(start, start + step, device=cells.embed.device)
    at = cells.columns[torch.minimum(column, group.end - 1)]
    low = at.floor()
    first = low[:, :1].long()  # [B, 1]
    left = low.long() - first  # column of cells to the left, counted from the window's first: [B, J]
    values = group.couple(cells, first, int(left[:, -1].max()) + 2)  # [B, W, H]
    count, width, height = values.shape
    # T candidates: one image column (`line`, 0..B * J - 1) between two rows of cells (`row`, `row` + 1)
    line, row = _candidates(values > cells.limit, left, column < group.end)
    weight = _take((at - low).float(), line)
    # the upper left of a candidate's four cells, in the flattened values: (member * W + left) * H + row
    corner = _take(left + torch.arange(count, device=left.device)[:, None] * width, line) * height + row
    # interpolate across in both rows, [T] each; clamp, because rounding may leave the interval
    levels = []
    for cell in (corner, corner + 1):
        one, other = _take(values, cell), _take(values, cell + height)
        value = one * (1 - weight) + other * weight
        levels.append(value.clamp_(torch.minimum(one, other), torch.maximum(one, other)).sub_(cells.limit))
    before, after = levels
    # the outermost rows are never above the limit, so every line has an even number of edges: begin, end, begin, ...
    edge = ((before > 0) != (after > 0)).nonzero()[:, 0]
    line, row, before, after = (_take(of, edge) for of in (line, row, before.double(), after))
    member = line // step
    # where the line from `before` to `after` crosses 0, in cells; row 0 of the values lies one above the window
    crossing = (row - 1 + _take(group.y1, member)) + before / (before - after)
    # image rows strictly between two crossings: [T / 2]
    top = torch.searchsorted(cells.rows, crossing[::2].contiguous(), right=True)
    bottom = torch.searchsorted(cells.rows, crossing[1::2].contiguous())
    runs = torch.stack([member[::2], _take(column, line[::2]), top, bottom])
    return runs[:, bottom > top].cpu().numpy()


def _candidates(above: Tensor, left: Tensor, is_valid: Tensor) -> tuple[Tensor, Tensor]:
    """Find the places where an image column can cross the limit: between four cells that are not all on one side.

    Args:
        above: whether each cell is above the limit, bool `[B, W, H]`.
        left: column of cells to the left of each image column, int64 `[B, J]`.
        is_valid: False for padding, bool `[B, J]`.

    Returns:
        int64 `[T]`, line by line and downwards: index into the `B * J` image columns, and the upper row of cells.
    """
    # squares of four cells, by their upper left: [B, W, H] -> [B, W - 1, H - 1]
    some, every = above[:, 1:] | above[:, :-1], above[:, 1:] & above[:, :-1]
    mixed = (some[..., 1:] | some[..., :-1]) & ~(every[..., 1:] & every[..., :-1])
    # rows of all mixed squares, one column of squares after the other, and their number per column [B, W - 1]
    rows = mixed.flatten().nonzero()[:, 0] % mixed.shape[2]
    counts = mixed.sum(2)
    # where the squares of each image column begin in `rows`: exclusive sum of the counts, [B * J]
    first = (counts.flatten().cumsum(0) - counts.flatten()).view(counts.shape).gather(1, left).flatten()
    # image columns between the same columns of cells repeat their squares
    repeats = (counts.gather(1, left) * is_valid).flatten()
    line = torch.repeat_interleave(repeats)  # [T]
    # candidate t of a line is square t - (candidates of earlier lines) of its column
    shift = first - (repeats.cumsum(0) - repeats)
    return line, _take(rows, torch.arange(len(line), device=line.device) + _take(shift, line))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Return elements of the flattened tensor; `values.flatten()[index]` is nine times slower on a CPU."""
    return values.flatten().index_select(0, index)
