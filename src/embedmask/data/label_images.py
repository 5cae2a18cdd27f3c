"""Label images, as microscopy stores masks: an image of whole numbers, 0 for background, one number an object."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data import label_classes
from embedmask.data.annotations import Content
from embedmask.data.cellpose import read_numpy_labels
from embedmask.data.formats import is_image_file, report_unread
from embedmask.data.images import READ_ERRORS, read_extent, read_numbers
from embedmask.data.label_classes import Class
from embedmask.data.pages import report_defaults
from embedmask.data.problems import OnIssue, Problem
from embedmask.data.segmentation import RunLengths
from embedmask.errors import BadInput
from embedmask.structures import Size

Labels = NDArray[np.integer[Any]]
MASK_FOLDERS = ("masks", "labels", "mask", "label")
MASK_ENDINGS = ("", "_masks", "_mask", "_labels", "_label", "_cp_masks", "_seg")
"""What may follow the image's name in the name of its label image; `_seg` only in numpy's files."""
BY_PRODUCTS = ("_flows", "_cp_output", "_outlines", "_cp_outlines", label_classes.ENDING)
"""Endings of the other images that Cellpose writes beside an image, and of class images."""
SUFFIXES = (".png", ".tif", ".tiff")
"""Formats that keep numbers exactly; numpy's files are the other."""
CLASS_NAME = "object"
Objects = dict[int, RunLengths]


@dataclass(frozen=True)
class LabelImages:
    """Where the label images of a split are.

    Attributes:
        images: folder of the images.
        masks: folder of the label images; may be `images`.
        classes: names of the folders in `masks`, where there is one for each class.
    """

    images: Path
    masks: Path
    classes: tuple[str, ...] = ()


def find_label_images(folder: Path, split_names: Sequence[str]) -> LabelImages | None:
    """Return the label images of a split, or with no `split_names` those of a folder without splits; None if none."""
    places = [(folder / name, folder / "images" / name, name) for name in split_names]
    for place, images, split in places or [(folder, folder / "images", "")]:
        for masks in MASK_FOLDERS:
            for pair in ((place / "images", place / masks), (images, folder / masks / split)):
                if all(path.is_dir() for path in pair):
                    found = _in_two_folders(*pair)
                    if found is not None:
                        return found
        for beside in (place, place / "images", images):
            if beside.is_dir() and _stems(beside).intersection(map(_base, _masks(beside, beside))):
                return LabelImages(beside, beside)
    return None


def _in_two_folders(images: Path, masks: Path) -> LabelImages | None:
    if _masks(images, masks):
        return LabelImages(images, masks)
    folders = [path for path in sorted(masks.iterdir()) if path.is_dir() and _masks(images, path)]
    stems = _stems(images)  # a folder of an image's name holds a file for each object
    if not stems or not folders or any(path.name in stems for path in folders):
        return None
    return LabelImages(images, masks, tuple(path.name for path in folders))


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if is_image_file(path)}


def _base(stem: str) -> str:
    ending = max((ending for ending in MASK_ENDINGS if stem.endswith(ending)), key=len)
    return stem.removesuffix(ending)


def _masks(images: Path, masks: Path) -> dict[str, list[Path]]:
    """Return the label images by stem; in the folder of the images, the ending of the name tells them."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(masks.iterdir()):
        stem, suffix = path.stem, path.suffix.lower()
        is_array = suffix == ".npy" and not path.name.startswith(".")
        is_label_image = suffix in SUFFIXES and is_image_file(path) and not stem.endswith("_seg")
        is_named = images != masks or stem.endswith(MASK_ENDINGS[1:])
        if (is_array or is_label_image) and is_named and not stem.endswith(BY_PRODUCTS):
            found[stem].append(path)
    return found


def read_label_images(
    place: LabelImages,
    splits: Sequence[LabelImages],
    names: Mapping[int, Class],
    on_issue: OnIssue,
    options: ReadOptions = DEFAULT_READING,
) -> Content:
    """Read label images, in the form of a COCO file.

    Objects that touch stay apart, as their numbers differ; an object in several pieces is one. Images are
    numbered from 1, by name. Sizes are those of the label images. Without classes there is one, `object`.

    Args:
        place: the folders. A label image is PNG, TIFF or numpy, of any depth, and has the name of its image (or with
            `_masks` or the like behind it).
        splits: those of all splits, which share one list of classes.
        names: of classes that are given by number.
        on_issue: is told of files without partner, damaged ones, and images that hold no labels.
        options: the page that is read of label images with several.
    """
    images, partners = _pair(place, on_issue)
    categories, ids = _categories(splits, names, on_issue)
    files = _class_files(place)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        needs_class = bool(ids) and not place.classes
        read = list(
            pool.map(
                lambda stem: _read_image(partners[stem], files.get(stem), needs_class, options.page), partners
            )
        )
    paths = [path for own in partners.values() for several in own.values() for path in several]
    for line in report_defaults(paths, ReadOptions(page=options.page), read_extent):
        on_issue(Problem("several pages", f"{place.masks}: {line}", fatal=False))
    report_unread({place.images, place.masks}, on_issue)
    records, annotations = [], []
    for number, (stem, found) in enumerate(zip(partners, read, strict=True), start=1):
        if isinstance(found, Problem):
            on_issue(found)
            continue
        (height, width), objects = found
        records.append({"id": number, "file_name": images[stem].name, "height": height, "width": width})
        annotations += [
            {
                "origin": origin,
                "image_id": number,
                "category_id": ids[kind] if ids else 1,
                "segmentation": mask,
            }
            for origin, kind, mask in objects
        ]
    if annotations and len({entry["image_id"] for entry in annotations}) == len(annotations):
        message = (
            f"{place.masks}: no file has more than one label; give every object of an image its own number"
        )
        on_issue(Problem("one label only", message, fatal=False))
    return {"images": records, "annotations": annotations, "categories": categories}


def _pair(place: LabelImages, on_issue: OnIssue) -> tuple[dict[str, Path], dict[str, dict[str, list[Path]]]]:
    """Return the image of each stem, and its label images: by class folder, all that have its name."""
    folders = {name: place.masks / name for name in place.classes} or {"": place.masks}
    labelled = {name: _masks(place.images, path) for name, path in folders.items()}
    taken = {path for masks in labelled.values() for paths in masks.values() for path in paths}
    images = _images(place.images, taken, on_issue)
    partners: dict[str, dict[str, list[Path]]] = {}
    for stem in images:
        found = {}
        for name, masks in labelled.items():
            paths = [path for ending in MASK_ENDINGS for path in masks.pop(stem + ending, [])]
            if paths:
                found[name] = paths
        if found:
            partners[stem] = found
        else:
            message = f"{place.masks}: has no label image {stem}.png or .tif for an image of {place.images}"
            on_issue(Problem("missing mask", f"{message}; add it, all 0 where there is no object"))
    for path in (path for masks in labelled.values() for paths in masks.values() for path in paths):
        on_issue(Problem("missing image", f"{path}: has no image of that name in {place.images}; add it"))
    return images, partners


def _images(folder: Path, masks: set[Path], on_issue: OnIssue) -> dict[str, Path]:
    found: dict[str, Path] = {}
    stems = _stems(folder)
    for path in sorted(path for path in folder.iterdir() if is_image_file(path) and path not in masks):
        if any(path.stem.endswith(end) and path.stem.removesuffix(end) in stems for end in BY_PRODUCTS):
            continue
        if path.stem in found:
            message = f"{path}: has the name of {found[path.stem].name}, so its label image is not certain"
            on_issue(Problem("duplicate id", f"{message}; rename one"))
        found.setdefault(path.stem, path)
    return found


def _class_files(place: LabelImages) -> dict[str, Path]:
    return {} if place.classes else label_classes.class_files(place.masks, MASK_FOLDERS, SUFFIXES)


def _categories(
    splits: Sequence[LabelImages], names: Mapping[int, Class], on_issue: OnIssue
) -> tuple[list[dict[str, Any]], dict[Class, int]]:
    """Return COCO's categories of all splits, and the id of each class."""
    kinds: set[Class] = {name for place in splits for name in place.classes}
    for file in (file for place in splits for file in _class_files(place).values()):
        try:
            is_table = file.suffix.lower() in label_classes.TABLES
            values = (
                label_classes.read_table(file).values()
                if is_table
                else np.unique(_read_labels(file)).tolist()
            )
            kinds.update(value for value in values if is_table or value != 0)
        except (BadInput, *READ_ERRORS) as error:
            on_issue(Problem("bad record", str(error)))
    numbers = sorted({kind for kind in kinds if isinstance(kind, int)} | (set(names) if kinds else set()))
    texts = sorted(kind for kind in kinds if isinstance(kind, str))
    ids: dict[Class, int] = {number: number for number in numbers}
    ids |= {text: place for place, text in enumerate(texts, start=1 + max(numbers, default=0))}
    titles: dict[Class, str] = {
        **{number: str(names.get(number, f"class {number}")) for number in numbers},
        **{t: t for t in texts},
    }
    if not ids:
        return [{"id": 1, "name": CLASS_NAME}], {}
    return [{"id": number, "name": titles[kind]} for kind, number in ids.items()], ids


def _read_image(
    partners: Mapping[str, Sequence[Path]], class_file: Path | None, needs_class: bool, page: int | None
) -> tuple[Size, list[tuple[str, Class, RunLengths]]] | Problem:
    """Read all objects of an image, each with its origin and class, or what is wrong."""
    size: Size | None = None
    result: list[tuple[str, Class, RunLengths]] = []
    for class_name, paths in partners.items():
        found = _read_agreeing(paths, page)
        if isinstance(found, Problem):
            return found
        if size not in (None, found[0]):
            return Problem(
                "wrong size", f"{paths[0]}: is {found[0]}, the label image of another class {size}"
            )
        size, objects = found
        classes: Mapping[int, Class] = dict.fromkeys(objects, class_name)
        if class_file is not None:
            try:
                classes = label_classes.object_classes(class_file, objects, _read_labels)
            except (BadInput, *READ_ERRORS) as error:
                return Problem("bad record", str(error))
        elif needs_class and objects:
            message = "has no file of classes, as other label images have; add one for it"
            return Problem("bad record", f"{paths[0]}: {message}")
        result += [(f"{paths[0]}: label {number}", classes[number], mask) for number, mask in objects.items()]
    assert size is not None  # an image without label images is left out before
    return size, result


def _read_agreeing(paths: Sequence[Path], page: int | None) -> tuple[Size, Objects] | Problem:
    """Read the label image of an image; where several have its name, they must be the same."""
    first = _read_objects(paths[0], page)
    for path in paths[1:]:
        other = _read_objects(path, page)
        if (
            not isinstance(first, Problem)
            and not isinstance(other, Problem)
            and not _are_equal(first[1], other[1])
        ):
            message = (
                f"{paths[0]}, {path}: differ, so it is not certain which has the masks; keep one of them"
            )
            return Problem("bad mask", message)
    return first


def _are_equal(some: Objects, others: Objects) -> bool:
    same = (
        np.array_equal(mask.counts, others[number].counts)
        for number, mask in some.items()
        if number in others
    )
    return some.keys() == others.keys() and all(same)


def _read_objects(path: Path, page: int | None) -> tuple[Size, Objects] | Problem:
    try:
        labels = _read_labels(path, page)
    except BadInput as error:
        return Problem("broken image", str(error))
    except READ_ERRORS as error:
        return Problem("broken image", f"{path}: cannot be read as an image ({error}); replace the file")
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim != 2 or labels.dtype.kind not in "biu" or labels.min(initial=0) < 0:
        message = "is no label image; write one whole number a pixel, 0 for background"
        return Problem("bad mask", f"{path}: {message}")
    return (labels.shape[0], labels.shape[1]), dict(label_objects(labels))


def _read_labels(path: Path, page: int | None = None) -> NDArray[Any]:
    return read_numpy_labels(path) if path.suffix.lower() == ".npy" else read_numbers(path, page)


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
