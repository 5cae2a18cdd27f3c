"""Read LabelMe folders: a JSON file of shapes for each image."""

from __future__ import annotations

import base64
import glob
import io
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedmask.data.annotations import Content
from embedmask.data.exports import IMAGE_FOLDERS, annotation_folders, has_coco_keys, subfolders
from embedmask.data.formats import is_image_file
from embedmask.data.images import READ_ERRORS, read_size
from embedmask.data.label_images import label_objects
from embedmask.data.problems import OnIssue, Problem
from embedmask.data.segmentation import Polygons, RunLengths, Segmentation
from embedmask.errors import BadInput
from embedmask.files import read_text
from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Size

CLOSED = ("polygon", "rectangle", "rotation", "circle", "mask")
"""Types of shapes that have an area; points and lines have none."""


def find_labelme(folder: Path, split_names: Sequence[str]) -> Path | None:
    """Return the folder of the LabelMe files of a split, or without `split_names` of a folder without splits.

    Only the first three JSON files of a folder are inspected.
    """
    places, split_folders = annotation_folders(folder, split_names)
    for place in split_folders if split_names else places:
        if any(_is_labelme(file) for file in sorted(place.glob("*.json"))[:3]):
            return place
    return None


def labelme_image_folders(place: Path, folder: Path, split_names: Sequence[str]) -> list[Path]:
    """Return the folders that may contain the images: that of the files, and image folders near it.

    Args:
        place: folder of the LabelMe files.
        split_names: names that the folder of the split may have.
    """
    bases = dict.fromkeys((place, place.parent, folder) if place != folder else (folder,))
    near = [path for base in bases for path in subfolders(base, IMAGE_FOLDERS)]
    return [place, *near, *(path for base in (folder, *near) for path in subfolders(base, split_names))]


def read_labelme(folder: Path, splits: Sequence[Path], on_issue: OnIssue) -> Content:
    """Read LabelMe files as the content of a COCO file; shapes with the same `group_id` and label are one object.

    Embedded images are not read. Shapes without area and images without a file are skipped and reported.

    Args:
        splits: folders of all splits, which share one list of classes, by name.
        on_issue: receives files and shapes that cannot be used, and the number of skipped ones.

    Returns:
        Lists of images, annotations and categories; polygons in px, masks as run lengths.
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
    skipped: Counter[str] = Counter()
    for file in _files(folder):
        content = _load(file, on_issue)
        record = _image(content, file, len(images) + 1, on_issue)
        if record is None:
            continue
        images.append(record)
        size = (record["height"], record["width"])
        for label, origin, mask in _objects(content["shapes"], file, size, skipped, on_issue):
            entry = {"image_id": record["id"], "category_id": ids[label], "segmentation": mask}
            annotations.append({"origin": origin, **entry})
    _report_skipped(folder, skipped, on_issue)
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _is_labelme(file: Path) -> bool:
    """Return whether a file is one of LabelMe; large COCO files are searched, not parsed."""
    return not has_coco_keys(file) and "imagePath" in _load(file, lambda _: None)


def _load(file: Path, on_issue: OnIssue) -> dict[str, Any]:
    """Return the content of a LabelMe file; empty if it is not one."""
    try:
        content = json.loads(read_text(file))
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            return content
        fault = "lacks the list 'shapes' of LabelMe files; remove it from the folder"
    except (OSError, ValueError, RecursionError) as error:
        fault = f"cannot be read as JSON ({error}); replace it"
    on_issue(Problem("bad record", f"{file}: {fault}"))
    return {}


def _image(content: dict[str, Any], file: Path, number: int, on_issue: OnIssue) -> dict[str, Any] | None:
    """Return the record of an image; files of old versions have no size, which is read from the image."""
    if not content:
        return None
    name = content.get("imagePath")
    if not isinstance(name, str) or not name:
        on_issue(Problem("bad record", f"{file}: has no imagePath; add the name of its image"))
        return None
    size = (content.get("imageHeight"), content.get("imageWidth"))
    if not all(type(side) is int for side in size):
        siblings = filter(is_image_file, file.parent.glob(f"{glob.escape(file.stem)}.*"))
        candidates = (file.parent / name.replace("\\", "/"), *siblings)
        path = next((path for path in candidates if path.is_file()), file.parent / name)
        try:
            size = read_size(path)
        except BadInput as error:
            on_issue(Problem("missing image", f"{file}: has no imageHeight and imageWidth, and {error}"))
            return None
    return {"id": number, "file_name": name, "height": size[0], "width": size[1]}


def _objects(
    shapes: Sequence[Any], file: Path, size: Size, skipped: Counter[str], on_issue: OnIssue
) -> Iterator[tuple[str, str, Any]]:
    """Yield label, origin and segmentation of each object; join the shapes of a group."""
    groups: dict[Any, list[tuple[str, str, Segmentation]]] = defaultdict(list)
    for index, shape in enumerate(shapes):
        origin = f"{file}: shape {index}"
        kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else None
        if kind not in CLOSED:
            skipped[str(kind)] += 1
            continue
        label, group = str(shape.get("label")), shape.get("group_id")
        try:
            mask = _mask(kind, shape, size)
        except (*READ_ERRORS, TypeError, KeyError) as error:
            message = f"{origin} ({kind}, {label}) cannot be used ({error}); draw it again"
            on_issue(Problem("bad mask", message))
            continue
        # a shape without a group is a separate object, keyed by its index
        groups[index if group is None else (label, str(group))].append((label, origin, mask))
    for parts in groups.values():
        label, origin, _ = parts[0]
        yield label, origin, _join([mask for _, _, mask in parts], size)


def _join(masks: Sequence[Segmentation], size: Size) -> Any:
    """Return COCO polygons; run lengths of the union if one of the parts is a mask."""
    if all(isinstance(mask, Polygons) for mask in masks):
        return [part.ravel() for mask in masks if isinstance(mask, Polygons) for part in mask.parts]
    union = np.zeros(size, dtype=np.uint8)
    for mask in masks:
        # scale 1, window of the whole image: the pixels of the mask's own box
        patch = mask.paint((1.0, 1.0), (0, 0, size[1], size[0]))
        if patch is not None:
            pixels, top, left = patch
            union[top : top + pixels.shape[0], left : left + pixels.shape[1]] |= pixels
    # an empty union is one run of background, which is reported later
    return dict(label_objects(union)).get(1, {"size": list(size), "counts": [size[0] * size[1]]})


def _mask(kind: str, shape: dict[str, Any], size: Size) -> Segmentation:
    points = np.array(shape["points"], dtype=np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("its points are not a list of x, y")
    if kind == "mask":
        left, top = (int(value) for value in np.rint(points.min(0)))
        return _decode_mask(shape["mask"], left, top, size)
    if kind == "rectangle" and len(points) == 2:  # opposite corners; newer versions store all four
        (x1, y1), (x2, y2) = points
        points = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], dtype=np.float32)
    if kind == "circle":
        if len(points) != 2:
            raise ValueError("a circle has a center and a point on it")
        (x, y), (edge_x, edge_y) = points.tolist()
        radius = math.hypot(edge_x - x, edge_y - y)
        # a chord of n corners is r * (1 - cos(pi / n)) from the arc: with n = 16 + 8 * sqrt(r), below 0.1 px
        angles = np.linspace(0, 2 * np.pi, 16 + 8 * math.isqrt(int(radius)), endpoint=False)
        corners = (x + radius * np.cos(angles), y + radius * np.sin(angles))
        points = np.stack(corners, axis=1).astype(np.float32)
    return Polygons([points])


def _decode_mask(text: str, left: int, top: int, size: Size) -> RunLengths:
    """Decode a mask stored as a PNG image in base64, which is a crop at `left`, `top` of the image."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        crop = np.asarray(image)
    # the first channel of gray, gray with alpha, or RGB: [h, w]
    crop = crop.reshape(*crop.shape[:2], -1)[..., 0] > 0
    bottom, right = top + crop.shape[0], left + crop.shape[1]
    if left < 0 or top < 0 or bottom > size[0] or right > size[1]:
        raise ValueError(f"its mask reaches outside the image {list(size)} (height, width)")
    if not crop.any():
        raise ValueError("its mask is empty")
    (counts,) = RunMasks.from_crops([MaskCrop(crop, top, left)], size).to_counts()
    return RunLengths(counts, size)


def _report_skipped(folder: Path, skipped: Counter[str], on_issue: OnIssue) -> None:
    if skipped:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        message = (
            f"{folder}: shapes without an area are left out: {counts}; draw them as polygons to use them"
        )
        on_issue(Problem("left out", message, fatal=False))
    stems = {os.path.splitext(path.name)[0] for path in _files(folder)}
    alone = [path.name for path in sorted(folder.iterdir()) if is_image_file(path) and path.stem not in stems]
    if alone:
        message = (
            f"{folder}: {len(alone)} images have no LabelMe file and are left out, among them {alone[0]}"
        )
        fix = "add a file without shapes for an image without objects"
        on_issue(Problem("image left out", f"{message}; {fix}", fatal=False))
