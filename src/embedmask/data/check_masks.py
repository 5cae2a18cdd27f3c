"""Judge the masks of a data set one by one: what no reader refuses, but a user should look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.data.problems import CheckedObject, Example, Kind, OnIssue, Problem
from embedmask.data.segmentation import Bounds, Polygons, pixel_area
from embedmask.structures import Size

SMALL, MEDIUM = 32**2, 96**2
"""Areas from which objects are medium and large for COCO, px²."""
OUTSIDE = 2.0
"""A mask may reach this far beyond its image, px: tools round."""
MOSTLY_EMPTY = 0.05
"""A mask that covers less of its box is named; among 30,000 objects of COCO, nuclei and animals none does."""
BATCH = 1000
"""Objects that are judged at once."""
PAIRS = 2**20
"""Pairs of edges that are compared at once."""


@dataclass
class MaskCheck:
    """Judges every object of a split, and counts the objects by class, size and image.

    Attributes:
        on_issue: is told of every problem.
        sizes: number of objects by image id, label and size (0 small, 1 medium, 2 large), from the pixels of their
            masks.
        per_image: number of objects by image id.
    """

    on_issue: OnIssue
    sizes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    per_image: Counter[int] = field(default_factory=Counter)
    _waiting: list[CheckedObject] = field(default_factory=list)

    def __call__(self, item: CheckedObject) -> None:
        """Take one object; it is judged with those of its batch."""
        self._waiting.append(item)
        if len(self._waiting) == BATCH:
            self.finish()

    def finish(self) -> None:
        """Judge the objects that wait."""
        items, self._waiting = self._waiting, []
        areas = [int(pixel_area(item.mask, item.size)) for item in items]
        for item, area in zip(items, areas, strict=True):
            self.sizes[item.image_id, item.label, int(area >= SMALL) + int(area >= MEDIUM)] += 1
            self.per_image[item.image_id] += 1
        facts = zip(
            items, areas, crossing_objects(items), (item.mask.bounds() for item in items), strict=True
        )
        for item, area, crosses, bounds in facts:
            for kind, message in mask_faults(item, area, crosses, bounds):
                name = item.where.partition(" of image ")[0].rpartition(": ")[2]
                example = Example(item.image_id, name, item.mask)
                self.on_issue(Problem(kind, f"{item.where} {message}", fatal=False, example=example))


def mask_faults(item: CheckedObject, area: int, crosses: bool, bounds: Bounds) -> Iterator[tuple[Kind, str]]:
    """Yield what is suspicious about a mask.

    Args:
        item: the object.
        area: its pixels inside the image.
        crosses: one of its polygons crosses itself.
        bounds: its box, xyxy px.
    """
    if area <= 1:
        yield "tiny object", f"has a mask of {area} pixels, which teaches nothing; correct or remove it"
    if crosses:
        fault = f"has a polygon that crosses itself; its mask has {area} pixels, and a hole where it overlaps itself"
        yield "self-crossing polygon", f"{fault}; redraw it, or split it into parts"
    reach = reach_outside(bounds, item.size)
    if reach > OUTSIDE:
        fault = (
            f"reaches {reach:.0f} px beyond its image {list(item.size)} (height, width), where it is cut off"
        )
        advice = "correct it, and look whether the image was cropped or turned after it was annotated"
        yield "outside the image", f"{fault}; {advice}"
    box = max(box_area(bounds, item.size), box_area(_corners(item.box), item.size))
    if 1 < area < MOSTLY_EMPTY * box:
        fault = f"has a mask of {area} pixels, {100 * area / box:.1f} % of its box"
        yield "mostly empty mask", f"{fault}; look for stray parts or a wrong scale, and redraw it"


def reach_outside(bounds: Bounds, size: Size) -> float:
    """Return how far xyxy px reach beyond an image of `(height, width)`, px; 0 inside."""
    left, top, right, bottom = bounds
    return max(-left, -top, right - size[1], bottom - size[0], 0.0)


def box_area(bounds: Bounds, size: Size) -> float:
    """Return the area of the part of a box xyxy px that lies inside an image of `(height, width)`, px²."""
    left, top, right, bottom = bounds
    width, height = min(right, size[1]) - max(left, 0), min(bottom, size[0]) - max(top, 0)
    return width * height if width > 0 and height > 0 else 0.0


def _corners(box: Any) -> Bounds:
    """Return a box as the file has it, xywh px, as xyxy; an empty one where it is no box."""
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return 0.0, 0.0, 0.0, 0.0
    x, y, width, height = box
    return x, y, x + width, y + height


def crossing_objects(items: Sequence[CheckedObject]) -> list[bool]:
    """Return for each object whether one of its polygons crosses itself."""
    parts = [item.mask.parts if isinstance(item.mask, Polygons) else [] for item in items]
    crosses = iter(self_crossing([ring for rings in parts for ring in rings]).tolist())
    return [sum(next(crosses) for _ in rings) > 0 for rings in parts]


def self_crossing(rings: Sequence[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Return which closed polygons have two edges that cross in a point inside both.

    Polygons that only touch themselves, as those do that go round a hole by a bridge, cross nothing. A sweep over x
    finds the pairs of edges to compare, for all polygons at once: each lies in a strip of x of its own.

    Args:
        rings: float32 `[P, 2]` x, y px each, P >= 3.

    Returns:
        bool `[R]`.
    """
    crosses = np.zeros(len(rings), dtype=np.bool_)
    if not len(rings):
        return crosses
    lengths = np.array([len(ring) for ring in rings])
    firsts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(rings)), lengths)
    start = np.concatenate(rings).astype(np.float64)
    after = np.arange(1, len(start) + 1)
    after[firsts + lengths - 1] = firsts
    end = start[after]
    low, high = np.minimum(start, end), np.maximum(start, end)
    # move the polygons apart in x
    left = np.minimum.reduceat(low[:, 0], firsts)
    width = np.maximum.reduceat(high[:, 0], firsts) - left + 1
    shift = (np.cumsum(width) - width - left)[owner]
    order = np.argsort(low[:, 0] + shift, kind="stable")
    begins, ends = (low[:, 0] + shift)[order], (high[:, 0] + shift)[order]
    # edges that begin, in x, before the edge at hand ends
    followers = np.maximum(np.searchsorted(begins, ends, side="left") - np.arange(len(order)) - 1, 0)
    for first, second in _pairs(followers):
        i, j = order[first], order[second]
        near = (low[i, 1] < high[j, 1]) & (low[j, 1] < high[i, 1])
        i, j = i[near], j[near]
        apart = _side(start[i], end[i], start[j]) * _side(start[i], end[i], end[j]) < 0
        apart &= _side(start[j], end[j], start[i]) * _side(start[j], end[j], end[i]) < 0
        crosses[owner[i[apart]]] = True
    return crosses


def _pairs(followers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield each place with each of the `followers` places behind it, about `PAIRS` pairs at a time."""
    total = np.cumsum(followers)
    stops = np.searchsorted(total, np.arange(PAIRS, total[-1] + PAIRS, PAIRS)) + 1
    for begin, stop in pairwise([0, *stops.tolist()]):
        counts = followers[begin:stop]
        first = np.repeat(np.arange(begin, begin + len(counts)), counts)
        within = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        yield first, first + within + 1


def _side(
    start: NDArray[np.float64], end: NDArray[np.float64], point: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return on which side of the line from `start` to `end` a point lies; all `[N, 2]` px, the result `[N]`."""
    along, towards = end - start, point - start
    return along[:, 0] * towards[:, 1] - along[:, 1] * towards[:, 0]
