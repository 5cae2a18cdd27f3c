"""How much masks overlap: IoU of boxes, of masks, and of their boundaries, all from run lengths."""

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
"""Of the thresholds of AP."""


@dataclass(frozen=True)
class Crop:
    """A mask inside its own box.

    Attributes:
        pixels: bool `[h, w]`; without pixels where the mask is empty.
        offset: `(y, x)`, its first row and column in the image.
    """

    pixels: Mask
    offset: tuple[int, int]


def crop_of(rle: Record) -> Crop:
    """The mask of a compressed RLE; only the columns of its box are laid out.

    Raises:
        BadInput: the runs do not add up to the image.
    """
    height, width = rle["size"]
    runs = decode_counts(rle["counts"])
    if (runs < 0).any() or runs.sum() != height * width:
        raise BadInput(f"a mask's run lengths do not add up to its image {[height, width]}; encode it again")
    if not runs[1::2].any():
        return Crop(np.zeros((0, 0), dtype=bool), (0, 0))
    mask = RunLengths(runs, (height, width))
    left, top, right, bottom = map(int, mask.bounds())
    return Crop(mask.pixels(left, top, right, bottom), (top, left))


def box_ious(found: Sequence[Record], truths: Sequence[Record]) -> Overlaps:
    """IoU of boxes, float64 `[found, truths]`; for a crowd, the share of the found box that is inside."""
    return _ious(found, truths, "bbox")


def mask_ious(found: Sequence[Record], truths: Sequence[Record]) -> Overlaps:
    """IoU of masks, float64 `[found, truths]`; for a crowd, the share of the found mask that is inside."""
    return _ious(found, truths, "segmentation")


def _ious(found: Sequence[Record], truths: Sequence[Record], key: str) -> Overlaps:
    if not found or not truths:
        return np.zeros((len(found), len(truths)))
    crowd = [int(truth["iscrowd"]) for truth in truths]
    return np.asarray(mask_api.iou([d[key] for d in found], [g[key] for g in truths], crowd))


def boundary_ious(found: Sequence[Record], truths: Sequence[Record], ious: Overlaps) -> Overlaps:
    """The lesser of mask IoU and boundary IoU, as boundary AP takes it.

    Boundaries are drawn only where they can matter, and each inside its own box: a pair whose masks overlap
    less than the lowest threshold matches at none, whatever its boundaries. Crowds keep their mask's figure.

    Args:
        ious: `[found, truths]`, their `mask_ious`.
    """
    ious = ious.copy()
    objects = np.array([not truth["iscrowd"] for truth in truths], dtype=bool)
    rows, columns = np.nonzero((ious >= LOWEST_IOU) & objects)
    edges = {row: boundary_of(found[row]["segmentation"]) for row in set(rows.tolist())}
    true_edges = {column: boundary_of(truths[column]["segmentation"]) for column in set(columns.tolist())}
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        ious[row, column] = min(ious[row, column], crop_iou(edges[row], true_edges[column]))
    return ious


def boundary_of(rle: Record) -> Crop:
    """Pixels of a mask within the band: no farther from a pixel outside it (8 neighbours) than its width.

    What lies outside the image counts as outside the mask.
    """
    crop, band = crop_of(rle), boundary_band(rle["size"])
    inside = _all_set(_all_set(crop.pixels, 2 * band + 1).T, 2 * band + 1).T
    if not inside.size:
        return crop
    pixels = crop.pixels.copy(order="K")
    pixels[band:-band, band:-band] &= ~inside
    return Crop(pixels, crop.offset)


def boundary_band(size: Size) -> int:
    """Width of the band in an image `(height, width)`, px; half a pixel goes down, as in the library."""
    return max(1, math.floor(BOUNDARY_DILATION * math.hypot(*size) + 0.5 - 1e-10))


def _all_set(mask: Mask, length: int) -> Mask:
    """Where `length` rows from here on are all set, bool `[max(h - length + 1, 0), w]`.

    The reach doubles with every step: a step for each bit of the length instead of one for each row.
    """
    if len(mask) < length:
        return mask[:0]
    reach = 1
    while 2 * reach <= length:
        mask = mask[:-reach] & mask[reach:]
        reach *= 2
    rest = length - reach
    return mask[: len(mask) - rest] & mask[rest:]


def crop_iou(first: Crop, second: Crop) -> float:
    """IoU of two masks of one image, 0 where both are empty."""
    (ay, ax), (by, bx) = first.offset, second.offset
    (ah, aw), (bh, bw) = first.pixels.shape, second.pixels.shape
    top, left, bottom, right = max(ay, by), max(ax, bx), min(ay + ah, by + bh), min(ax + aw, bx + bw)
    if top >= bottom or left >= right:
        return 0.0
    a = first.pixels[top - ay : bottom - ay, left - ax : right - ax]
    b = second.pixels[top - by : bottom - by, left - bx : right - bx]
    both = int(np.count_nonzero(a & b))
    return both / (int(np.count_nonzero(first.pixels)) + int(np.count_nonzero(second.pixels)) - both)
