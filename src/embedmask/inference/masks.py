"""Masks of the surviving proposals: coupled inside each box, resized to the picture, thresholded last (section 3.6)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.coupling import log_prob
from embedmask.inference.proposals import Proposals
from embedmask.structures import CropMasks, Size

UPSAMPLING = 2
"""The pixel embedding is resized this much before coupling, as in training."""
OUTSIDE_LOG_PROB = -10.0
"""What the 2021 version takes for log phi outside of a box's cells when it resizes log phi."""

Interpolation = Literal["prob", "log_prob"]


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

    Memory grows with the pixels inside boxes: no map of the whole image is made for an instance.

    Args:
        pixel_embed: p, `[D, h, w]` on the finest level's grid.
        stride: px of the network's frame a cell of `pixel_embed`.
        image_size: `(height, width)` of the image inside the network's frame.
        original_size: `(height, width)` of the picture.
        threshold: phi above which a pixel belongs to the instance.
        interpolation: resize phi (2019) or log phi (2021).
    """
    pixels = F.interpolate(
        pixel_embed[None].float(), scale_factor=UPSAMPLING, mode="bilinear", align_corners=False
    )[0]
    cell = stride / UPSAMPLING
    grid = (pixels.shape[1], pixels.shape[2])
    scales = [_source_scale(g, cell, o, i) for g, o, i in zip(grid, original_size, image_size, strict=True)]
    in_log = interpolation == "log_prob"
    limit = math.log(threshold) if in_log else threshold
    crops, offsets = [], []
    for row, (y1, y2, x1, x2) in enumerate(cell_ranges(proposals.boxes / cell, grid, interpolation).tolist()):
        if y2 <= y1 or x2 <= x1:
            crops.append(torch.zeros((0, 0), dtype=torch.bool, device=pixels.device))
            offsets.append((0, 0))
            continue
        window = pixels[:, y1:y2, x1:x2]
        one = slice(row, row + 1)
        values = log_prob(window.flatten(1), proposals.embed[one], proposals.margin[one]).view(
            window.shape[1:]
        )
        values = values if in_log else values.exp()
        outside = OUTSIDE_LOG_PROB if in_log else 0.0
        values, top = _resize_axis(
            values, y1, cells=grid[0], scale=scales[0], length=original_size[0], outside=outside
        )
        values, left = _resize_axis(
            values.T, x1, cells=grid[1], scale=scales[1], length=original_size[1], outside=outside
        )
        crops.append(limit < values.T)
        offsets.append((top, left))
    return CropMasks(crops, offsets, original_size)


def cell_ranges(boxes: Tensor, grid: Size, interpolation: Interpolation) -> Tensor:
    """Half-open ranges of cells in which each proposal is coupled: its box and a little around.

    2021: the box's ends cut to whole cells, two more on each side. 2019: the cells from x1 - 1 up to x2 + 1.

    Args:
        boxes: `[R, 4]` xyxy in cells.
        grid: `(h, w)` of the map.

    Returns:
        int64 `[R, 4]`: y1, y2, x1, x2.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    if interpolation == "log_prob":
        low, high = low.trunc() - 2, high.trunc() + 2
    else:
        low, high = (low - 1).ceil(), (high + 1).ceil()
    size = boxes.new_tensor([grid[1], grid[0]])
    low, high = low.clamp(min=0), torch.minimum(high, size)
    return torch.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], 1).long()


def _source_scale(cells: int, cell: float, original: int, network: int) -> float:
    """Cells a pixel of the original picture.

    The authors resize the padded map to ceil(padded px x original / network) px in one go, so the scale is that
    whole number's, evaluated left to right in float32.
    """
    exact = torch.tensor(float(cells)) * cell * original / network
    return cells / math.ceil(exact.item())


def _resize_axis(
    values: Tensor, first: int, *, cells: int, scale: float, length: int, outside: float
) -> tuple[Tensor, int]:
    """Bilinear resize of the first axis from cells `first`.. to original pixels, half-pixel centres.

    `values` is a window of an axis of `cells` cells that holds `outside` elsewhere. Only pixels that the window can
    reach are made.

    Returns:
        The resized window `[pixels, ...]` and its first pixel.
    """
    last = first + len(values) - 1
    begin = max(math.ceil((first - 0.5) / scale - 0.5), 0)
    end = min(math.floor((last + 1.5) / scale - 0.5) + 1, length)
    source = ((torch.arange(begin, max(end, begin), device=values.device) + 0.5) * scale - 0.5).clamp(min=0)
    low = source.floor().clamp(max=cells - 1)
    weight = (source - low).unsqueeze(1)
    high = (low + 1).clamp(max=cells - 1)
    border = values.new_full((1, values.shape[1]), outside)
    padded = torch.cat([border, values, border])
    rows_low = padded[(low.long() - first + 1).clamp(0, len(values) + 1)]
    rows_high = padded[(high.long() - first + 1).clamp(0, len(values) + 1)]
    return rows_low * (1 - weight) + rows_high * weight, begin
