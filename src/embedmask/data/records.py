"""Check each annotation record, and compare its values with its mask."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.data.consistency import check_areas, check_boxes, find_repeats
from embedmask.data.packed import GroundTruth, PackedAnnotations
from embedmask.data.problems import (
    DEGENERATE,
    BadObject,
    CheckedObject,
    OnIssue,
    OnObject,
    Problem,
    ProblemType,
)
from embedmask.data.segmentation import Segmentation, parse_segmentation
from embedmask.structures import Size

FAR = 1e9
"""Limit of plausible coordinates, px."""
EXACT = 2**53
"""Below this, a float represents a single integer."""
CROWD: Mapping[Any, bool] = {None: False, 0: False, 1: True, "0": False, "1": True}
"""Accepted values of `iscrowd`; `true`, `false`, 0.0 and 1.0 equal the numbers."""
NUMBERS = frozenset((int, float, np.float64, np.float32, np.int64, np.int32))
NO_BOX = (np.nan,) * 4
EXAMPLES = 3
"""Number of annotations that a warning names."""
WARNINGS: Mapping[str, tuple[ProblemType, str]] = {
    "id": ("duplicate id", "have the id of another annotation; all are used; make the ids unique"),
    "area": ("bad area", "have an 'area' that is not a number above 0; it is taken from their masks"),
    "other area": ("bad area", "have an 'area' that does not match their masks; it is taken from the masks"),
    "bbox": ("bad box", "have a 'bbox' that is not [x, y, width, height]; it is taken from their masks"),
    "corners": (
        "bad box",
        "have a 'bbox' of two corners instead of [x, y, width, height]; it is taken from their masks",
    ),
    "other box": ("bad box", "have a 'bbox' that does not match their masks; it is taken from the masks"),
    "crowd": (
        "crowd",
        "are crowds (iscrowd 1): they are not learned, and results inside them are not counted; "
        "if each is a single object, as drawn with CVAT's brush, set its iscrowd to 0",
    ),
    "repeat": (
        "object twice",
        "repeat an object of their image and class, with the same mask or nearly so; "
        "all are learned and counted: remove one of each",
    ),
}
"""Warnings that are reported once for all annotations concerned: type of problem and message."""


def as_id(value: Any) -> int | None:
    """Return an integer, or a float with an integer value (12.0), as int; None for anything else."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return int(value) if isinstance(value, np.integer) else None


@dataclass
class RecordCheck:
    """Checker of an annotation list: first each record, then all of them against their masks.

    Attributes:
        path, on_issue: as in `check_annotations`.
        images: file name and `(height, width)` by image id.
        labels: label by category id.
        inspect: called with every accepted object except crowds.
        dropped: positions of the dropped objects in the list.
        dropped_parts: number of polygons dropped from objects that keep other polygons.
    """

    path: Path
    on_issue: OnIssue
    images: Mapping[int, tuple[str, Size]]
    labels: Mapping[int, int]
    inspect: OnObject | None = None
    dropped: list[int] = field(default_factory=list)
    dropped_parts: int = 0
    _known_ids: set[Any] = field(default_factory=set)
    _doubtful: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in WARNINGS})
    _has_origins: bool = False

    def pack(self, entries: list[Any]) -> PackedAnnotations:
        """Check all annotations and pack them in the order of `images`. Empties `entries` to save memory."""
        masks: dict[int, list[Segmentation]] = {image_id: [] for image_id in self.images}
        # rows of 7 numbers: label, crowd, area, box; an array of float64 takes a quarter of a list's memory
        rows = {image_id: array("d") for image_id in self.images}
        names: dict[int, list[Any]] = {image_id: [] for image_id in self.images}
        for index, entry in enumerate(entries):
            entries[index] = None
            mask = self._mask(entry, index)
            if mask is None:
                continue
            name, row = self._name_and_row(entry, index)
            image_id, crowd = int(entry["image_id"]), CROWD[entry.get("iscrowd")]
            masks[image_id].append(mask)
            rows[image_id].extend(row)
            names[image_id].append(name)
            if self.inspect is not None and not crowd:
                size, where = self.images[image_id][1], self._where(entry, index)
                label = self.labels[entry["category_id"]]
                self.inspect(CheckedObject(mask, label, image_id, size, where, entry.get("bbox")))
        # release the masks and the rows of each image as soon as they are packed
        packed = PackedAnnotations(
            GroundTruth.from_rows(np.frombuffer(rows.pop(i)).reshape(-1, 7), masks.pop(i), size, i)
            for i, (_, size) in self.images.items()
        )
        self._report_doubtful(packed, [name for origins in names.values() for name in origins], len(entries))
        return packed

    def _reference_fault(self, entry: Any, index: int) -> Problem | None:
        """Check the image, the category, `iscrowd` and the id of an annotation; return a problem, if there is one."""
        if not isinstance(entry, dict):
            message = f"annotation {index} of the list is not an object with image_id, category_id, ..."
            return Problem("bad record", f"{self.path}: {message}")
        image_id, category, crowd = entry.get("image_id"), entry.get("category_id"), entry.get("iscrowd")
        kind: ProblemType = "bad record"
        if as_id(image_id) not in self.images:
            kind = "unknown image"
            fault = f"names image {image_id!r}, which 'images' lacks; add the image or remove the annotation"
        elif as_id(category) not in self.labels:
            kind = "unknown category"
            fault = f"of image {image_id} names category {category!r}, which the list of classes lacks; "
            fault += "add the class or remove the annotation"
        elif isinstance(crowd, (list, dict)) or crowd not in CROWD:
            fault = f"of image {image_id} has iscrowd {crowd!r}; write 0 or 1"
        elif isinstance(entry.get("id"), (list, dict)):
            fault = f"of image {image_id} has an id that is not a number; give it a number"
        else:
            return None
        return Problem(kind, f"{self._origin(entry, index)} {fault}")

    def _mask(self, entry: Any, index: int) -> Segmentation | None:
        """Check an annotation, report its problems and return its mask; None if it is dropped."""
        problem = self._reference_fault(entry, index)
        if problem is not None:
            self.on_issue(problem)
            self.dropped.append(index)
            return None
        faults: list[BadObject] = []
        mask = None
        try:
            size = self.images[entry["image_id"]][1]
            mask = parse_segmentation(entry.get("segmentation"), size, faults.append)
        except BadObject as error:
            faults.append(error)
        is_crowd = CROWD[entry.get("iscrowd")]
        for fault in faults:
            where = self._where(entry, index)
            if is_crowd:  # a crowd is not learned, so training can do without it
                self.on_issue(Problem(fault.kind, f"{where} {fault}; this crowd is left out", fatal=False))
                continue
            part = "polygons" if mask is not None else "objects"
            fix = f", or leave such {part} out with --degenerate drop (train: --data.degenerate drop)"
            self.on_issue(Problem(fault.kind, f"{where} {fault}{fix if fault.kind in DEGENERATE else ''}"))
        if mask is not None:
            self.dropped_parts += len(faults)
        elif not is_crowd:
            self.dropped.append(index)
        return mask

    def _name_and_row(self, entry: dict[str, Any], index: int) -> tuple[Any, tuple[float, ...]]:
        """Return the name of an annotation for messages, and its label, crowd flag, area and box.

        Unusable values are noted as doubtful and become NaN; values that the file does not state are only NaN.
        """
        if "origin" in entry:
            self._has_origins = True
            name = entry["origin"]
        elif entry.get("id") is None:
            name = f"{index} of the list"
        else:
            name = entry["id"]
            if name in self._known_ids:
                self._doubtful["id"].append(name)
            self._known_ids.add(name)
        crowd = CROWD[entry.get("iscrowd")]
        if crowd:
            self._doubtful["crowd"].append(name)
        area, box = entry.get("area", np.nan), entry.get("bbox", NO_BOX)
        if not (type(area) in NUMBERS and 0 < area < FAR**2):  # NaN fails the comparison
            if "area" in entry:
                self._doubtful["area"].append(name)
            area = np.nan
        # a box: finite numbers, with width and height above 0; NaN fails the comparisons
        is_list = isinstance(box, (list, tuple, np.ndarray)) and len(box) == 4
        is_box = is_list and NUMBERS.issuperset(map(type, box)) and all(abs(value) < FAR for value in box)
        if not (is_box and box[2] > 0 and box[3] > 0):
            if "bbox" in entry:
                self._doubtful["bbox"].append(name)
            box = NO_BOX
        return name, (self.labels[entry["category_id"]], crowd, area, *box)

    def _report_doubtful(self, packed: PackedAnnotations, names: Sequence[Any], total: int) -> None:
        """Compare areas, boxes and masks, and report each type of doubtful annotation once.

        Args:
            packed: annotations; contradictory areas and boxes are set to NaN.
            names: names of the packed annotations, in their order.
            total: number of annotations of the file.
        """
        bounds, areas = packed.measure()
        corners, other_boxes = check_boxes(packed, bounds)
        checks = {
            "other area": check_areas(packed, bounds, areas),
            "corners": corners,
            "other box": other_boxes,
        }
        for key, numbers in checks.items():
            self._doubtful[key] += [names[number] for number in numbers.tolist()]
        repeats = sorted(find_repeats(packed, bounds, areas).items())
        self._doubtful["repeat"] += [f"{names[repeat]} like {names[other]}" for repeat, other in repeats]
        for key, doubtful in self._doubtful.items():
            if doubtful:
                kind, words = WARNINGS[key]
                examples = ", ".join(map(str, doubtful[:EXAMPLES])) + (
                    ", ..." if len(doubtful) > EXAMPLES else ""
                )
                ids = "" if self._has_origins else "id " if len(doubtful) == 1 else "ids "
                message = f"{self.path}: {len(doubtful)} of {total} annotations ({ids}{examples}) {words}"
                self.on_issue(Problem(kind, message, fatal=False))

    def _where(self, entry: Mapping[str, Any], index: int) -> str:
        """Return the annotation and its image, for messages."""
        image_id = int(entry["image_id"])
        return f"{self._origin(entry, index)} of image {image_id} ({self.images[image_id][0]})"

    def _origin(self, entry: Mapping[str, Any], index: int) -> str:
        """Return the place of the annotation, or else its id or position in the list, for messages."""
        return entry.get("origin") or f"{self.path}: annotation {entry.get('id', f'{index} of the list')}"
