"""Masks of the surviving proposals: coupled inside each box, resized to the image, thresholded last (section 3.6)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.coupling import weighted_distance
from embedmask.inference.outlines import BLOCK_VALUES, Cells, trace
from embedmask.inference.proposals import Proposals
from embedmask.structures import CropMasks, Size

UPSAMPLING = 2
"""The pixel embedding (`aligned`: phi) is resized this much first, as in training."""
OUTSIDE_LOG_PROB = -10.0
"""What the 2021 version takes for log phi outside of a box's cells when it resizes log phi."""
MIN_MARGIN_CELLS = 1.5
"""How far around its box a mask may always reach in the frame `exact`: boxes are often a pixel or two too small."""

Interpolation = Literal["prob", "log_prob", "aligned"]
Frame = Literal["authors", "exact"]


def decode_masks(
    pixel_embed: Tensor,
    proposals: Proposals,
    *,
    stride: int,
    image_size: Size,
    original_size: Size,
    threshold: float,
    interpolation: Interpolation,
    frame: Frame = "authors",
    margin: float = 0.1,
) -> CropMasks:
    """Masks of one image's proposals, in the original image's frame, each as the run lengths of its own crop.

    Memory grows with the runs; beside them there are one upsampled `pixel_embed` and blocks of a fixed size.

    Args:
        pixel_embed: p, `[D, h, w]`.
        stride: px of the network's frame a cell of `pixel_embed`.
        image_size: `(height, width)` of the image inside the network's frame.
        original_size: `(height, width)` of the image.
        threshold: phi above which a pixel belongs to the instance.
        interpolation: resize phi (2019), log phi (2021), or phi as it is on the grid of p (second repository).
        frame: where cells lie in the image and how far around its box a mask may reach, `ModelConfig.mask_frame`.
        margin: that reach in the frame `exact`, as a share of the box's side, `ModelConfig.mask_margin`.
    """
    pixels = pixel_embed.float()[None].mT.contiguous(memory_format=torch.channels_last)  # [1, D, w, h]
    cell = stride
    if interpolation != "aligned":
        pixels = F.interpolate(pixels, scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)
        cell = stride // UPSAMPLING
    grid = (pixels.shape[3], pixels.shape[2])
    sides = zip(grid, original_size, image_size, strict=True)
    rows, columns = (
        _source(*side, cell=cell, aligned=interpolation == "aligned", frame=frame).to(pixels.device)
        for side in sides
    )
    in_log = interpolation == "log_prob"
    limit = math.log(threshold) if in_log else threshold
    outside = min(OUTSIDE_LOG_PROB, limit) if in_log else 0.0
    if interpolation == "aligned":
        ranges = _spans(pixels[0].mT, proposals, threshold)
    elif frame == "exact":
        ranges = _exact_ranges(proposals.boxes / cell, grid, margin)
    else:
        ranges = cell_ranges(proposals.boxes / cell, grid, interpolation)
    cells = Cells(pixels[0].permute(1, 2, 0).flatten(0, 1), grid, rows, columns, limit, outside, in_log)
    return trace(cells, proposals.embed, proposals.margin, ranges, original_size)


def cell_ranges(boxes: Tensor, grid: Size, interpolation: Literal["prob", "log_prob"]) -> Tensor:
    """Half-open ranges of cells in which the authors couple each proposal: its box and a little around.

    2021: the box's ends cut to whole cells, two more on each side. 2019: the cells from x1 - 1 up to x2 + 1.

    Args:
        boxes: `[R, 4]` xyxy in cells.
        grid: `(h, w)` of the map.

    Returns:
        int64 `[R, 4]`: y1, y2, x1, x2.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    if interpolation == "log_prob":
        return _inside(low.trunc() - 2, high.trunc() + 2, grid)
    return _inside((low - 1).ceil(), (high + 1).ceil(), grid)


def _exact_ranges(boxes: Tensor, grid: Size, margin: float) -> Tensor:
    """Return the ranges of `cell_ranges` in the frame `exact`; `margin` is a share of the box's side."""
    low, high = boxes[:, :2], boxes[:, 2:]
    reach = ((high - low) * margin).clamp(min=MIN_MARGIN_CELLS)
    return _inside((low - reach).floor(), (high + reach).ceil(), grid)


def _inside(low: Tensor, high: Tensor, grid: Size) -> Tensor:
    """Ranges of cells from their ends x, y, inside the map."""
    low, high = low.clamp(min=0), torch.minimum(high, high.new_tensor([grid[1], grid[0]]))
    return torch.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], 1).long()


def _spans(pixels: Tensor, proposals: Proposals, threshold: float) -> Tensor:
    """As `cell_ranges`, of masks that know no boxes: the cells above the threshold, one around them, or none.

    Resizing only averages neighbours, so that nothing beyond can be in the mask. Distances come from matrix products
    here, which round, so the spans are found with room to spare.

    Args:
        pixels: p, `[D, h, w]`.
    """
    grid = (pixels.shape[1], pixels.shape[2])
    flat = pixels.flatten(1)
    chunks = []
    count = max(1, BLOCK_VALUES // flat.shape[1])
    for embed, margin in zip(
        torch.split(proposals.embed, count), torch.split(proposals.margin, count), strict=True
    ):
        farthest = (flat.abs().amax(1) + embed.abs()).square()
        reach = 1 - math.log(threshold) + 1e-6 * (margin * farthest).sum(1, keepdim=True)
        distance = weighted_distance(flat, embed, margin).view(-1, *grid)
        chunks.append(torch.cat([_ends(distance.amin(axis) <= reach) for axis in (2, 1)], 1))
    return torch.cat([flat.new_zeros(0, 4, dtype=torch.int64), *chunks])


def _ends(hits: Tensor) -> Tensor:
    """Half-open range of the hits of each row and one around it: bool `[R, n]` -> int64 `[R, 2]`; 0, 0 without any."""
    length = hits.shape[1]
    first = hits.byte().argmax(1) - 1
    last = length - hits.byte().flip(1).argmax(1) + 1
    return torch.stack([first.clamp(min=0), last.clamp(max=length)], 1) * hits.any(1, keepdim=True)


def _source(cells: int, original: int, network: int, *, cell: int, aligned: bool, frame: Frame) -> Tensor:
    """The place, in cells, that each pixel of one side of the image reads: float64 `[original]`, ascending.

    First repository: the padded map is resized to ceil(padded px x original / network) px in one go with half-pixel
    centres, so the scale is that whole number's, evaluated left to right in float32; `exact` leaves out the rounding.
    Second: phi is enlarged aligned twice, to half the stride and to the network's px, cut to the image and resized to
    the image with half-pixel centres. Each step is linear between the cells of the step before, so that all are one
    look-up.
    """
    pixel = torch.arange(original) + 0.5
    if aligned:
        in_network = (pixel * (network / original) - 0.5).clamp(0, network - 1)
        # cell i of the two enlarged maps lies at 2 i + 1 and at i cell / 2 + cell / 4
        source = (in_network - (cell // UPSAMPLING + cell // UPSAMPLING // 2)) / cell
    elif frame == "exact":
        source = pixel.double() * (network / original / cell) - 0.5
    else:
        exact = torch.tensor(float(cells)) * cell * original / network
        source = pixel * (cells / math.ceil(exact.item())) - 0.5
    return source.clamp(0, cells - 1).double()
