"""IoU of boxes, masks and mask boundaries, all computed from run lengths.

The boundary IoU of faster-coco-eval has equal values, but rasterizes whole images: it takes 2.7 times the CPU time on
nuclei, 4.0 times on COCO and 7.8 times on one object in 640 x 640 px (one core of an Intel Xeon with AMX).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Size

Record = Mapping[str, Any]
Mask = NDArray[np.bool_]
Overlaps = NDArray[np.float64]

BOUNDARY_DILATION = 0.02
"""Width of the boundary band, as a fraction of the image's diagonal (Boundary IoU, Cheng et al. 2021)."""
LOWEST_IOU = 0.5
"""Lowest IoU threshold of COCO's AP."""


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
    objects = np.array([not gt["iscrowd"] for gt in gts], dtype=bool)
    rows, columns = np.nonzero((ious >= LOWEST_IOU) & objects)
    if not len(rows):
        return ious
    # each boundary once, however many pairs share it; those of the results first
    used, row = np.unique(rows, return_inverse=True)
    gt_used, column = np.unique(columns, return_inverse=True)
    column += len(used)
    masks = [results[i]["segmentation"] for i in used] + [gts[i]["segmentation"] for i in gt_used]
    edges = boundaries(RunMasks.from_rle(masks, masks[0]["size"]))
    areas, common = edges.areas(), edges.overlaps(row, edges, column)
    union = areas[row] + areas[column] - common
    ious = ious.copy()
    ious[rows, columns] = np.minimum(ious[rows, columns], common / union)
    return ious


def boundaries(masks: RunMasks) -> RunMasks:
    """Return the boundary of each mask: its pixels within the band along its outline.

    A pixel is in the band if a pixel outside the mask is at most `boundary_band` px away (8 neighbors). Pixels outside
    the image count as outside the mask.
    """
    band = boundary_band(masks.frame)

    def crops() -> Iterator[MaskCrop]:
        for crop in masks.crops():
            # erosion by a square of side 2 * band + 1, along rows and then columns; [h, w] -> [h - 2 band, w - 2 band]
            inside = _all_set(_all_set(crop.pixels, 2 * band + 1).T, 2 * band + 1).T
            if inside.size:
                crop.pixels[band:-band, band:-band] &= ~inside
            yield crop

    return RunMasks.from_crops(crops(), masks.frame)


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
