"""Annotations as COCO writes them: read once, checked whole, kept small."""

from __future__ import annotations

import contextlib
import gc
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.data.packed import PackedAnnotations
from embedmask.data.problems import Inspect, OnIssue, Problem, raise_issue
from embedmask.data.records import RecordCheck, as_id
from embedmask.errors import BadInput
from embedmask.files import read_text
from embedmask.structures import Size

Content = dict[str, list[Any]]
"""What a COCO annotation file holds; other layouts are read into the same form."""


@dataclass(frozen=True)
class AnnotationFile:
    """The ground truth of a split, in the order of its images.

    Attributes:
        class_names: C names, by ascending category id; label i is category `category_ids[i]`.
        category_ids: C ids of the file.
        image_ids: ids of the images.
        file_names: their files, relative to the folder of images.
        sizes: `(height, width)` of each.
        annotations: of each image, crowds included; empty where an image has none.
        dropped: positions in the list of annotations of objects that were left out for a problem.
        dropped_parts: number of polygons that were left out of objects which have others.
    """

    class_names: list[str]
    category_ids: list[int]
    image_ids: list[int]
    file_names: list[str]
    sizes: list[Size]
    annotations: PackedAnnotations
    dropped: list[int]
    dropped_parts: int

    def select(self, indices: Sequence[int]) -> AnnotationFile:
        """Return the ground truth of some of the images."""
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in indices],
            file_names=[self.file_names[i] for i in indices],
            sizes=[self.sizes[i] for i in indices],
            annotations=PackedAnnotations(self.annotations[i] for i in indices),
        )

    @property
    def distinct_names(self) -> list[str]:
        """Return `class_names`, with the category id where two have the same name."""
        counts = Counter(self.class_names)
        pairs = zip(self.category_ids, self.class_names, strict=True)
        return [f"{name} (category {number})" if counts[name] > 1 else name for number, name in pairs]


def read_coco(path: Path) -> Content:
    """Read a COCO annotation file (`images`, `annotations`, `categories`), polygons as arrays.

    COCO's `image_info_*.json` have no annotations.

    Raises:
        BadInput: no such file, not JSON, or keys missing.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such annotation file; check the path") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not JSON (it is not text); give a COCO annotation file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file") from None
    try:
        with collector_paused():
            content = json.loads(text, object_hook=_compact)
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


def check_annotations(
    content: Content, path: Path, on_issue: OnIssue = raise_issue, inspect: Inspect | None = None
) -> AnnotationFile:
    """Check the content of a COCO file; training, evaluation and `data check` all read it here.

    Nothing is dropped silently: an object that cannot be used is a fatal problem. Values that are missing or
    contradict the masks are replaced by those of the masks; they are warnings, one per file and kind.

    Args:
        content: the lists `images`, `annotations`, `categories`; annotations are used up, to save memory. An
            annotation may say where it stands (`origin`); otherwise its id is named.
        path: the file, for messages.
        on_issue: called with every problem; after it returns, the object or record is left out.
        inspect: called with every object that is kept, crowds left out.

    Raises:
        BadInput: by `raise_issue`: keys missing, an annotation of an unknown image or category, an image or
            category id given twice, a polygon with fewer than 3 points, a mask outside its image or of
            another size, ...; names the annotation, its image and the file.
    """
    with collector_paused():
        categories = _categories(content["categories"], path, on_issue)
        images = _images(content["images"], path, on_issue)
        labels = {category: label for label, category in enumerate(categories)}
        check = RecordCheck(path, on_issue, images, labels, inspect)
        packed = check.pack(content.pop("annotations"))
        ids = list(images)
        return AnnotationFile(
            class_names=list(categories.values()),
            category_ids=list(categories),
            image_ids=ids,
            file_names=[images[i][0] for i in ids],
            sizes=[images[i][1] for i in ids],
            annotations=packed,
            dropped=check.dropped,
            dropped_parts=check.dropped_parts,
        )


def _categories(entries: list[Any], path: Path, on_issue: OnIssue) -> dict[int, str]:
    """Id -> name, by ascending id."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: category {index} of the list"
        number = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str):
            on_issue(Problem("bad record", f"{where} needs a whole number 'id' and a text 'name'"))
        elif number in names:
            message = f"{where} has id {number}, which another has too; make ids unique"
            on_issue(Problem("duplicate id", message))
        else:
            names[number] = entry["name"]
    if not entries:
        on_issue(Problem("bad record", f"{path}: 'categories' is empty; add the classes of the annotations"))
    for name, count in Counter(names.values()).items():
        if count > 1:
            ids = " and ".join(str(number) for number, other in names.items() if other == name)
            message = (
                f"{path}: categories {ids} have the same name {name!r} and are learned as {count} classes"
            )
            on_issue(Problem("same class name", f"{message}; merge or rename them", fatal=False))
    return dict(sorted(names.items()))


def _images(entries: list[Any], path: Path, on_issue: OnIssue) -> dict[int, tuple[str, Size]]:
    """Id -> file name and (height, width), in the file's order."""
    images: dict[int, tuple[str, Size]] = {}
    for index, entry in enumerate(entries):
        fault = _image_fault(entry, index)
        if fault:
            on_issue(Problem("bad record", f"{path}: image {fault}"))
            continue
        number, height, width = (int(entry[key]) for key in ("id", "height", "width"))
        if number in images:
            names = f"{images[number][0]}, {entry['file_name']}"
            message = f"{path}: image {number} is listed twice ({names}); make ids unique"
            on_issue(Problem("duplicate id", message))
        else:
            images[number] = (entry["file_name"], (height, width))
    if not entries:
        on_issue(Problem("bad record", f"{path}: 'images' is empty; add the images"))
    return images


def _image_fault(entry: Any, index: int) -> str:
    if not isinstance(entry, dict) or as_id(entry.get("id")) is None:
        stated = f", not {entry['id']!r}" if isinstance(entry, dict) and "id" in entry else ""
        return f"{index} of the list needs a whole number 'id'{stated}"
    name, height, width = entry.get("file_name"), as_id(entry.get("height")), as_id(entry.get("width"))
    if not isinstance(name, str) or not name:
        return f"{entry['id']} needs a 'file_name'"
    if not (height and width and height > 0 and width > 0):
        return f"{entry['id']} ({name}) needs 'height' and 'width', whole numbers above 0"
    return ""
