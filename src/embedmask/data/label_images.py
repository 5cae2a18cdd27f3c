"""Label images, microscopy's habit: a picture of whole numbers, 0 background, one number an object."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.annotations import Content
from embedmask.data.formats import is_picture, note_unread
from embedmask.data.images import read_extent, read_numbers
from embedmask.data.pages import note_defaults
from embedmask.data.problems import Note, Problem
from embedmask.data.segmentation import RunLengths
from embedmask.errors import BadInput
from embedmask.structures import Size

Labels = NDArray[np.integer[Any]]
MASK_FOLDERS = ("masks", "labels", "mask", "label")
MASK_ENDINGS = ("", "_masks", "_mask", "_labels", "_label")
"""What may follow the picture's name in the name of its label image."""
SUFFIXES = (".png", ".tif", ".tiff")
"""Formats that keep numbers exactly."""
CLASS_NAME = "object"


def find_label_images(folder: Path, split_names: Sequence[str]) -> tuple[Path, Path] | None:
    """The folders of the pictures and of the label images of a split, which may be the same, or None."""
    for split in split_names:
        for masks in MASK_FOLDERS:
            for pair in (
                (folder / split / "images", folder / split / masks),
                (folder / "images" / split, folder / masks / split),
            ):
                if all(path.is_dir() for path in pair) and _masks(*pair):
                    return pair
        beside = folder / split
        if beside.is_dir() and _masks(beside, beside):
            return beside, beside
    return None


def _masks(images: Path, masks: Path) -> dict[str, Path]:
    """Label images by stem; in the folder of the pictures, what follows the name tells them."""
    files = sorted(path for path in masks.iterdir() if path.suffix.lower() in SUFFIXES and is_picture(path))
    return {path.stem: path for path in files if images != masks or path.stem.endswith(MASK_ENDINGS[1:])}


def read_label_images(
    images: Path, masks: Path, note: Note, options: ReadOptions = DEFAULT_READING
) -> Content:
    """Read label images, in the form of a COCO file with one class.

    Objects that touch stay apart, as their numbers differ; an object in several pieces is one. Pictures are
    numbered from 1, by name. Sizes are those of the label images.

    Args:
        images: folder of the pictures.
        masks: folder of the label images, PNG or TIFF of any depth, each of the name of its picture (or with
            `_masks` or the like behind it).
        note: is told of files without partner, damaged or unread ones, and pictures that hold no labels.
        options: the page that is read of label images with several.
    """
    labelled = _masks(images, masks)
    pictures = _pictures(images, set(labelled.values()), note)
    partners = _partners(list(pictures), labelled, images, masks, note)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = list(pool.map(partial(_read_objects, page=options.page), partners.values()))
    for line in note_defaults(partners.values(), ReadOptions(page=options.page), read_extent):
        note(Problem("several pages", f"{masks}: {line}", fatal=False))
    note_unread({images, masks}, note)
    records, annotations = [], []
    for number, (stem, found) in enumerate(zip(partners, read, strict=True), start=1):
        if isinstance(found, Problem):
            note(found)
            continue
        (height, width), objects = found
        name = pictures[stem].name
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        origin = f"{partners[stem]}: label"
        annotations += [
            {"origin": f"{origin} {label}", "image_id": number, "category_id": 1, "segmentation": mask}
            for label, mask in objects.items()
        ]
    if annotations and len({entry["image_id"] for entry in annotations}) == len(annotations):
        message = f"{masks}: no file has more than one label; give every object of a picture its own number"
        note(Problem("one label only", message, fatal=False))
    return {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": CLASS_NAME}]}


def _pictures(folder: Path, masks: set[Path], note: Note) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if is_picture(path) and path not in masks):
        if path.stem in found:
            message = f"{path}: has the name of {found[path.stem].name}, so its label image is not certain"
            note(Problem("duplicate id", f"{message}; rename one"))
        found.setdefault(path.stem, path)
    return found


def _partners(
    stems: Sequence[str], masks: dict[str, Path], images: Path, folder: Path, note: Note
) -> dict[str, Path]:
    """The label image of each picture."""
    partners: dict[str, Path] = {}
    for stem in stems:
        name = next((stem + ending for ending in MASK_ENDINGS if stem + ending in masks), None)
        if name is None:
            message = f"{folder}: has no label image {stem}.png or .tif for a picture of {images}"
            note(Problem("missing mask", f"{message}; add it, all 0 where there is no object"))
        else:
            partners[stem] = masks.pop(name)
    for path in masks.values():
        note(Problem("missing image", f"{path}: has no picture of that name in {images}; add it"))
    return partners


def _read_objects(path: Path, page: int | None) -> tuple[Size, dict[int, RunLengths]] | Problem:
    try:
        labels = read_numbers(path, page)
    except BadInput as error:
        return Problem("broken image", str(error))
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim != 2 or labels.dtype.kind not in "biu" or labels.min(initial=0) < 0:
        message = "is no label image; write one whole number a pixel, 0 for background"
        return Problem("bad mask", f"{path}: {message}")
    return (labels.shape[0], labels.shape[1]), dict(label_objects(labels))


def label_objects(labels: Labels) -> Iterator[tuple[int, RunLengths]]:
    """The objects of a label image `[H, W]`, by ascending number; 0 is background."""
    flat = labels.ravel(order="F")
    place = np.flatnonzero(flat)
    order = np.argsort(flat[place], kind="stable")
    place = place[order]
    value = flat[place].astype(np.int64)
    begins = np.ones(len(place), dtype=bool)  # of a run: another object, or a gap
    begins[1:] = (np.diff(value) != 0) | (np.diff(place) != 1)
    first = np.flatnonzero(begins)
    starts, owners = place[first], value[first]
    ends = starts + np.diff(first, append=len(place))
    firsts, lasts = (np.flatnonzero(np.diff(owners, **edge)) for edge in ({"prepend": 0}, {"append": 0}))
    for begin, end in zip(firsts, lasts + 1, strict=True):
        edges = np.stack((starts[begin:end], ends[begin:end]), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=labels.size)
        yield int(owners[begin]), RunLengths(counts, (labels.shape[0], labels.shape[1]))
