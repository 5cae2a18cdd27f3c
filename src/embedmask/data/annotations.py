"""Read and check COCO annotation files."""

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
from embedmask.data.problems import OnIssue, OnObject, Problem, raise_issue
from embedmask.data.records import RecordCheck, as_id
from embedmask.errors import BadInput
from embedmask.files import read_text
from embedmask.structures import Size

Content = dict[str, list[Any]]
"""Content of a COCO annotation file; other layouts are converted to the same form."""


@dataclass(frozen=True)
class AnnotationFile:
    """Checked ground truth of a split, in the order of its images.

    Attributes:
        class_names: C names, by ascending category id; label i is category `category_ids[i]`.
        category_ids: C category ids, ascending.
        image_ids: id of each image.
        file_names: file of each image, relative to the image folder.
        sizes: `(height, width)` of each image.
        annotations: annotations of each image, including crowds; images may have none.
        dropped: positions, in the annotation list of the file, of the objects dropped because of a problem.
        dropped_parts: number of degenerate polygons dropped from objects that keep other polygons.
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
        """Return the ground truth of the images at `indices`, in that order."""
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in indices],
            file_names=[self.file_names[i] for i in indices],
            sizes=[self.sizes[i] for i in indices],
            annotations=PackedAnnotations(self.annotations[i] for i in indices),
        )

    @property
    def distinct_names(self) -> list[str]:
        """Return `class_names`, with the category id appended to names that occur more than once."""
        counts = Counter(self.class_names)
        pairs = zip(self.category_ids, self.class_names, strict=True)
        return [f"{name} (category {number})" if counts[name] > 1 else name for number, name in pairs]


def read_coco(path: Path) -> Content:
    """Read a COCO annotation file, with polygons as float32 arrays.

    Args:
        path: JSON file with the lists `images`, `annotations` and `categories`. COCO's `image_info_*.json` may lack
            annotations.

    Raises:
        BadInput: the file does not exist, is not JSON or lacks one of the lists.
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
    """Convert polygons to arrays while the file is parsed; as Python lists, COCO would need gigabytes."""
    segmentation = entry.get("segmentation")
    parts: list[Any] = segmentation if isinstance(segmentation, list) else []
    for index, part in enumerate(parts):
        # a part that is not a list of numbers stays as it is and is reported when its annotation is checked
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            parts[index] = np.array(part, dtype=np.float32)
    return entry


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Stop the garbage collector, which takes 40 % of the time when millions of acyclic objects are created."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_annotations(
    content: Content, path: Path, on_issue: OnIssue = raise_issue, inspect: OnObject | None = None
) -> AnnotationFile:
    """Check the content of a COCO file. Training, evaluation and `data check` all use this function.

    An object that cannot be used is a fatal problem and is never dropped silently. Areas and boxes that are missing
    or contradict the mask are replaced by those of the mask, with one warning for each file and type of problem.

    Args:
        content: the lists `images`, `annotations` and `categories`. The annotation list is consumed to save memory.
            Messages refer to an annotation by its `origin` (file and line), or by its id if it has none.
        path: annotation file, for messages.
        on_issue: called with every problem; if it returns, the object or record is dropped.
        inspect: called with every accepted object except crowds.

    Raises:
        BadInput: by the default `on_issue`, for a fatal problem: an incomplete record, an unknown image or category,
            a duplicate image or category id, a polygon with fewer than 3 points, a mask outside its image, ...
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
    """Check the categories and return their names by id, in ascending order of the ids."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: category {index} of the list"
        number = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not isinstance(entry.get("name"), str):
            on_issue(Problem("bad record", f"{where} needs a whole number 'id' and a text 'name'"))
        elif number in names:
            message = f"{where} has id {number}, which another category also has; make the ids unique"
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
    """Check the image records and return file name and `(height, width)` by id, in the order of the file."""
    images: dict[int, tuple[str, Size]] = {}
    for index, entry in enumerate(entries):
        record = entry if isinstance(entry, dict) else {}
        number, height, width = (as_id(record.get(key)) for key in ("id", "height", "width"))
        name = record.get("file_name")
        if number is None:
            stated = f", not {record['id']!r}" if "id" in record else ""
            message = f"{path}: image {index} of the list needs a whole number 'id'{stated}"
            on_issue(Problem("bad record", message))
        elif not isinstance(name, str) or not name:
            on_issue(Problem("bad record", f"{path}: image {record['id']} needs a 'file_name'"))
        elif not (height and width and height > 0 and width > 0):
            message = (
                f"{path}: image {record['id']} ({name}) needs 'height' and 'width', whole numbers above 0"
            )
            on_issue(Problem("bad record", message))
        elif number in images:
            names = f"{images[number][0]}, {name}"
            message = f"{path}: image {number} is listed twice ({names}); make the ids unique"
            on_issue(Problem("duplicate id", message))
        else:
            images[number] = (name, (height, width))
    if not entries:
        on_issue(Problem("bad record", f"{path}: 'images' is empty; add the images"))
    return images
