"""The annotations of a split in a few long arrays, whose size is that of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.data.segmentation import Polygons, RunLengths, Segmentation, pixel_area
from embedmask.structures import Size

CHUNK = 1 << 14
"""Objects that are measured at once."""


@dataclass(frozen=True)
class Annotations:
    """Objects of one image in the file's frame, masks not yet painted.

    Attributes:
        labels: int64 `[G]`, 0..C-1.
        segmentations: G objects.
        size: `(height, width)` of the image, as the file says.
        image_id: the file's id.
    """

    labels: NDArray[np.int64]
    segmentations: list[Segmentation]
    size: Size
    image_id: int

    def __len__(self) -> int:
        return len(self.segmentations)


@dataclass(frozen=True)
class GroundTruth(Annotations):
    """All annotations of one image, crowds included, with the values of the file that fit their masks.

    Attributes:
        crowd: bool `[G]`; crowds are not learned.
        areas: float64 `[G]`, px²; nan: the area is that of the mask.
        boxes: float32 `[G, 4]`, xywh px; nan: the box is that of the mask.
    """

    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    boxes: NDArray[np.float32]

    def without_crowds(self) -> GroundTruth:
        """Return the objects to learn."""
        if not self.crowd.any():
            return self
        kept = np.flatnonzero(~self.crowd)
        return GroundTruth(
            self.labels[kept],
            [self.segmentations[i] for i in kept],
            self.size,
            self.image_id,
            self.crowd[kept],
            self.areas[kept],
            self.boxes[kept],
        )

    def known_areas(self) -> list[float]:
        """Return the area of each object, px²: the file's, or the number of pixels of its mask."""
        pairs = zip(self.areas.tolist(), self.segmentations, strict=True)
        return [pixel_area(mask, self.size) if area != area else area for area, mask in pairs]  # noqa: PLR0124


class PackedAnnotations:
    """The annotations of all images, in a few long arrays.

    Millions of small objects would be copied into every worker process, by pickling or, after a fork, by
    their reference counts; arrays are shared, or copied in one go.

    Attributes:
        labels: int64 `[N]`, of all objects, image by image.
        crowd, areas, boxes: columns of `GroundTruth`, `[N]`, `[N]` and `[N, 4]`.
    """

    def __init__(self, items: Iterable[GroundTruth]) -> None:
        images: list[tuple[Size, int]] = []
        image_ends: list[int] = []
        objects: list[tuple[int, bool]] = []
        parts: list[NDArray[np.uint32]] = []
        columns: list[tuple[NDArray[Any], ...]] = [_NO_COLUMNS]
        for item in items:
            for segmentation in item.segmentations:
                parts.extend(_pack(segmentation))
                objects.append((len(parts), isinstance(segmentation, RunLengths)))
            columns.append((item.labels, item.crowd, item.areas, item.boxes))
            images.append((item.size, item.image_id))
            image_ends.append(len(objects))
        self._images = images
        self._image_ends = np.array(image_ends, dtype=np.int64)
        self._objects = np.array(objects, dtype=np.int64).reshape(-1, 2)
        self._part_ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
        self.labels, self.crowd, self.areas, self.boxes = map(np.concatenate, zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> GroundTruth:
        index = range(len(self))[index]
        size, image_id = self._images[index]
        start, end = int(self._image_ends[index - 1]) if index else 0, int(self._image_ends[index])
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
        """Return a digest of the label, the mask and the image of every object, crowds included."""
        digest = hashlib.sha256(repr(self._images).encode())
        for values in (
            self.labels,
            self.crowd,
            self._image_ends,
            self._objects,
            self._part_ends,
            self._values,
        ):
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    @property
    def owners(self) -> NDArray[np.int64]:
        """Return the position of the image of each object, int64 `[N]`."""
        return np.repeat(np.arange(len(self)), np.diff(self._image_ends, prepend=0))

    def mask(self, number: int) -> tuple[Segmentation, Size]:
        """Return the mask of one of the N objects and the size of its image."""
        size, _ = self._images[int(np.searchsorted(self._image_ends, number, side="right"))]
        return self._segmentation(number, size), size

    def _segmentation(self, index: int, size: Size) -> Segmentation:
        end, is_runs = self._objects[index].tolist()
        start = int(self._objects[index - 1, 0]) if index else 0
        ends = self._part_ends[start:end].tolist()
        starts = [int(self._part_ends[start - 1]) if start else 0, *ends[:-1]]
        parts = [self._values[i:j] for i, j in zip(starts, ends, strict=True)]
        if is_runs:
            return RunLengths(parts[0].astype(np.int64), size)
        return Polygons([part.view(np.float32).reshape(-1, 2) for part in parts])

    def measure(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the enclosing box and the area of every object, without painting.

        Returns:
            float32 `[N, 4]` xyxy px inside the image, float64 `[N]` px². Of polygons it is the sum of the areas of
            their parts by the shoelace formula, which differs from their pixels where an outline crosses itself.
        """
        bounds = np.zeros((len(self._objects), 4), dtype=np.float32)
        areas = np.zeros(len(self._objects))
        for start in range(0, len(self._objects), CHUNK):
            is_runs = self._objects[start : start + CHUNK, 1]
            for kind, measure in enumerate((self._measure_polygons, self._measure_runs)):
                numbers = np.flatnonzero(is_runs == kind) + start
                if len(numbers):
                    bounds[numbers], areas[numbers] = measure(numbers)
        sizes = self._sizes()[self.owners]
        return np.clip(bounds, 0, sizes[:, [1, 0, 1, 0]].astype(np.float32)), areas

    def _sizes(self) -> NDArray[np.int64]:
        """Return the sizes of all images, int64 `[M, 2]`."""
        return np.array([size for size, _ in self._images], dtype=np.int64).reshape(-1, 2)

    def _measure_polygons(
        self, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """`measure` of objects that are polygons, `numbers` ascending."""
        # parts of these objects, then the points of these parts
        ends = self._objects[numbers, 0]
        counts = ends - np.where(numbers > 0, self._objects[numbers - 1, 0], 0)
        parts = _ranges(ends - counts, counts)
        part_ends = self._part_ends[parts]
        lengths = part_ends - np.where(parts > 0, self._part_ends[parts - 1], 0)
        points = self._values[_ranges(part_ends - lengths, lengths)].view(np.float32).reshape(-1, 2)
        part_starts = (np.cumsum(lengths) - lengths) // 2
        object_starts = np.cumsum(counts) - counts
        first = part_starts[object_starts]
        bounds = np.hstack([np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)])
        # about the first point of its part, so that the term which closes the outline vanishes
        x, y = (points - np.repeat(points[part_starts], lengths // 2, axis=0)).astype(np.float64).T
        cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)
        cross[part_starts[1:] - 1] = 0  # from one part to the next
        part_areas = np.abs(np.add.reduceat(cross, part_starts)) / 2
        return bounds, np.add.reduceat(part_areas, object_starts)

    def _measure_runs(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """`measure` of objects that are run lengths, each of one part."""
        parts = self._objects[numbers, 0] - 1
        ends = self._part_ends[parts]
        lengths = ends - np.where(parts > 0, self._part_ends[parts - 1], 0)
        counts = self._values[_ranges(ends - lengths, lengths)].astype(np.int64)
        # each run counted from the first pixel of its own image, `stops` exclusive
        stops = np.cumsum(counts)
        object_starts = np.cumsum(lengths) - lengths
        stops -= np.repeat(stops[object_starts] - counts[object_starts], lengths)
        is_object = (np.arange(len(counts)) - np.repeat(object_starts, lengths)) % 2 == 1
        filled = np.flatnonzero(is_object & (counts > 0))
        owner = np.repeat(np.arange(len(numbers)), lengths)[filled]
        first, last = (stops - counts)[filled], stops[filled] - 1
        height = self._sizes()[self.owners[numbers], 0][owner]
        wraps = (
            first // height != last // height
        )  # then the run has the last pixel of a column and the first of another
        tops, bottoms = np.where(wraps, 0, first % height), np.where(wraps, height - 1, last % height)
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        bounds = [
            np.minimum.reduceat(first // height, begins),
            np.minimum.reduceat(tops, begins),
            np.maximum.reduceat(last // height, begins) + 1,
            np.maximum.reduceat(bottoms, begins) + 1,
        ]
        areas = np.add.reduceat(counts[filled], begins)
        return np.stack(bounds, axis=1).astype(np.float32), areas.astype(np.float64)


_NO_COLUMNS = (
    np.zeros(0, np.int64),
    np.zeros(0, np.bool_),
    np.zeros(0, np.float64),
    np.zeros((0, 4), np.float32),
)


def _pack(segmentation: Segmentation) -> list[NDArray[np.uint32]]:
    if isinstance(segmentation, RunLengths):
        return [segmentation.counts.astype(np.uint32)]
    return [part.ravel().view(np.uint32) for part in segmentation.parts]


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `start, start + 1, ...` of each range, one after the other."""
    offsets = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(lengths.sum()) + np.repeat(starts - offsets, lengths))
