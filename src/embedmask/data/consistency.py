"""Checks of the values that a file states beside its masks: areas, boxes, and objects that it has twice."""

from __future__ import annotations

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray

from embedmask.data.packed import PackedAnnotations
from embedmask.data.segmentation import Polygons, Segmentation, pixel_area, to_rle

AREA_TOLERANCE = 0.25
"""An area fits its mask within this share of the larger of the two, and a pixel along half the outline."""
BOX_TOLERANCE = 2.0
"""A box is that of its mask when no side is farther away, px."""
BOX_IOU = 0.5
"""A box that is drawn with a margin still fits its mask from this IoU on."""
SAME_IOU, SAME_BOX_IOU = 0.9, 0.6
"""Two masks of one image and class from this IoU on are the same object; below this IoU of boxes none is looked at."""
Numbers = NDArray[np.int64]
Bounds = NDArray[np.float32]
"""xyxy px, `[N, 4]`."""


def check_areas(packed: PackedAnnotations, bounds: Bounds, areas: NDArray[np.float64]) -> Numbers:
    """Return the objects whose area is not that of their mask, and mark their area as unknown.

    Crowds are left alone: COCO's own do not fit, and no figure depends on them.

    Args:
        packed: `areas` is changed.
        bounds, areas: as `PackedAnnotations.measure` gives them.
    """
    slack = bounds[:, 2] - bounds[:, 0] + bounds[:, 3] - bounds[:, 1]
    stated = packed.areas

    def fits(numbers: Numbers | slice, true: NDArray[np.float64]) -> NDArray[np.bool_]:
        tolerance = AREA_TOLERANCE * np.maximum(stated[numbers], true) + slack[numbers]
        return np.asarray(~(np.abs(stated[numbers] - true) > tolerance))

    doubtful = np.flatnonzero(~fits(slice(None), areas) & ~packed.crowd)
    # an outline that crosses itself has another area than the formula says: count its pixels
    pixels = np.array([pixel_area(*packed.mask(number)) for number in doubtful.tolist()])
    wrong = doubtful[~fits(doubtful, pixels)]
    stated[wrong] = np.nan
    return wrong


def check_boxes(packed: PackedAnnotations, bounds: Bounds) -> tuple[Numbers, Numbers]:
    """Return the objects whose box does not fit their mask, and mark their box as unknown.

    Args:
        packed: `boxes` is changed.
        bounds: of the masks.

    Returns:
        Objects whose box has two corners instead of width and height, and all others that do not fit.
    """
    stated = packed.boxes
    corners = np.hstack([stated[:, :2], stated[:, :2] + stated[:, 2:]])
    away = ~(np.abs(corners - bounds).max(1, initial=0) <= BOX_TOLERANCE) & ~np.isnan(stated[:, 0])
    two_corners = away & (np.abs(stated - bounds).max(1, initial=0) <= BOX_TOLERANCE)
    wrong = away & ~two_corners & (_box_ious(corners, bounds) < BOX_IOU)
    stated[two_corners | wrong] = np.nan
    return np.flatnonzero(two_corners), np.flatnonzero(wrong)


def find_repeats(packed: PackedAnnotations, bounds: Bounds, areas: NDArray[np.float64]) -> dict[int, int]:
    """Return the objects whose mask is, or nearly is, that of another of their image and class: repeat -> other.

    Args:
        packed: objects and crowds; these are compared apart.
        bounds, areas: as `PackedAnnotations.measure` gives them.
    """
    groups = (packed.owners * (packed.labels.max(initial=0) + 1) + packed.labels) * 2 + packed.crowd
    order = np.lexsort((bounds[:, 0], groups))
    groups, boxes, areas = groups[order], bounds[order], areas[order]
    reach = boxes[:, 0] + (1 - SAME_BOX_IOU) / SAME_BOX_IOU * (boxes[:, 2] - boxes[:, 0])
    repeats: dict[int, int] = {}
    is_repeat = np.zeros(len(order), dtype=bool)
    places, step = np.arange(len(order)), 0
    # compare each object with its next neighbour to the right, then with the one after it, ...
    while len(places):
        step += 1
        places = places[places + step < len(order)]
        places = places[
            (groups[places] == groups[places + step]) & (boxes[places + step, 0] <= reach[places])
        ]
        others = places + step
        low, high = np.minimum(areas[places], areas[others]), np.maximum(areas[places], areas[others])
        alike = (_box_ious(boxes[places], boxes[others]) >= SAME_BOX_IOU) & (low >= SAME_IOU**2 * high)
        alike &= ~is_repeat[others]
        for place, other in zip(places[alike].tolist(), others[alike].tolist(), strict=True):
            first, repeat = int(order[place]), int(order[other])
            if _is_same(packed.mask(first)[0], *packed.mask(repeat)):
                repeats[repeat], is_repeat[other] = first, True
    return repeats


def _is_same(first: Segmentation, second: Segmentation, size: tuple[int, int]) -> bool:
    if _numbers(first) == _numbers(second):
        return True
    overlaps = np.asarray(coco_mask.iou([to_rle(first, size)], [to_rle(second, size)], [0]))
    return bool(overlaps[0, 0] >= SAME_IOU)


def _numbers(mask: Segmentation) -> list[bytes]:
    return [part.tobytes() for part in (mask.parts if isinstance(mask, Polygons) else [mask.counts])]


def _box_ious(first: Bounds, second: Bounds) -> NDArray[np.float64]:
    """IoU of pairs of boxes, float64 `[N]`; nan where one is nan or both are empty."""
    shared = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    both = np.clip(shared.astype(np.float64), 0, None).prod(1)
    each = sum((box[:, 2:] - box[:, :2]).astype(np.float64).prod(1) for box in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(both / (each - both))
