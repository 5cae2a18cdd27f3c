"""Check each mask for faults that do not stop training but should be looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from embedmask.data.problems import CheckedObject, Example, OnIssue, Problem, ProblemType
from embedmask.data.segmentation import Bounds, Polygons, pixel_area
from embedmask.structures import Size

SMALL, MEDIUM = 32**2, 96**2
"""Areas from which COCO counts objects as medium and as large, px²."""
OUTSIDE = 2.0
"""Masks may reach this far beyond their image, px, because annotation tools round."""
MOSTLY_EMPTY = 0.05
"""A mask that covers less of its box is reported; none of 30,000 objects of COCO, nuclei and animals does."""
BATCH = 1000
"""Number of objects checked at once."""
PAIRS = 2**20
"""Number of pairs of edges compared at once."""


@dataclass
class MaskCheck:
    """Checker of all masks of a split, which also counts the objects by image, class and size.

    Attributes:
        on_issue: called with every problem.
        sizes: number of objects by image id, label and size (0 small, 1 medium, 2 large), from the pixels of their
            masks.
    """

    on_issue: OnIssue
    sizes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    _waiting: list[CheckedObject] = field(default_factory=list)

    def __call__(self, item: CheckedObject) -> None:
        """Add an object; it is checked when its batch is complete."""
        self._waiting.append(item)
        if len(self._waiting) == BATCH:
            self.finish()

    def finish(self) -> None:
        """Check the remaining objects."""
        items, self._waiting = self._waiting, []
        areas = [int(pixel_area(item.mask, item.size)) for item in items]
        for item, area, crosses in zip(items, areas, crossing_objects(items), strict=True):
            self.sizes[item.image_id, item.label, int(area >= SMALL) + int(area >= MEDIUM)] += 1
            for kind, message in mask_faults(item, area, crosses, item.mask.bounds()):
                # "FILE: annotation 5 of image 7 (NAME)" -> "annotation 5"
                name = item.where.partition(" of image ")[0].rpartition(": ")[2]
                example = Example(item.image_id, name, item.mask)
                self.on_issue(Problem(kind, f"{item.where} {message}", fatal=False, example=example))


def mask_faults(
    item: CheckedObject, area: int, crosses: bool, bounds: Bounds
) -> Iterator[tuple[ProblemType, str]]:
    """Yield the faults of a mask: type of problem and message.

    Args:
        item: object to check.
        area: number of pixels of the mask inside the image.
        crosses: whether one of its polygons crosses itself.
        bounds: box of the mask, xyxy px.
    """
    if area <= 1:
        yield (
            "tiny object",
            f"has a mask of {area} pixels, from which nothing can be learned; correct or remove it",
        )
    if crosses:
        fault = f"has a polygon that crosses itself; its mask has {area} pixels, and a hole where it overlaps itself"
        yield "self-crossing polygon", f"{fault}; redraw it, or split it into parts"
    reach = reach_outside(bounds, item.size)
    if reach > OUTSIDE:
        fault = (
            f"reaches {reach:.0f} px beyond its image {list(item.size)} (height, width), where it is cut off"
        )
        advice = "correct it, and check whether the image was cropped or turned after it was annotated"
        yield "outside the image", f"{fault}; {advice}"
    box = box_area(bounds, item.size)
    stated = item.box if isinstance(item.box, list) and len(item.box) == 4 else []
    if stated and all(type(value) in (int, float) for value in stated):
        x, y, width, height = stated
        box = max(box, box_area((x, y, x + width, y + height), item.size))
    if 1 < area < MOSTLY_EMPTY * box:
        fault = f"has a mask of {area} pixels, {100 * area / box:.1f} % of its box"
        yield "mostly empty mask", f"{fault}; look for stray parts or a wrong scale, and redraw it"


def reach_outside(bounds: Bounds, size: Size) -> float:
    """Return how far a box xyxy px reaches beyond an image of `(height, width)`, px; 0 if it lies inside."""
    left, top, right, bottom = bounds
    return max(-left, -top, right - size[1], bottom - size[0], 0.0)


def box_area(bounds: Bounds, size: Size) -> float:
    """Return the area of the part of a box xyxy px that lies inside an image of `(height, width)`, px²."""
    left, top, right, bottom = bounds
    width, height = min(right, size[1]) - max(left, 0), min(bottom, size[0]) - max(top, 0)
    return width * height if width > 0 and height > 0 else 0.0


def crossing_objects(items: Sequence[CheckedObject]) -> list[bool]:
    """Return for each object whether one of its polygons crosses itself."""
    # test the rings of all objects together, then share the results out in the same order
    parts = [item.mask.parts if isinstance(item.mask, Polygons) else [] for item in items]
    crosses = iter(self_crossing([ring for rings in parts for ring in rings]).tolist())
    return [sum(next(crosses) for _ in rings) > 0 for rings in parts]


def self_crossing(rings: Sequence[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Find closed polygons with two edges that cross in the interior of both.

    Polygons that only touch themselves, such as those that reach a hole by a bridge, do not count. All polygons are
    tested at once by a sweep over x, for which each polygon is moved to a separate strip.

    Args:
        rings: points of R polygons, float32 `[P, 2]` x, y px each, P >= 3.

    Returns:
        Whether each polygon crosses itself, bool `[R]`.
    """
    crosses = np.zeros(len(rings), dtype=np.bool_)
    if not len(rings):
        return crosses
    # the E edges of all rings, from `start` [E, 2] to `end` [E, 2]; `owner` [E] is the ring of each
    lengths = np.array([len(ring) for ring in rings])
    firsts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(rings)), lengths)
    start = np.concatenate(rings).astype(np.float64)
    after = np.arange(1, len(start) + 1)
    after[firsts + lengths - 1] = firsts  # the last point of a ring is followed by its first
    end = start[after]
    low, high = np.minimum(start, end), np.maximum(start, end)
    # shift each ring in x, so that edges of different rings never overlap in x
    left = np.minimum.reduceat(low[:, 0], firsts)
    width = np.maximum.reduceat(high[:, 0], firsts) - left + 1
    shift = (np.cumsum(width) - width - left)[owner]
    order = np.argsort(low[:, 0] + shift, kind="stable")
    begins, ends = (low[:, 0] + shift)[order], (high[:, 0] + shift)[order]
    # number of edges behind each edge in this order that begin, in x, before it ends
    followers = np.maximum(np.searchsorted(begins, ends, side="left") - np.arange(len(order)) - 1, 0)
    for first, second in _pairs(followers):
        i, j = order[first], order[second]
        near = (low[i, 1] < high[j, 1]) & (low[j, 1] < high[i, 1])  # the edges overlap in y too
        i, j = i[near], j[near]
        # each edge has its two ends strictly on different sides of the other edge's line
        apart = _side(start[i], end[i], start[j]) * _side(start[i], end[i], end[j]) < 0
        apart &= _side(start[j], end[j], start[i]) * _side(start[j], end[j], end[i]) < 0
        crosses[owner[i[apart]]] = True
    return crosses


def _pairs(followers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs of each place with its next `followers` places, about `PAIRS` pairs at a time."""
    total = np.cumsum(followers)
    # places at which a chunk ends: where the running total passes each multiple of PAIRS
    stops = np.searchsorted(total, np.arange(PAIRS, total[-1] + PAIRS, PAIRS)) + 1
    for begin, stop in pairwise([0, *stops.tolist()]):
        counts = followers[begin:stop]
        first = np.repeat(np.arange(begin, begin + len(counts)), counts)
        # 0..counts-1 of each place
        within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first, first + within + 1


def _side(
    start: NDArray[np.float64], end: NDArray[np.float64], point: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the signed side of points relative to the lines from `start` to `end`: `[N, 2]` px each -> `[N]`."""
    along, toward = end - start, point - start
    return along[:, 0] * toward[:, 1] - along[:, 1] * toward[:, 0]
