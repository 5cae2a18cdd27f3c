"""LabelMe's folders: a JSON file of shapes for each image."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedmask.data.annotations import Content
from embedmask.data.exports import ANNOTATION_FOLDERS, IMAGE_FOLDERS, subfolders
from embedmask.data.formats import is_image_file
from embedmask.data.images import READ_ERRORS, read_size
from embedmask.data.label_images import label_objects
from embedmask.data.problems import OnIssue, Problem
from embedmask.data.segmentation import Polygons, RunLengths, Segmentation
from embedmask.errors import BadInput
from embedmask.files import read_text
from embedmask.structures import Size

Points = NDArray[np.float32]
CLOSED = ("polygon", "rectangle", "rotation", "circle", "mask")
"""Shapes that have an area; points and lines have none."""


def find_labelme(folder: Path, split_names: Sequence[str]) -> Path | None:
    """Return the folder of LabelMe's files of a split, or with no `split_names` of a folder without splits."""
    inside = [folder, *subfolders(folder, ANNOTATION_FOLDERS)]
    if split_names:
        own = [path for place in inside for path in subfolders(place, split_names)]
        inside = own + [path for place in own for path in subfolders(place, ANNOTATION_FOLDERS)]
    return next((place for place in inside if any(map(_is_labelme, sorted(place.glob("*.json"))[:3]))), None)


def labelme_image_folders(place: Path, folder: Path, split_names: Sequence[str]) -> list[Path]:
    """Return the folders that the images may be in: beside the files, and folders of images near them."""
    bases = dict.fromkeys((place, place.parent, folder) if place != folder else (folder,))
    near = [path for base in bases for path in subfolders(base, IMAGE_FOLDERS)]
    return [place, *near, *(path for base in (folder, *near) for path in subfolders(base, split_names))]


def _is_labelme(file: Path) -> bool:
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "imagePath" in content and isinstance(content.get("shapes"), list)


def read_labelme(folder: Path, splits: Sequence[Path], on_issue: OnIssue) -> Content:
    """Read LabelMe's files, in the form of a COCO file; shapes of one `group_id` and label are one object.

    Embedded images are not read. Shapes without area are left out, and so are images without a file: `on_issue` is told
    of how many.

    Args:
        folder: folder of the files.
        splits: the folders of all splits, which share one list of classes, by name.
        on_issue: is told of files and shapes that cannot be used.
    """
    labels = {
        str(shape.get("label"))
        for place in splits
        for file in _files(place)
        for shape in _load(file, lambda _: None).get("shapes", ())
        if isinstance(shape, dict) and shape.get("shape_type", "polygon") in CLOSED
    }
    ids = {label: number for number, label in enumerate(sorted(labels), start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    for file in _files(folder):
        content = _load(file, on_issue)
        record = _image(content, file, len(images) + 1, on_issue)
        if record is None:
            continue
        images.append(record)
        size = (record["height"], record["width"])
        for label, origin, mask in _objects(content["shapes"], file, size, left_out, on_issue):
            entry = {"image_id": record["id"], "category_id": ids[label], "segmentation": mask}
            annotations.append({"origin": origin, **entry})
    _report_left_out(folder, left_out, on_issue)
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _load(file: Path, on_issue: OnIssue) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        on_issue(Problem("bad record", f"{file}: cannot be read as JSON ({error}); replace it"))
        return {}
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        return content
    on_issue(
        Problem(
            "bad record", f"{file}: has no list 'shapes', as LabelMe's files have; remove it from the folder"
        )
    )
    return {}


def _image(content: dict[str, Any], file: Path, number: int, on_issue: OnIssue) -> dict[str, Any] | None:
    if not content:
        return None
    name = content.get("imagePath")
    if not isinstance(name, str) or not name:
        on_issue(Problem("bad record", f"{file}: has no imagePath; add the name of its image"))
        return None
    size = (content.get("imageHeight"), content.get("imageWidth"))
    if not all(type(side) is int for side in size):
        path = next(
            (p for p in (file.parent / name.replace("\\", "/"), *_siblings(file)) if p.is_file()), None
        )
        try:
            size = read_size(path or file.parent / name)
        except BadInput as error:
            on_issue(Problem("missing image", f"{file}: has no imageHeight and imageWidth, and {error}"))
            return None
    return {"id": number, "file_name": name, "height": size[0], "width": size[1]}


def _siblings(file: Path) -> Iterator[Path]:
    return (path for path in file.parent.glob(f"{_escape(file.stem)}.*") if is_image_file(path))


def _escape(stem: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in stem)


@dataclass(frozen=True)
class _Shape:
    label: str
    group: Any
    origin: str
    mask: Segmentation


def _objects(
    shapes: Sequence[Any], file: Path, size: Size, left_out: Counter[str], on_issue: OnIssue
) -> Iterator[tuple[str, str, Any]]:
    """Yield label, origin and segmentation of each object; parts of one group are joined."""
    groups: dict[Any, list[_Shape]] = defaultdict(list)
    for place, shape in enumerate(shapes):
        origin = f"{file}: shape {place}"
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
        if kind not in CLOSED:
            left_out[str(kind)] += 1
            continue
        label, group = str(shape.get("label")), shape.get("group_id")
        try:
            mask = _mask(kind, shape, size)
        except (*READ_ERRORS, TypeError, KeyError) as error:
            on_issue(
                Problem("bad mask", f"{origin} ({kind}, {label}) cannot be used ({error}); draw it again")
            )
            continue
        key = place if group is None else (label, str(group))
        groups[key].append(_Shape(label, group, origin, mask))
    for parts in groups.values():
        yield parts[0].label, parts[0].origin, _join([part.mask for part in parts], size)


def _join(masks: Sequence[Segmentation], size: Size) -> Any:
    """Return polygons as COCO has them, or run lengths where a part is a mask."""
    polygons = [part for mask in masks if isinstance(mask, Polygons) for part in mask.parts]
    if all(isinstance(mask, Polygons) for mask in masks):
        return [part.ravel() for part in polygons]
    union = np.zeros(size, dtype=np.uint8)
    for mask in masks:
        patch = mask.paint((1.0, 1.0), (0, 0, size[1], size[0]))
        if patch is not None:
            pixels, top, left = patch
            union[top : top + pixels.shape[0], left : left + pixels.shape[1]] |= pixels
    return dict(label_objects(union)).get(1, {"size": list(size), "counts": [size[0] * size[1]]})


def _mask(kind: str, shape: dict[str, Any], size: Size) -> Segmentation:
    points = np.array(shape["points"], dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("its points are no list of x, y")
    if kind == "mask":
        return _pixels(shape["mask"], points, size)
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        points = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float32)
    if kind == "circle":
        points = _circle(points)
    return Polygons([points])


def _circle(points: Points) -> Points:
    """Return the corners of a circle, given its center and a point on it; within a tenth of a pixel."""
    if len(points) != 2:
        raise ValueError("a circle has a center and a point on it")
    (x, y), edge = points.tolist()
    radius = math.hypot(edge[0] - x, edge[1] - y)
    angles = np.linspace(0, 2 * np.pi, 16 + 8 * math.isqrt(int(radius)), endpoint=False)
    return np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1).astype(np.float32)


def _pixels(text: str, points: Points, size: Size) -> RunLengths:
    """Return a mask that is stored as a PNG image in base64, with its first corner."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        crop = np.asarray(image)
    crop = crop.reshape(*crop.shape[:2], -1)[..., 0] > 0
    left, top = (int(value) for value in np.rint(points.min(0)))
    whole = np.zeros(size, dtype=np.uint8)
    bottom, right = top + crop.shape[0], left + crop.shape[1]
    if left < 0 or top < 0 or bottom > size[0] or right > size[1]:
        raise ValueError(f"its mask reaches outside the image {list(size)} (height, width)")
    whole[top:bottom, left:right] = crop
    objects = dict(label_objects(whole))
    if not objects:
        raise ValueError("its mask is empty")
    return objects[1]


def _report_left_out(folder: Path, left_out: Counter[str], on_issue: OnIssue) -> None:
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        message = f"{folder}: shapes without an area are left out: {kinds}; draw them as polygons to use them"
        on_issue(Problem("left out", message, fatal=False))
    stems = {os.path.splitext(path.name)[0] for path in _files(folder)}
    alone = [path.name for path in sorted(folder.iterdir()) if is_image_file(path) and path.stem not in stems]
    if alone:
        message = (
            f"{folder}: {len(alone)} images have no LabelMe file and are left out, among them {alone[0]}"
        )
        on_issue(
            Problem(
                "image left out",
                f"{message}; add a file without shapes where there is no object",
                fatal=False,
            )
        )
