"""COCO annotation files: read once, checked whole, kept small."""

from __future__ import annotations

import contextlib
import gc
import json
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import numpy as np
from numpy.typing import NDArray

from embedmask.data.segmentation import Segmentation, parse_segmentation
from embedmask.errors import BadInput
from embedmask.structures import Size

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
    """The annotations of all pictures, pickled one by one into a single array.

    Millions of small objects would be copied into every worker process, by pickling or, after a fork, by
    their reference counts; one array is shared, or copied in one go.
    """

    def __init__(self, items: Iterable[Annotations]) -> None:
        packed = bytearray()
        ends = [0]
        for item in items:
            packed += pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(packed))
        self._bytes = np.frombuffer(packed, dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Annotations:
        index = range(len(self))[index]
        item: Annotations = pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]].data)
        return item


@dataclass(frozen=True)
class AnnotationFile:
    """What a COCO annotation file holds, in the order of the file's images.

    Attributes:
        class_names: C names, by ascending category id; label i is category `category_ids[i]`.
        category_ids: C ids of the file.
        image_ids: ids of the pictures.
        file_names: their files, relative to the folder of images.
        sizes: `(height, width)` of each.
        annotations: of each picture, crowds left out; empty where a picture has none.
    """

    class_names: list[str]
    category_ids: list[int]
    image_ids: list[int]
    file_names: list[str]
    sizes: list[Size]
    annotations: PackedAnnotations


def read_annotations(path: Path) -> AnnotationFile:
    """Read and check a COCO annotation file (`images`, `annotations`, `categories`).

    Nothing is dropped silently: an object that cannot be trained on is an error. Crowd regions (`iscrowd`
    1) are left out of the training targets; the evaluator reads them from the file itself.

    Raises:
        BadInput: not JSON, keys missing, an annotation of an unknown image or category, ids given twice, a
            polygon with fewer than 3 points, a box without area or outside its image, a mask of another
            size, ...; names the annotation, its image and the file.
    """
    with _collector_paused():
        return _checked(_read_json(path), path)


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of new objects, none in cycles: looking for some would take 40 % of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _checked(content: dict[str, Any], path: Path) -> AnnotationFile:
    categories = _categories(content["categories"], path)
    images = _images(content["images"], path)
    per_image = _group(content.pop("annotations"), images, categories, path)
    ids = list(images)
    return AnnotationFile(
        class_names=list(categories.values()),
        category_ids=list(categories),
        image_ids=ids,
        file_names=[images[i][0] for i in ids],
        sizes=[images[i][1] for i in ids],
        annotations=PackedAnnotations(per_image),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"{path}: no such annotation file; check the path") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: not JSON (it is not text); give a COCO annotation file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the file") from None
    try:
        content = json.loads(text, object_hook=_compact)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); give a COCO annotation file") from None
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


def _categories(entries: list[Any], path: Path) -> dict[int, str]:
    """Id -> name, by ascending id."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: category {index} of the list"
        if (
            not isinstance(entry, dict)
            or not _is_id(entry.get("id"))
            or not isinstance(entry.get("name"), str)
        ):
            raise BadInput(f"{where} needs a whole number 'id' and a text 'name'")
        if entry["id"] in names:
            raise BadInput(f"{where} has id {entry['id']}, which another has too; make ids unique")
        names[entry["id"]] = entry["name"]
    if not names:
        raise BadInput(f"{path}: 'categories' is empty; add the classes of the annotations")
    return dict(sorted(names.items()))


def _images(entries: list[Any], path: Path) -> dict[int, tuple[str, Size]]:
    """Id -> file name and (height, width), in the file's order."""
    images: dict[int, tuple[str, Size]] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: image {index} of the list"
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            raise BadInput(f"{where} needs a whole number 'id'")
        where = f"{path}: image {entry['id']}"
        name, height, width = entry.get("file_name"), entry.get("height"), entry.get("width")
        if not isinstance(name, str) or not name:
            raise BadInput(f"{where} needs a 'file_name'")
        if not (_is_id(height) and _is_id(width) and height > 0 and width > 0):
            raise BadInput(f"{where} ({name}) needs 'height' and 'width', whole numbers above 0")
        if entry["id"] in images:
            raise BadInput(f"{where} is listed twice ({images[entry['id']][0]}, {name}); make ids unique")
        images[entry["id"]] = (name, (height, width))
    if not images:
        raise BadInput(f"{path}: 'images' is empty; add the pictures")
    return images


def _is_id(value: Any) -> TypeGuard[int]:
    return type(value) is int


def _group(
    entries: list[Any], images: Mapping[int, tuple[str, Size]], categories: Mapping[int, str], path: Path
) -> Iterable[Annotations]:
    """Checked annotations of each image, in the order of `images`; empties `entries` to save memory."""
    label_of = {category: label for label, category in enumerate(categories)}
    known_ids: set[int] = set()
    labels: dict[int, list[int]] = {image_id: [] for image_id in images}
    segmentations: dict[int, list[Segmentation]] = {image_id: [] for image_id in images}
    for index, entry in enumerate(entries):
        image_id, category = _references(entry, index, images, categories, path)
        number = entry.get("id", ~index)  # ids are optional here, but evaluators need them to be unique
        if number in known_ids:
            raise BadInput(
                f"{path}: annotation {number} of image {image_id} is listed twice; make ids unique"
            )
        known_ids.add(number)
        if not entry.get("iscrowd"):
            segmentations[image_id].append(_object(entry, index, images[image_id], path))
            labels[image_id].append(label_of[category])
        entries[index] = None
    for image_id, (_, size) in images.items():
        yield Annotations(
            np.array(labels[image_id], dtype=np.int64), segmentations.pop(image_id), size, image_id
        )


def _references(
    entry: Any, index: int, images: Mapping[int, object], categories: Mapping[int, str], path: Path
) -> tuple[int, int]:
    """Image and category id of an annotation, known to exist."""
    if not isinstance(entry, dict):
        raise BadInput(
            f"{path}: annotation {index} of the list is not an object with image_id, category_id, ..."
        )
    image_id, category = entry.get("image_id"), entry.get("category_id")
    where = f"{path}: annotation {entry.get('id', f'{index} of the list')}"
    if not _is_id(image_id) or image_id not in images:
        raise BadInput(f"{where} names image {image_id}, which 'images' lacks; add the image or remove it")
    if not _is_id(category) or category not in categories:
        raise BadInput(
            f"{where} of image {image_id} names category {category}, which 'categories' lacks; "
            "add the category or remove it"
        )
    return image_id, category


def _object(entry: dict[str, Any], index: int, image: tuple[str, Size], path: Path) -> Segmentation:
    """The mask of an annotation, after its checks."""
    name, size = image
    try:
        _check_box(entry.get("bbox"), size)
        return parse_segmentation(entry.get("segmentation"), size)
    except BadInput as error:
        number = entry.get("id", f"{index} of the list")
        _fail(f"{path}: annotation {number} of image {entry['image_id']} ({name}) {error}")


def _fail(message: str) -> NoReturn:
    raise BadInput(message) from None


def _check_box(box: Any, size: Size) -> None:
    """COCO's xywh: finite, with area, inside the image at least in part."""
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    if not numbers or not all(abs(v) < FAR for v in box):  # false for nan
        raise BadInput(f"has bbox {box}; write [x, y, width, height] as finite numbers")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise BadInput(f"has a bbox without area, {box}; correct or remove it")
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        raise BadInput(f"has bbox {box} outside its image {list(size)} (height, width); correct or remove it")
