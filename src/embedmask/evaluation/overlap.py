"""IoU of boxes, masks and mask boundaries, all computed from run lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from embedmask.data.segmentation import RunLengths, decode_counts
from embedmask.errors import BadInput
from embedmask.structures import Size

Record = Mapping[str, Any]
Mask = NDArray[np.bool_]
Overlaps = NDArray[np.float64]

BOUNDARY_DILATION = 0.02
"""Width of the boundary band, as a fraction of the image's diagonal (Boundary IoU, Cheng et al. 2021)."""
LOWEST_IOU = 0.5
"""Lowest IoU threshold of COCO's AP."""


@dataclass(frozen=True)
class Crop:
    """Mask cropped to its box.

    Attributes:
        pixels: bool `[h, w]`; `[0, 0]` for an empty mask.
        offset: `(y, x)` of the first row and column in the image.
    """

    pixels: Mask
    offset: tuple[int, int]


def crop_of(rle: Record) -> Crop:
    """Decode a compressed RLE to the crop of its box, without a mask of the image's size.

    Raises:
        BadInput: the runs do not add up to the size of the image.
    """
    height, width = rle["size"]
    runs = decode_counts(rle["counts"])
    if (runs < 0).any() or runs.sum() != height * width:
        raise BadInput(f"a mask's run lengths do not add up to its image {[height, width]}; encode it again")
    # runs alternate between background and mask, background first
    if not runs[1::2].any():
        return Crop(np.zeros((0, 0), dtype=bool), (0, 0))
    mask = RunLengths(runs, (height, width))
    left, top, right, bottom = map(int, mask.bounds())
    return Crop(mask.pixels(left, top, right, bottom), (top, left))


def box_ious(results: Sequence[Record], gts: Sequence[Record]) -> Overlaps:
    """Compute the IoU of boxes, float64 `[R, G]`; for a crowd, the fraction of the result's box inside it."""
    return _ious(results, gts, "bbox")


def mask_ious(results: Sequence[Record], gts: Sequence[Record]) -> Overlaps:
    """Compute the IoU of masks, float64 `[R, G]`; for a crowd, the fraction of the result's mask inside it."""
    return _ious(results, gts, "segmentation")


def _ious(results: Sequence[Record], gts: Sequence[Record], key: str) -> Overlaps:
    if not results or not gts:
        return np.zeros((len(results), len(gts)))
    crowd = [int(gt["iscrowd"]) for gt in gts]
    return np.asarray(mask_api.iou([r[key] for r in results], [gt[key] for gt in gts], crowd))


def boundary_ious(results: Sequence[Record], gts: Sequence[Record], ious: Overlaps) -> Overlaps:
    """Compute the overlaps of boundary AP: the lower of mask IoU and boundary IoU.

    Boundaries are computed inside the boxes of the masks, and only for pairs that can match: the result cannot exceed
    the mask IoU, so pairs below the lowest threshold keep it. Crowds keep their mask overlap.

    Args:
        results: R results of one image and category.
        gts: G objects and crowds of the same.
        ious: their `mask_ious`, float64 `[R, G]`.

    Returns:
        float64 `[R, G]`.
    """
    ious = ious.copy()
    objects = np.array([not gt["iscrowd"] for gt in gts], dtype=bool)
    rows, columns = np.nonzero((ious >= LOWEST_IOU) & objects)
    # each boundary once, however many pairs share it
    edges = {row: boundary_of(results[row]["segmentation"]) for row in set(rows.tolist())}
    gt_edges = {column: boundary_of(gts[column]["segmentation"]) for column in set(columns.tolist())}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        ious[row, column] = min(ious[row, column], crop_iou(edges[row], gt_edges[column]))
    return ious


def boundary_of(rle: Record) -> Crop:
    """Return the boundary of a mask: its pixels within the band along its outline.

    A pixel is in the band if a pixel outside the mask is at most `boundary_band` px away (8 neighbours). Pixels outside
    the image count as outside the mask.
    """
    crop, band = crop_of(rle), boundary_band(rle["size"])
    # erosion by a square of side 2 * band + 1, along rows and then columns; [h, w] -> [h - 2 band, w - 2 band]
    inside = _all_set(_all_set(crop.pixels, 2 * band + 1).T, 2 * band + 1).T
    if not inside.size:
        return crop
    pixels = crop.pixels.copy(order="K")
    pixels[band:-band, band:-band] &= ~inside
    return Crop(pixels, crop.offset)


def boundary_band(size: Size) -> int:
    """Return the width of the band in an image `(height, width)`, px; half a pixel rounds down, as in the library."""
    return max(1, math.floor(BOUNDARY_DILATION * math.hypot(*size) + 0.5 - 1e-10))


def _all_set(mask: Mask, length: int) -> Mask:
    """Return where `length` consecutive rows are all set, bool `[max(h - length + 1, 0), w]`."""
    if len(mask) < length:
        return mask[:0]
    # invariant: mask[i] covers the original rows i .. i + reach - 1; doubling takes log2(length) steps
    reach = 1
    while 2 * reach <= length:
        mask = mask[:-reach] & mask[reach:]
        reach *= 2
    # two windows of `reach` rows, `rest` apart, cover the remaining rows
    rest = length - reach
    return mask[: len(mask) - rest] & mask[rest:]


def crop_iou(first: Crop, second: Crop) -> float:
    """Compute the IoU of two masks of one image; 0 where both are empty."""
    (ay, ax), (by, bx) = first.offset, second.offset
    (ah, aw), (bh, bw) = first.pixels.shape, second.pixels.shape
    # the intersection of the boxes, in the frame of the image
    top, left, bottom, right = max(ay, by), max(ax, bx), min(ay + ah, by + bh), min(ax + aw, bx + bw)
    if top >= bottom or left >= right:
        return 0.0
    a = first.pixels[top - ay : bottom - ay, left - ax : right - ax]
    b = second.pixels[top - by : bottom - by, left - bx : right - bx]
    both = int(np.count_nonzero(a & b))
    return both / (int(np.count_nonzero(first.pixels)) + int(np.count_nonzero(second.pixels)) - both)
