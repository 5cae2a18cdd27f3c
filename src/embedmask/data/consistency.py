"""Compare the areas and boxes of an annotation file with its masks, and find repeated objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedmask.data.packed import PackedAnnotations
from embedmask.data.segmentation import mask_iou, pixel_area

AREA_TOLERANCE = 0.25
"""Tolerated difference of an area, as a share of the larger of stated and true area; slack for the outline is added."""
BOX_TOLERANCE = 2.0
"""A box agrees with its mask if no side is farther off than this, px."""
BOX_IOU = 0.5
"""A box with a margin still agrees with its mask from this IoU on."""
SAME_IOU, SAME_BOX_IOU = 0.9, 0.6
"""IoU from which masks of one image and class are the same object; IoU of their boxes from which they are compared."""
Numbers = NDArray[np.int64]
Bounds = NDArray[np.float32]
"""Boxes, xyxy px, `[N, 4]`."""


def check_areas(packed: PackedAnnotations, bounds: Bounds, areas: NDArray[np.float64]) -> Numbers:
    """Find the objects whose stated area contradicts the mask, and set that area to NaN.

    Crowds are not checked: those of COCO itself do not agree, and no metric depends on their area.

    Args:
        packed: annotations; `areas` is changed in place.
        bounds, areas: results of `PackedAnnotations.measure`.

    Returns:
        Indices of these objects, ascending.
    """
    # one pixel along half the outline, approximated by width + height: [N] px²
    slack = bounds[:, 2] - bounds[:, 0] + bounds[:, 3] - bounds[:, 1]
    stated = packed.areas

    def fits(numbers: Numbers | slice, true: NDArray[np.float64]) -> NDArray[np.bool_]:
        tolerance = AREA_TOLERANCE * np.maximum(stated[numbers], true) + slack[numbers]
        # negated, so that a NaN (no stated area) counts as a fit
        return np.asarray(~(np.abs(stated[numbers] - true) > tolerance))

    doubtful = np.flatnonzero(~fits(slice(None), areas) & ~packed.crowd)
    # the shoelace formula is wrong for an outline that crosses itself, so confirm by counting pixels
    pixels = np.array([pixel_area(*packed.mask(number)) for number in doubtful.tolist()])
    wrong = doubtful[~fits(doubtful, pixels)]
    stated[wrong] = np.nan
    return wrong


def check_boxes(packed: PackedAnnotations, bounds: Bounds) -> tuple[Numbers, Numbers]:
    """Find the objects whose stated box contradicts the mask, and set that box to NaN.

    Args:
        packed: annotations; `boxes` is changed in place.
        bounds: boxes of the masks.

    Returns:
        Indices of the objects whose box is written as two corners (xyxy), and of all others that do not agree.
    """
    stated = packed.boxes
    corners = np.hstack([stated[:, :2], stated[:, :2] + stated[:, 2:]])
    # objects without a stated box (NaN) are skipped
    away = ~(np.abs(corners - bounds).max(1, initial=0) <= BOX_TOLERANCE) & ~np.isnan(stated[:, 0])
    two_corners = away & (np.abs(stated - bounds).max(1, initial=0) <= BOX_TOLERANCE)
    wrong = away & ~two_corners & (_box_ious(corners, bounds) < BOX_IOU)
    stated[two_corners | wrong] = np.nan
    return np.flatnonzero(two_corners), np.flatnonzero(wrong)


def find_repeats(packed: PackedAnnotations, bounds: Bounds, areas: NDArray[np.float64]) -> dict[int, int]:
    """Find the objects whose mask repeats that of another object of the same image and class.

    Args:
        packed: annotations; crowds are compared with crowds only.
        bounds, areas: results of `PackedAnnotations.measure`.

    Returns:
        The index of the other object for each repeated one.
    """
    # one number for each combination of image, label and crowd flag; sort by it, then by the left side
    groups = (packed.owners * (packed.labels.max(initial=0) + 1) + packed.labels) * 2 + packed.crowd
    order = np.lexsort((bounds[:, 0], groups))
    groups, boxes, areas = groups[order], bounds[order], areas[order]
    # IoU >= t implies x2 - x1 <= (1 - t) * width of the union, and that width <= width of the first box / t
    reach = boxes[:, 0] + (1 - SAME_BOX_IOU) / SAME_BOX_IOU * (boxes[:, 2] - boxes[:, 0])
    repeats: dict[int, int] = {}
    is_repeat = np.zeros(len(order), dtype=bool)
    places, step = np.arange(len(order)), 0
    # compare each object with its next neighbor in this order, then with the one after it, while any is in reach
    while len(places):
        step += 1
        places = places[places + step < len(order)]
        places = places[
            (groups[places] == groups[places + step]) & (boxes[places + step, 0] <= reach[places])
        ]
        others = places + step
        # masks with IoU >= t have areas with a ratio of at least t; t² leaves a margin for shoelace areas
        low, high = np.minimum(areas[places], areas[others]), np.maximum(areas[places], areas[others])
        alike = (_box_ious(boxes[places], boxes[others]) >= SAME_BOX_IOU) & (low >= SAME_IOU**2 * high)
        alike &= ~is_repeat[others]
        for place, other in zip(places[alike].tolist(), others[alike].tolist(), strict=True):
            first, repeat = int(order[place]), int(order[other])
            if mask_iou(packed.mask(first)[0], *packed.mask(repeat)) >= SAME_IOU:
                repeats[repeat], is_repeat[other] = first, True
    return repeats


def _box_ious(first: Bounds, second: Bounds) -> NDArray[np.float64]:
    """Return the IoU of pairs of boxes, float64 `[N]`; NaN where one is NaN or both are empty."""
    shared = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    both = np.clip(shared.astype(np.float64), 0, None).prod(1)
    each = sum((box[:, 2:] - box[:, :2]).astype(np.float64).prod(1) for box in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(both / (each - both))
