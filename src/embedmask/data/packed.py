"""Annotations of a split, packed into a few long arrays to save memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.data.segmentation import Polygons, RunLengths, Segmentation, pixel_area
from embedmask.run_lengths import tight_boxes
from embedmask.structures import Columns, Size

CHUNK = 1 << 14
"""Number of objects measured at once."""


@dataclass(frozen=True)
class Annotations(Columns):
    """Objects of one image in the coordinates of the annotation file, with masks that are not painted yet.

    Attributes:
        labels: int64 `[G]`, 0..C-1.
        segmentations: G masks.
        size: `(height, width)` of the image in the annotation file.
        image_id: id of the image in the annotation file.
    """

    labels: NDArray[np.int64]
    segmentations: list[Segmentation]
    size: Size
    image_id: int

    def __len__(self) -> int:
        return len(self.segmentations)


@dataclass(frozen=True)
class GroundTruth(Annotations):
    """All annotations of one image, including crowds, with the stated areas and boxes that agree with the masks.

    Attributes:
        crowd: bool `[G]`; crowds are not learned.
        areas: float64 `[G]`, px²; NaN where the area of the mask is used.
        boxes: float32 `[G, 4]`, xywh px; NaN where the box of the mask is used.
    """

    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    boxes: NDArray[np.float32]

    @classmethod
    def from_rows(
        cls, rows: NDArray[np.float64], segmentations: list[Segmentation], size: Size, image_id: int
    ) -> GroundTruth:
        """Return the annotations of an image from rows of label, crowd flag, area and box, float64 `[G, 7]`."""
        labels, crowd = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.bool_)
        areas, boxes = rows[:, 2].copy(), rows[:, 3:].astype(np.float32)
        return cls(labels, segmentations, size, image_id, crowd, areas, boxes)

    def without_crowds(self) -> GroundTruth:
        """Return the annotations that are not crowds."""
        if not self.crowd.any():
            return self
        return self.select(np.flatnonzero(~self.crowd))

    def known_areas(self) -> list[float]:
        """Return the area of each object, px²: the one stated in the file, or else the pixels of its mask."""
        pairs = zip(self.areas.tolist(), self.segmentations, strict=True)
        return [pixel_area(mask, self.size) if math.isnan(area) else area for area, mask in pairs]


class PackedAnnotations:
    """Annotations of all images in a few long arrays: a sequence of `GroundTruth`.

    Millions of small Python objects would be copied into every worker process, by pickling or, after a fork, because
    of their reference counts. Arrays are shared or copied as a whole.

    N counts the objects of all images. An object has one part for each polygon, or a single part of run lengths. All
    parts lie one after the other in one uint32 array: polygons as the bits of their float32 coordinates, run lengths
    as their counts. Images, objects and parts are stored by the index at which each starts, followed by the total.

    Attributes:
        labels: labels of all objects, image by image, int64 `[N]`.
        crowd, areas, boxes: columns of `GroundTruth`, `[N]`, `[N]` and `[N, 4]`.
    """

    def __init__(self, items: Iterable[GroundTruth]) -> None:
        images: list[tuple[Size, int]] = []
        image_starts, object_starts, is_runs = [0], [0], []
        parts: list[NDArray[np.uint32]] = []
        columns: list[tuple[NDArray[Any], ...]] = [_NO_COLUMNS]
        for item in items:
            for segmentation in item.segmentations:
                if isinstance(segmentation, RunLengths):
                    parts.append(segmentation.counts.astype(np.uint32))
                else:
                    parts.extend(part.ravel().view(np.uint32) for part in segmentation.parts)
                object_starts.append(len(parts))
                is_runs.append(isinstance(segmentation, RunLengths))
            columns.append((item.labels, item.crowd, item.areas, item.boxes))
            images.append((item.size, item.image_id))
            image_starts.append(len(is_runs))
        self._images = images
        self._image_starts = np.array(image_starts, dtype=np.int64)  # [images + 1], in objects
        self._object_starts = np.array(object_starts, dtype=np.int64)  # [N + 1], in parts
        self._is_runs = np.array(is_runs, dtype=np.bool_)  # [N]
        self._part_starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)  # [parts + 1], in values
        self._values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
        self.labels, self.crowd, self.areas, self.boxes = map(np.concatenate, zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> GroundTruth:
        index = range(len(self))[index]  # resolves negative indices, raises IndexError
        size, image_id = self._images[index]
        start, end = self._image_starts[index : index + 2].tolist()
        return GroundTruth(
            self.labels[start:end].copy(),
            [self._segmentation(i, size) for i in range(start, end)],
            size,
            image_id,
            self.crowd[start:end],
            self.areas[start:end],
            self.boxes[start:end],
        )

    def digest(self) -> str:
        """Return a digest of all images and of the labels and masks of all objects, including crowds."""
        digest = hashlib.sha256(repr(self._images).encode())
        objects = np.stack((self._object_starts[1:], self._is_runs), axis=1)
        ends = self._image_starts[1:], objects, self._part_starts[1:]
        for values in (self.labels, self.crowd, *ends, self._values):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    @property
    def owners(self) -> NDArray[np.int64]:
        """Return the index of the image of each object, int64 `[N]`."""
        return np.repeat(np.arange(len(self)), np.diff(self._image_starts))

    def mask(self, number: int) -> tuple[Segmentation, Size]:
        """Return the mask of object `number` (0..N-1) and the `(height, width)` of its image."""
        size, _ = self._images[int(np.searchsorted(self._image_starts, number, side="right")) - 1]
        return self._segmentation(number, size), size

    def _segmentation(self, index: int, size: Size) -> Segmentation:
        # parts start..end of the object, then the values of each part
        start, end = self._object_starts[index : index + 2].tolist()
        parts = [self._values[i:j] for i, j in pairwise(self._part_starts[start : end + 1].tolist())]
        if self._is_runs[index]:
            return RunLengths(parts[0].astype(np.int64), size)
        return Polygons([part.view(np.float32).reshape(-1, 2) for part in parts])

    def measure(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Measure the enclosing box and the area of every object, without painting the masks.

        Returns:
            Boxes, float32 `[N, 4]` xyxy px, clipped to the image; areas, float64 `[N]` px². Areas of polygons are
            sums of the shoelace formula over their parts; they differ from the number of pixels where an outline
            crosses itself.
        """
        bounds = np.zeros((len(self._is_runs), 4), dtype=np.float32)
        areas = np.zeros(len(self._is_runs))
        for start in range(0, len(self._is_runs), CHUNK):
            is_runs = self._is_runs[start : start + CHUNK]
            for is_kind, measure in ((~is_runs, self._measure_polygons), (is_runs, self._measure_runs)):
                numbers = np.flatnonzero(is_kind) + start
                if len(numbers):
                    bounds[numbers], areas[numbers] = measure(numbers)
        sizes = self._sizes()[self.owners]
        return np.clip(bounds, 0, sizes[:, [1, 0, 1, 0]].astype(np.float32)), areas

    def _sizes(self) -> NDArray[np.int64]:
        """Return the `(height, width)` of all images, int64 `[images, 2]`."""
        return np.array([size for size, _ in self._images], dtype=np.int64).reshape(-1, 2)

    def _measure_polygons(
        self, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Measure the objects at `numbers`, which are polygons; `numbers` is ascending and not empty."""
        # number of parts of each object [n], number of values of each part [P]
        parts, counts = _members(self._object_starts, numbers)
        places, lengths = _members(self._part_starts, parts)
        points = self._values[places].view(np.float32).reshape(-1, 2)  # [Q, 2] x, y px
        part_starts = (np.cumsum(lengths) - lengths) // 2  # first point of each part, [P]
        object_starts = np.cumsum(counts) - counts  # first part of each object, [n]
        first = part_starts[object_starts]  # first point of each object, [n]
        bounds = np.hstack([np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)])
        # Shoelace formula relative to the first point of each part: precise far from the origin, and the term that
        # closes the outline is 0. Terms from the last point of a part to the next part do not count.
        x, y = (points - np.repeat(points[part_starts], lengths // 2, axis=0)).astype(np.float64).T
        cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
        cross[part_starts[1:] - 1] = 0
        part_areas = np.abs(np.add.reduceat(cross, part_starts)) / 2
        return bounds, np.add.reduceat(part_areas, object_starts)

    def _measure_runs(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Measure the objects at `numbers`, which are run lengths, each of one part."""
        places, lengths = _members(self._part_starts, self._object_starts[numbers])
        counts = self._values[places].astype(np.int64)  # runs of all objects, [T]
        # end (exclusive) of each run, counted from the first pixel of its own image, [T]
        stops = np.cumsum(counts)
        object_starts = np.cumsum(lengths) - lengths
        stops -= np.repeat(stops[object_starts] - counts[object_starts], lengths)
        # keep the F foreground runs (odd places of each object) that are not empty
        is_object = (np.arange(len(counts)) - np.repeat(object_starts, lengths)) % 2 == 1
        filled = np.flatnonzero(is_object & (counts > 0))
        owner = np.repeat(np.arange(len(numbers)), lengths)[filled]
        heights = self._sizes()[self.owners[numbers], 0][owner]
        begins = np.flatnonzero(np.diff(owner, prepend=-1))  # first run of each object, [n]
        boxes = tight_boxes((stops - counts)[filled], stops[filled], begins, heights)
        return boxes.astype(np.float32), np.add.reduceat(counts[filled], begins).astype(np.float64)


_NO_COLUMNS = (
    np.zeros(0, np.int64),
    np.zeros(0, np.bool_),
    np.zeros(0, np.float64),
    np.zeros((0, 4), np.float32),
)


def _members(starts: NDArray[np.int64], groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return the indices of the members of some groups, concatenated, and the number of members of each group.

    Args:
        starts: index of the first member of each group, then the total.
        groups: indices of the groups.
    """
    first = starts[groups]
    lengths = starts[groups + 1] - first
    # place of the first member of each group in the result
    offsets = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(first - offsets, lengths), lengths
