"""Annotations as COCO writes them: read once, checked whole, kept small."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from embedmask.data.problems import DEGENERATE, BadObject, Note, Problem, refuse
from embedmask.data.segmentation import Polygons, RunLengths, Segmentation, parse_segmentation
from embedmask.errors import BadInput
from embedmask.structures import Size

Content = dict[str, list[Any]]
"""What a COCO annotation file holds; other layouts are read into the same form."""
FAR = 1e9
"""No coordinate is as large, px."""


@dataclass(frozen=True)
class Annotations:
    """Ground truth of one picture in the file's frame, masks not yet painted.

    Attributes:
        labels: int64 `[G]`, 0..C-1.
        segmentations: G objects.
        size: `(height, width)` of the picture, as the file says.
        image_id: the file's id.
    """

    labels: NDArray[np.int64]
    segmentations: list[Segmentation]
    size: Size
    image_id: int

    def __len__(self) -> int:
        return len(self.segmentations)


class PackedAnnotations:
    """The annotations of all pictures, in a few long arrays.

    Millions of small objects would be copied into every worker process, by pickling or, after a fork, by
    their reference counts; arrays are shared, or copied in one go.
    """

    def __init__(self, items: Iterable[Annotations]) -> None:
        images: list[tuple[Size, int, int]] = []
        objects: list[tuple[int, int, bool]] = []
        parts: list[NDArray[np.uint32]] = []
        for item in items:
            for label, segmentation in zip(item.labels.tolist(), item.segmentations, strict=True):
                is_runs = isinstance(segmentation, RunLengths)
                parts.extend(_pack(segmentation))
                objects.append((label, len(parts), is_runs))
            images.append((item.size, item.image_id, len(objects)))
        self._images = images
        self._objects = np.array(objects, dtype=np.int64).reshape(-1, 3)
        self._part_ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._values = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Annotations:
        index = range(len(self))[index]
        size, image_id, end = self._images[index]
        start = self._images[index - 1][2] if index else 0
        segmentations = [self._segmentation(i, size) for i in range(start, end)]
        return Annotations(self._objects[start:end, 0].copy(), segmentations, size, image_id)

    def digest(self) -> str:
        """Return a digest of the label, the mask and the image of every object."""
        digest = hashlib.sha256(repr(self._images).encode())
        for values in (self._objects, self._part_ends, self._values):
            digest.update(values.data)
        return digest.hexdigest()

    def _segmentation(self, index: int, size: Size) -> Segmentation:
        _, end, is_runs = self._objects[index].tolist()
        start = int(self._objects[index - 1, 1]) if index else 0
        ends = self._part_ends[start:end].tolist()
        starts = [int(self._part_ends[start - 1]) if start else 0, *ends[:-1]]
        parts = [self._values[i:j] for i, j in zip(starts, ends, strict=True)]
        if is_runs:
            return RunLengths(parts[0].astype(np.int64), size)
        return Polygons([part.view(np.float32).reshape(-1, 2) for part in parts])


def _pack(segmentation: Segmentation) -> list[NDArray[np.uint32]]:
    if isinstance(segmentation, RunLengths):
        return [segmentation.counts.astype(np.uint32)]
    return [part.ravel().view(np.uint32) for part in segmentation.parts]


@dataclass(frozen=True)
class AnnotationFile:
    """The ground truth of a split, in the order of its images.

    Attributes:
        class_names: C names, by ascending category id; label i is category `category_ids[i]`.
        category_ids: C ids of the file.
        image_ids: ids of the pictures.
        file_names: their files, relative to the folder of images.
        sizes: `(height, width)` of each.
        annotations: of each picture, crowds left out; empty where a picture has none.
        dropped: places in the list of annotations of objects that were left out for a problem.
    """

    class_names: list[str]
    category_ids: list[int]
    image_ids: list[int]
    file_names: list[str]
    sizes: list[Size]
    annotations: PackedAnnotations
    dropped: list[int]


def read_coco(path: Path, *, compact: bool = True) -> Content:
    """Read a COCO annotation file (`images`, `annotations`, `categories`), if `compact` polygons as arrays.

    COCO's `image_info_*.json` have no annotations.

    Raises:
        BadInput: no such file, not JSON, or keys missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such annotation file; check the path") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not JSON (it is not text); give a COCO annotation file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file") from None
    try:
        with collector_paused():
            content = json.loads(text, object_hook=_compact if compact else None)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); give a COCO annotation file") from None
    if isinstance(content, dict) and path.name.startswith("image_info"):
        content.setdefault("annotations", [])
    keys = ("images", "annotations", "categories")
    missing = [k for k in keys if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if missing:
        raise BadInput(f"{path}: has no list {missing[0]!r}; a COCO file has {', '.join(keys)}")
    return dict(content)


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Polygons become arrays while the file is parsed: as lists, COCO's numbers would need gigabytes."""
    parts = entry.get("segmentation")
    if isinstance(parts, list):
        entry["segmentation"] = [_as_array(part) for part in parts]
    return entry


def _as_array(part: Any) -> Any:
    try:
        return np.array(part, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        return part  # the check of its annotation says what is wrong


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Millions of new objects, none in cycles: looking for some would take 40 % of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_annotations(content: Content, path: Path, note: Note = refuse) -> AnnotationFile:
    """Check what a COCO file holds; every reader's result comes through here.

    Nothing is dropped silently: an object that cannot be trained on is a problem. Crowd regions (`iscrowd`
    1) are left out of the training targets; the evaluator reads them from the file itself.

    Args:
        content: the lists `images`, `annotations`, `categories`; annotations are used up, to save memory. An
            annotation may say where it stands (`origin`); otherwise its id is named.
        path: what messages call the file.
        note: is told of every problem; what is wrong is left out when it returns.

    Raises:
        BadInput: by `refuse`: keys missing, an annotation of an unknown image or category, ids given twice,
            a polygon with fewer than 3 points, a box without area or outside its image, a mask of another
            size, ...; names the annotation, its image and the file.
    """
    with collector_paused():
        categories = _categories(content["categories"], path, note)
        images = _images(content["images"], path, note)
        check = _ObjectCheck(
            path, note, images, {category: label for label, category in enumerate(categories)}
        )
        per_image = check.group(content.pop("annotations"))
        ids = list(images)
        return AnnotationFile(
            class_names=list(categories.values()),
            category_ids=list(categories),
            image_ids=ids,
            file_names=[images[i][0] for i in ids],
            sizes=[images[i][1] for i in ids],
            annotations=PackedAnnotations(per_image),
            dropped=check.dropped,
        )


def _categories(entries: list[Any], path: Path, note: Note) -> dict[int, str]:
    """Id -> name, by ascending id."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: category {index} of the list"
        if (
            not isinstance(entry, dict)
            or not _is_id(entry.get("id"))
            or not isinstance(entry.get("name"), str)
        ):
            note(Problem("bad record", f"{where} needs a whole number 'id' and a text 'name'"))
        elif entry["id"] in names:
            message = f"{where} has id {entry['id']}, which another has too; make ids unique"
            note(Problem("duplicate id", message))
        else:
            names[entry["id"]] = entry["name"]
    if not entries:
        note(Problem("bad record", f"{path}: 'categories' is empty; add the classes of the annotations"))
    return dict(sorted(names.items()))


def _images(entries: list[Any], path: Path, note: Note) -> dict[int, tuple[str, Size]]:
    """Id -> file name and (height, width), in the file's order."""
    images: dict[int, tuple[str, Size]] = {}
    for index, entry in enumerate(entries):
        fault = _image_fault(entry, index)
        if fault:
            note(Problem("bad record", f"{path}: image {fault}"))
        elif entry["id"] in images:
            names = f"{images[entry['id']][0]}, {entry['file_name']}"
            message = f"{path}: image {entry['id']} is listed twice ({names}); make ids unique"
            note(Problem("duplicate id", message))
        else:
            images[entry["id"]] = (entry["file_name"], (entry["height"], entry["width"]))
    if not entries:
        note(Problem("bad record", f"{path}: 'images' is empty; add the pictures"))
    return images


def _image_fault(entry: Any, index: int) -> str:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")):
        return f"{index} of the list needs a whole number 'id'"
    name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
    if not isinstance(name, str) or not name:
        return f"{entry['id']} needs a 'file_name'"
    if not (_is_id(height) and _is_id(width) and height > 0 and width > 0):
        return f"{entry['id']} ({name}) needs 'height' and 'width', whole numbers above 0"
    return ""


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int


@dataclass
class _ObjectCheck:
    """Checks the list of annotations, one by one.

    Attributes:
        path, note: as `check_annotations`.
        images: id -> file name and size.
        labels: category id -> label.
        known_ids: of the annotations seen so far.
        dropped: places in the list of what was left out.
    """

    path: Path
    note: Note
    images: Mapping[int, tuple[str, Size]]
    labels: Mapping[int, int]
    known_ids: set[int | str] = field(default_factory=set)
    dropped: list[int] = field(default_factory=list)

    def group(self, entries: list[Any]) -> Iterator[Annotations]:
        """Checked annotations of each image, in the order of `images`; empties `entries` to save memory."""
        labels: dict[int, list[int]] = {image_id: [] for image_id in self.images}
        masks: dict[int, list[Segmentation]] = {image_id: [] for image_id in self.images}
        for index, entry in enumerate(entries):
            entries[index] = None
            fault = self.reference_fault(entry, index)
            if fault is not None:
                self.note(fault)
                self.dropped.append(index)
            elif not entry.get("iscrowd"):
                mask = self.mask(entry, index)
                if mask is None:
                    self.dropped.append(index)
                else:
                    masks[entry["image_id"]].append(mask)
                    labels[entry["image_id"]].append(self.labels[entry["category_id"]])
        for image_id, (_, size) in self.images.items():
            yield Annotations(np.array(labels[image_id], dtype=np.int64), masks.pop(image_id), size, image_id)

    def reference_fault(self, entry: Any, index: int) -> Problem | None:
        """What is wrong with an annotation's ids; its own is known from then on."""
        if not isinstance(entry, dict):
            message = f"annotation {index} of the list is not an object with image_id, category_id, ..."
            return Problem("bad record", f"{self.path}: {message}")
        image_id, category = entry.get("image_id"), entry.get("category_id")
        if not _is_id(image_id) or image_id not in self.images:
            message = f"names image {image_id!r}, which 'images' lacks; add the image or remove it"
            return Problem("unknown image", f"{self.origin(entry, index)} {message}")
        if not _is_id(category) or category not in self.labels:
            message = f"of image {image_id} names category {category!r}, which the list of classes lacks"
            return Problem(
                "unknown category", f"{self.origin(entry, index)} {message}; add it or remove this"
            )
        if entry.get("iscrowd") not in (0, 1, None):
            message = f"of image {image_id} has iscrowd {entry['iscrowd']!r}; write 0 or 1"
            return Problem("bad record", f"{self.origin(entry, index)} {message}")
        number = entry.get("id", ~index)  # ids are optional here, but evaluators need them to be unique
        if not isinstance(number, (int, str)):
            message = f"of image {image_id} has an id that is no number; give it one"
            return Problem("bad record", f"{self.origin(entry, index)} {message}")
        if number in self.known_ids:
            message = f"of image {image_id} is listed twice; make ids unique"
            return Problem("duplicate id", f"{self.origin(entry, index)} {message}")
        self.known_ids.add(number)
        return None

    def mask(self, entry: dict[str, Any], index: int) -> Segmentation | None:
        """The mask of an annotation after its checks, None where one failed."""
        name, size = self.images[entry["image_id"]]
        faults: list[BadObject] = []
        mask = None
        try:
            if "origin" not in entry:  # other layouts than COCO's have no box beside the mask
                _check_box(entry.get("bbox"), size)
        except BadObject as error:
            faults.append(error)
        try:
            mask = parse_segmentation(entry.get("segmentation"), size)
        except BadObject as error:
            faults.append(error)
        for fault in faults:
            where = f"{self.origin(entry, index)} of image {entry['image_id']} ({name})"
            mend = ", or leave such objects out with --augment.degenerate drop"
            self.note(Problem(fault.kind, f"{where} {fault}{mend if fault.kind in DEGENERATE else ''}"))
        return None if faults else mask

    def origin(self, entry: Mapping[str, Any], index: int) -> str:
        """Where an annotation stands."""
        return entry.get("origin") or f"{self.path}: annotation {entry.get('id', f'{index} of the list')}"


def _check_box(box: Any, size: Size) -> None:
    """COCO's xywh: finite, with area, inside the image at least in part."""
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    if not numbers or not all(abs(v) < FAR for v in box):  # false for nan
        raise BadObject("bad box", f"has bbox {box}; write [x, y, width, height] as finite numbers")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise BadObject("degenerate box", f"has a bbox without area, {box}; correct or remove it")
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        message = f"has bbox {box} outside its image {list(size)} (height, width); correct or remove it"
        raise BadObject("bad box", message)
