"""Checks of single annotation records, and of each record against its mask."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.data.consistency import check_areas, check_boxes, find_repeats
from embedmask.data.packed import GroundTruth, PackedAnnotations
from embedmask.data.problems import DEGENERATE, BadObject, CheckedObject, Inspect, Kind, OnIssue, Problem
from embedmask.data.segmentation import Segmentation, parse_segmentation
from embedmask.structures import Size

FAR = 1e9
"""No coordinate is as large, px."""
EXACT = 2**53
"""Up to here a float stands for one whole number."""
CROWD: Mapping[Any, bool] = {None: False, 0: False, 1: True, "0": False, "1": True}
"""The values of `iscrowd`; `true`, `false`, 0.0 and 1.0 equal the numbers."""
NUMBERS = frozenset((int, float, np.float64, np.float32, np.int64, np.int32))
NO_BOX = (np.nan,) * 4
EXAMPLES = 3
"""Annotations that a warning names."""
WARNINGS: Mapping[str, tuple[Kind, str]] = {
    "id": ("duplicate id", "have the id of another; all are used, but only a unique id can be found again"),
    "area": ("bad area", "have an 'area' that is no number above 0; it is taken from their masks"),
    "other area": ("bad area", "have an 'area' that is not that of their masks; it is taken from the masks"),
    "bbox": ("bad box", "have a 'bbox' that is not [x, y, width, height]; it is taken from their masks"),
    "corners": (
        "bad box",
        "have a 'bbox' of two corners instead of [x, y, width, height]; it is taken from their masks",
    ),
    "other box": ("bad box", "have a 'bbox' that is not about their masks; it is taken from the masks"),
    "crowd": (
        "crowd",
        "are crowds (iscrowd 1): they are not learned, and results inside them are not counted; "
        "where each is a single object, as of CVAT's brush, set its iscrowd to 0",
    ),
    "repeat": (
        "object twice",
        "repeat an object of their image and class, with the same mask or nearly so; "
        "all are learned and counted: remove one of each",
    ),
}
"""What is told of several annotations at once: the kind of problem, and the words."""


def as_id(value: Any) -> int | None:
    """Return a whole number as int, also where it is written as a float (12.0); None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return int(value) if isinstance(value, np.integer) else None


@dataclass
class RecordCheck:
    """Checks the list of annotations, one by one, then all against their masks.

    Attributes:
        path, on_issue: as in `check_annotations`.
        images: id -> file name and size.
        labels: category id -> label.
        inspect: called with every object that is kept, crowds left out.
        dropped: positions in the list of the objects that were left out.
        dropped_parts: polygons that were left out of objects which have others.
    """

    path: Path
    on_issue: OnIssue
    images: Mapping[int, tuple[str, Size]]
    labels: Mapping[int, int]
    inspect: Inspect | None = None
    dropped: list[int] = field(default_factory=list)
    dropped_parts: int = 0
    _known_ids: set[Any] = field(default_factory=set)
    _doubtful: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in WARNINGS})
    _has_origins: bool = False

    def pack(self, entries: list[Any]) -> PackedAnnotations:
        """Return the checked annotations, in the order of `images`; `entries` is emptied to save memory."""
        masks: dict[int, list[Segmentation]] = {image_id: [] for image_id in self.images}
        rows = {image_id: array("d") for image_id in self.images}  # label, crowd, area, box
        names: dict[int, list[Any]] = {image_id: [] for image_id in self.images}
        for index, entry in enumerate(entries):
            entries[index] = None
            fault = self._reference_fault(entry, index)
            if fault is not None:
                self.on_issue(fault)
                self.dropped.append(index)
                continue
            mask = self._mask(entry, index)
            if mask is not None:
                name = self._name(entry, index)
                image_id = int(entry["image_id"])
                masks[image_id].append(mask)
                rows[image_id].extend(self._row(entry, name))
                names[image_id].append(name)
                if self.inspect is not None and not CROWD[entry.get("iscrowd")]:
                    self.inspect(self._checked(entry, index, mask))
        packed = PackedAnnotations(self._ground_truths(masks, rows))
        self._check_masks(packed, [name for own in names.values() for name in own])
        total = len(entries)
        for key, found in self._doubtful.items():
            if found:
                kind, words = WARNINGS[key]
                self.on_issue(Problem(kind, f"{self._count(found, total)} {words}", fatal=False))
        return packed

    def _ground_truths(
        self, masks: dict[int, list[Segmentation]], rows: dict[int, array[float]]
    ) -> Iterator[GroundTruth]:
        for image_id, (_, size) in self.images.items():
            columns = np.frombuffer(rows.pop(image_id)).reshape(-1, 7)
            yield GroundTruth(
                columns[:, 0].astype(np.int64),
                masks.pop(image_id),
                size,
                image_id,
                columns[:, 1].astype(np.bool_),
                columns[:, 2].copy(),
                columns[:, 3:].astype(np.float32),
            )

    def _reference_fault(self, entry: Any, index: int) -> Problem | None:
        """Return the fault in the image, the category or `iscrowd` that an annotation names."""
        if not isinstance(entry, dict):
            message = f"annotation {index} of the list is not an object with image_id, category_id, ..."
            return Problem("bad record", f"{self.path}: {message}")
        image_id, category, crowd = entry.get("image_id"), entry.get("category_id"), entry.get("iscrowd")
        if as_id(image_id) not in self.images:
            message = f"names image {image_id!r}, which 'images' lacks; add the image or remove it"
            return Problem("unknown image", f"{self._origin(entry, index)} {message}")
        if as_id(category) not in self.labels:
            message = f"of image {image_id} names category {category!r}, which the list of classes lacks"
            return Problem(
                "unknown category", f"{self._origin(entry, index)} {message}; add it or remove this"
            )
        if isinstance(crowd, (list, dict)) or crowd not in CROWD:
            message = f"of image {image_id} has iscrowd {crowd!r}; write 0 or 1"
            return Problem("bad record", f"{self._origin(entry, index)} {message}")
        if isinstance(entry.get("id"), (list, dict)):
            message = f"of image {image_id} has an id that is no number; give it one"
            return Problem("bad record", f"{self._origin(entry, index)} {message}")
        return None

    def _mask(self, entry: dict[str, Any], index: int) -> Segmentation | None:
        """Return the mask of an annotation, None where its checks failed."""
        name, size = self.images[entry["image_id"]]
        faults: list[BadObject] = []
        mask = None
        try:
            mask = parse_segmentation(entry.get("segmentation"), size, faults.append)
        except BadObject as error:
            faults.append(error)
        is_crowd = CROWD[entry.get("iscrowd")]
        for fault in faults:
            where = f"{self._origin(entry, index)} of image {entry['image_id']} ({name})"
            if is_crowd:  # nothing is learned from it
                self.on_issue(Problem(fault.kind, f"{where} {fault}; this crowd is left out", fatal=False))
                continue
            part = "polygons" if mask is not None else "objects"
            fix = f", or leave such {part} out with --augment.degenerate drop"
            self.on_issue(Problem(fault.kind, f"{where} {fault}{fix if fault.kind in DEGENERATE else ''}"))
        if mask is not None:
            self.dropped_parts += len(faults)
        elif not is_crowd:
            self.dropped.append(index)
        return mask

    def _checked(self, entry: Mapping[str, Any], index: int, mask: Segmentation) -> CheckedObject:
        """Return a kept object with all that names it."""
        image_id = int(entry["image_id"])
        name, size = self.images[image_id]
        where = f"{self._origin(entry, index)} of image {image_id} ({name})"
        return CheckedObject(
            mask, self.labels[entry["category_id"]], image_id, size, where, entry.get("bbox")
        )

    def _row(self, entry: dict[str, Any], name: Any) -> tuple[float, ...]:
        """Return label, crowd, area and box; nan where the mask gives them."""
        crowd = CROWD[entry.get("iscrowd")]
        if crowd:
            self._doubtful["crowd"].append(name)
        area, box = entry.get("area", np.nan), entry.get("bbox", NO_BOX)
        if not _is_area(area):
            self._report_stated("area", entry, name)
            area = np.nan
        if not _is_box(box):
            self._report_stated("bbox", entry, name)
            box = NO_BOX
        return self.labels[entry["category_id"]], crowd, area, *box

    def _report_stated(self, key: str, entry: dict[str, Any], name: Any) -> None:
        """Note a value that cannot be used; a file that does not state it says nothing wrong."""
        if key in entry:
            self._doubtful[key].append(name)

    def _name(self, entry: dict[str, Any], index: int) -> Any:
        """Return the id of an annotation or where it stands, for examples; ids are optional."""
        if "origin" in entry:
            self._has_origins = True
            return entry["origin"]
        number = entry.get("id")
        if number is None:
            return f"{index} of the list"
        if number in self._known_ids:
            self._doubtful["id"].append(number)
        self._known_ids.add(number)
        return number

    def _check_masks(self, packed: PackedAnnotations, names: Sequence[Any]) -> None:
        """Compare areas, boxes and objects with the masks."""
        bounds, areas = packed.measure()
        corners, other_boxes = check_boxes(packed, bounds)
        for key, numbers in (
            ("other area", check_areas(packed, bounds, areas)),
            ("corners", corners),
            ("other box", other_boxes),
        ):
            self._doubtful[key] += [names[number] for number in numbers.tolist()]
        repeats = find_repeats(packed, bounds, areas)
        self._doubtful["repeat"] += [
            f"{names[number]} like {names[repeats[number]]}" for number in sorted(repeats)
        ]

    def _count(self, found: list[Any], total: int) -> str:
        examples = ", ".join(map(str, found[:EXAMPLES])) + (", ..." if len(found) > EXAMPLES else "")
        ids = "" if self._has_origins else "id " if len(found) == 1 else "ids "
        return f"{self.path}: {len(found)} of {total} annotations ({ids}{examples})"

    def _origin(self, entry: Mapping[str, Any], index: int) -> str:
        return entry.get("origin") or f"{self.path}: annotation {entry.get('id', f'{index} of the list')}"


def _is_area(value: Any) -> bool:
    return type(value) in NUMBERS and bool(0 < value < FAR**2)  # false for nan


def _is_box(value: Any) -> bool:
    """Return whether a value is xywh: finite numbers, with an extent."""
    if (
        not isinstance(value, (list, tuple, np.ndarray))
        or len(value) != 4
        or not NUMBERS.issuperset(map(type, value))
    ):
        return False
    x, y, width, height = value
    return bool(-FAR < x < FAR and -FAR < y < FAR and 0 < width < FAR and 0 < height < FAR)  # false for nan
