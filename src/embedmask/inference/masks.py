"""Masks of the surviving proposals: coupled inside each box, resized to the picture, thresholded last (section 3.6)."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.coupling import log_prob
from embedmask.inference.proposals import Proposals
from embedmask.structures import CropMasks, Size

UPSAMPLING = 2
"""The pixel embedding (`aligned`: phi) is resized this much first, as in training."""
OUTSIDE_LOG_PROB = -10.0
"""What the 2021 version takes for log phi outside of a box's cells when it resizes log phi."""

Interpolation = Literal["prob", "log_prob", "aligned"]


@dataclass
class _Axis:
    """Where the pixels of the original picture read the map along one axis: in cells, ascending, also as a list."""

    cells: int
    source: Tensor
    marks: list[float]


def decode_masks(
    pixel_embed: Tensor,
    proposals: Proposals,
    *,
    stride: int,
    image_size: Size,
    original_size: Size,
    threshold: float,
    interpolation: Interpolation,
) -> CropMasks:
    """Masks of one image's proposals, in the original image's frame, each as its own crop.

    Memory grows with the pixels inside boxes: no map of the whole image is made for an instance. With `aligned`,
    which knows no boxes, one instance at a time is coupled on the whole grid and only what the mask spans is resized.

    Args:
        pixel_embed: p, `[D, h, w]`.
        stride: px of the network's frame a cell of `pixel_embed`.
        image_size: `(height, width)` of the image inside the network's frame.
        original_size: `(height, width)` of the picture.
        threshold: phi above which a pixel belongs to the instance.
        interpolation: resize phi (2019), log phi (2021), or phi as it is on the grid of p (second repository).
    """
    pixels = pixel_embed.float()
    cell = stride
    if interpolation != "aligned":
        pixels = F.interpolate(pixels[None], scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)[0]
        cell = stride // UPSAMPLING
    grid = (pixels.shape[1], pixels.shape[2])
    axes = [
        _axis(*sides, cell=cell, aligned=interpolation == "aligned", device=pixels.device)
        for sides in zip(grid, original_size, image_size, strict=True)
    ]
    limit = math.log(threshold) if interpolation == "log_prob" else threshold
    crops, offsets = [], []
    for row, (y1, y2, x1, x2) in enumerate(cell_ranges(proposals.boxes / cell, grid, interpolation).tolist()):
        window, one = pixels[:, y1:y2, x1:x2], slice(row, row + 1)
        values = log_prob(window.flatten(1), proposals.embed[one], proposals.margin[one])
        values = values.view(window.shape[1:])
        if interpolation != "log_prob":
            values = values.exp()
        first = (y1, x1)
        if interpolation == "aligned":
            values, first = _narrow(values, limit)
        outside = OUTSIDE_LOG_PROB if interpolation == "log_prob" else 0.0
        values, top = _resize_axis(values, first[0], axes[0], outside)
        values, left = _resize_axis(values.T, first[1], axes[1], outside)
        crops.append(limit < values.T)
        offsets.append((top, left))
    return CropMasks(crops, offsets, original_size)


def cell_ranges(boxes: Tensor, grid: Size, interpolation: Interpolation) -> Tensor:
    """Half-open ranges of cells in which each proposal is coupled: its box and a little around.

    2021: the box's ends cut to whole cells, two more on each side. 2019: the cells from x1 - 1 up to x2 + 1.
    Second repository: all.

    Args:
        boxes: `[R, 4]` xyxy in cells.
        grid: `(h, w)` of the map.

    Returns:
        int64 `[R, 4]`: y1, y2, x1, x2; y2 >= y1, x2 >= x1.
    """
    if interpolation == "aligned":
        return torch.tensor([0, grid[0], 0, grid[1]], device=boxes.device).expand(len(boxes), 4)
    low, high = boxes[:, :2], boxes[:, 2:]
    if interpolation == "log_prob":
        low, high = low.trunc() - 2, high.trunc() + 2
    else:
        low, high = (low - 1).ceil(), (high + 1).ceil()
    size = boxes.new_tensor([grid[1], grid[0]])
    low, high = low.clamp(min=0), torch.minimum(high, size)
    return torch.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], 1).long()


def _narrow(values: Tensor, limit: float) -> tuple[Tensor, tuple[int, int]]:
    """The part of a map that can make pixels above `limit`, and its first row and column.

    Resizing only averages neighbours: a pixel above the limit has a cell above it among those it reads.
    """
    above = values > limit
    windows = []
    for sides, length in zip((above.any(1), above.any(0)), values.shape, strict=True):
        hits = sides.nonzero()[:, 0]
        ends = (int(hits[0]) - 1, int(hits[-1]) + 2) if len(hits) else (0, 0)
        windows.append((max(ends[0], 0), min(ends[1], length)))
    (y1, y2), (x1, x2) = windows
    return values[y1:y2, x1:x2], (y1, x1)


def _axis(
    cells: int, original: int, network: int, *, cell: int, aligned: bool, device: torch.device
) -> _Axis:
    """Source cells of the pixels of one side of the picture.

    First repository: the padded map is resized to ceil(padded px x original / network) px in one go with half-pixel
    centres, so the scale is that whole number's, evaluated left to right in float32. Second: phi is enlarged aligned
    twice, to half the stride and to the network's px, cut to the image and resized to the picture with half-pixel
    centres. Each step is linear between the cells of the step before, so that all are one look-up.
    """
    pixel = torch.arange(original, device=device) + 0.5
    if aligned:
        in_network = (pixel * (network / original) - 0.5).clamp(0, network - 1)
        # cell i of the two enlarged maps lies at 2 i + 1 and at i cell / 2 + cell / 4
        source = (in_network - (cell // UPSAMPLING + cell // UPSAMPLING // 2)) / cell
    else:
        exact = torch.tensor(float(cells)) * cell * original / network
        source = pixel * (cells / math.ceil(exact.item())) - 0.5
    source = source.clamp(0, cells - 1)
    return _Axis(cells, source, source.tolist())


def _resize_axis(values: Tensor, first: int, axis: _Axis, outside: float) -> tuple[Tensor, int]:
    """Linear resize of the first axis of a window of the map from cells `first`.. to original pixels.

    The map holds `outside` elsewhere. Only pixels that the window can reach are made.

    Returns:
        The resized window `[pixels, ...]` and its first pixel.
    """
    if values.numel() == 0:
        return values[:0], 0
    begin = bisect_right(axis.marks, first - 1)
    end = bisect_left(axis.marks, first + len(values))
    source = axis.source[begin:end]
    low = source.floor()
    weight = (source - low).unsqueeze(1)
    high = (low + 1).clamp(max=axis.cells - 1)
    border = values.new_full((1, values.shape[1]), outside)
    padded = torch.cat([border, values, border])
    rows_low = padded[(low.long() - first + 1).clamp(0, len(values) + 1)]
    rows_high = padded[(high.long() - first + 1).clamp(0, len(values) + 1)]
    return rows_low * (1 - weight) + rows_high * weight, begin
