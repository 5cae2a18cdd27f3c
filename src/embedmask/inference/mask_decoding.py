"""Decoding of masks: proposals are coupled inside their boxes, resized to the image, then thresholded (section 3.6)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask.config.model import MASK_MARGIN, MIN_MASK_MARGIN_CELLS
from embedmask.coupling import weighted_distance
from embedmask.inference.contours import BLOCK_VALUES, Cells, trace
from embedmask.inference.proposals import Proposals
from embedmask.locations import MASK_UPSAMPLING
from embedmask.masks import RunMasks
from embedmask.structures import Size

OUTSIDE_LOG_PROB = -10.0
"""Value of log phi outside the cells of a box when the 2021 version resizes log phi."""

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
    margin: float = MASK_MARGIN,
    min_margin: float = MIN_MASK_MARGIN_CELLS,
) -> RunMasks:
    """Decode the masks of the proposals of one image, in the frame of the original image.

    Memory grows with the runs; it also holds one upsampled `pixel_embed` and blocks of a fixed size.

    Args:
        pixel_embed: p, `[D, h, w]`.
        proposals: R proposals of the image.
        stride: px of the network's frame per cell of `pixel_embed`.
        image_size: `(height, width)` of the image inside the network's frame.
        original_size: `(height, width)` of the original image.
        threshold: phi above which a pixel belongs to the instance.
        interpolation: resize phi (2019), log phi (2021), or phi on the grid of p (second repository).
        frame: position of the cells in the image and margin of masks around boxes, `ModelConfig.mask_frame`.
        margin, min_margin: margin in the frame `exact`, as a fraction of the box's side, and its minimum in cells,
            `ModelConfig.mask_reach`.
    """
    if pixel_embed.device.type == "mps":  # it lacks float64, the type of the positions
        pixel_embed = pixel_embed.cpu()
        proposals = Proposals(*(column.cpu() for column in vars(proposals).values()))
    pixels = pixel_embed.float()[None].mT.contiguous(memory_format=torch.channels_last)  # [1, D, w, h]
    cell = stride
    if interpolation != "aligned":
        pixels = F.interpolate(pixels, scale_factor=MASK_UPSAMPLING, mode="bilinear", align_corners=False)
        cell = stride // MASK_UPSAMPLING
    grid = (pixels.shape[3], pixels.shape[2])
    sides = zip(grid, original_size, image_size, strict=True)
    rows, columns = (
        source_positions(*side, cell=cell, aligned=interpolation == "aligned", frame=frame).to(pixels.device)
        for side in sides
    )
    in_log = interpolation == "log_prob"
    limit = math.log(threshold) if in_log else threshold
    outside = min(OUTSIDE_LOG_PROB, limit) if in_log else 0.0
    if interpolation == "aligned":
        ranges = _spans(pixels[0].mT, proposals, threshold)
    elif frame == "exact":
        boxes = proposals.boxes / cell
        low, high = boxes[:, :2], boxes[:, 2:]
        reach = ((high - low) * margin).clamp(min=min_margin)
        ranges = _inside((low - reach).floor(), (high + reach).ceil(), grid)
    else:
        ranges = cell_ranges(proposals.boxes / cell, grid, interpolation)
    # [1, D, w, h] -> [w * h, D]: the cells of a column are contiguous
    cells = Cells(pixels[0].permute(1, 2, 0).flatten(0, 1), grid, rows, columns, limit, outside, in_log)
    return trace(cells, proposals.embed, proposals.margin, ranges, original_size)


def cell_ranges(boxes: Tensor, grid: Size, interpolation: Literal["prob", "log_prob"]) -> Tensor:
    """Return the half-open ranges of cells in which the authors' code couples each proposal.

    2021: the box truncated to whole cells, plus two on each side. 2019: the cells from x1 - 1 to x2 + 1.

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


def _inside(low: Tensor, high: Tensor, grid: Size) -> Tensor:
    """Clamp ranges to the map: corners x, y `[R, 2]` in cells -> int64 `[R, 4]`: y1, y2, x1, x2."""
    low, high = low.clamp(min=0), torch.minimum(high, high.new_tensor([grid[1], grid[0]]))
    return torch.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], 1).long()


def _spans(pixels: Tensor, proposals: Proposals, threshold: float) -> Tensor:
    """Return the ranges of `cell_ranges` for masks that boxes do not limit: all cells above the threshold, plus one.

    Resizing only averages neighbors, so the mask cannot reach further.

    Args:
        pixels: p, `[D, h, w]`.
        threshold: of phi.
    """
    grid = (pixels.shape[1], pixels.shape[2])
    flat = pixels.flatten(1)  # [D, P]
    chunks = []
    count = max(1, BLOCK_VALUES // flat.shape[1])
    for embed, margin in zip(
        torch.split(proposals.embed, count), torch.split(proposals.margin, count), strict=True
    ):
        # phi > threshold where d < -log threshold. The matrix products of `weighted_distance` round relative to the
        # size of their terms, at most s * (|p| + |q|)^2: allow 1e-6 of it, plus 1, so that no cell is missed; [B, 1]
        farthest = (flat.abs().amax(1) + embed.abs()).square()
        reach = 1 - math.log(threshold) + 1e-6 * (margin * farthest).sum(1, keepdim=True)
        distance = weighted_distance(flat, embed, margin).view(-1, *grid)  # [B, h, w]
        ends = []
        for axis in (2, 1):
            hits = distance.amin(axis) <= reach  # rows, then columns: [B, n]
            length = hits.shape[1]
            # argmax returns the first of equal values; one cell more on each side, 0..0 without hits
            first = (hits.byte().argmax(1) - 1).clamp(min=0)
            last = (length - hits.byte().flip(1).argmax(1) + 1).clamp(max=length)
            ends.append(torch.stack([first, last], 1) * hits.any(1, keepdim=True))
        chunks.append(torch.cat(ends, 1))
    return torch.cat([flat.new_zeros(0, 4, dtype=torch.int64), *chunks])


def source_positions(
    cells: int, original: int, network: int, *, cell: int, aligned: bool, frame: Frame
) -> Tensor:
    """Return the position on the grid, in cells, of each pixel along one side of the image.

    First repository: the padded map is resized to ceil(padded px * original / network) px with half-pixel centers, so
    this whole number defines the scale; it is evaluated left to right in float32. `exact` omits the rounding.
    Second repository: phi is upsampled with aligned cells twice, to half the stride and to the network's px, cropped to
    the image and resized to its original size with half-pixel centers. Each step is linear between the cells of the one
    before, so a single look-up gives the result of all of them.

    Args:
        cells: length of the grid.
        original: px of the original image.
        network: px of the image in the network's frame.
        cell: px of the network's frame per cell.
        aligned: whether this is the second repository.
        frame: `ModelConfig.mask_frame`, for the first.

    Returns:
        float64 `[original]`, ascending.
    """
    pixel = torch.arange(original) + 0.5
    if aligned:
        in_network = (pixel * (network / original) - 0.5).clamp(0, network - 1)
        # aligned upsampling puts cell i of the map at 2 i + 1, and cell j of that at j * cell / 2 + cell / 4
        source = (in_network - (cell // MASK_UPSAMPLING + cell // MASK_UPSAMPLING // 2)) / cell
    elif frame == "exact":
        source = pixel.double() * (network / original / cell) - 0.5
    else:
        exact = torch.tensor(float(cells)) * cell * original / network
        source = pixel * (cells / math.ceil(exact.item())) - 0.5
    return source.clamp(0, cells - 1).double()
