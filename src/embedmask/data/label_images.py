"""Read label images, the masks of microscopy: images of whole numbers, 0 for background, one number per object."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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
"""Endings that a label image may add to the name of its image; `_seg` only in numpy files."""
BY_PRODUCTS = ("_flows", "_cp_output", "_outlines", "_cp_outlines", label_classes.ENDING)
"""Endings of the other images that Cellpose writes beside an image, and of class images."""
SUFFIXES = (".png", ".tif", ".tiff")
"""Image formats that store numbers exactly; numpy files are also accepted."""
CLASS_NAME = "object"
Objects = dict[int, RunLengths]


class NotLabels(BadInput):
    """Error of an image that is readable, but not a label or class image."""


@dataclass(frozen=True)
class LabelImages:
    """Folders of the label images of a split.

    Attributes:
        images: folder of the images.
        masks: folder of the label images; may be `images`.
        classes: names of the folders in `masks`, if there is one per class.
    """

    images: Path
    masks: Path
    classes: tuple[str, ...] = ()


def find_label_images(folder: Path, split_names: Sequence[str]) -> LabelImages | None:
    """Find the label images of a split, or without `split_names` those of a folder without splits.

    Args:
        split_names: names that the folder of the split may have.

    Returns:
        The folders; None if there are no label images.
    """
    places = [(folder / name, folder / "images" / name, name) for name in split_names]
    for place, parallel, split in places or [(folder, folder / "images", "")]:
        pairs = [
            pair
            for name in MASK_FOLDERS
            for pair in ((place / "images", place / name), (parallel, folder / name / split))
        ]
        # last, label images among the images
        for images, masks in (*pairs, (place, place), (place / "images",) * 2, (parallel, parallel)):
            if not (images.is_dir() and masks.is_dir()):
                continue
            labels = _masks(images, masks)
            if images == masks:
                # without its longest ending, the name of a label image is that of its image
                endings = {stem: [end for end in MASK_ENDINGS if stem.endswith(end)] for stem in labels}
                names = {stem.removesuffix(max(ends, key=len)) for stem, ends in endings.items()}
                if names & _stems(images):
                    return LabelImages(images, masks)
                continue
            if labels:
                return LabelImages(images, masks)
            folders = [path for path in sorted(masks.iterdir()) if path.is_dir() and _masks(images, path)]
            stems = _stems(images)
            # folders named after images have one file per object: another layout
            if stems and folders and not any(path.name in stems for path in folders):
                return LabelImages(images, masks, tuple(path.name for path in folders))
    return None


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if is_image_file(path)}


def _masks(images: Path, masks: Path) -> dict[str, list[Path]]:
    """Return the label images in a folder by stem; in the folder of the images, the ending identifies them."""
    result: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(masks.iterdir()):
        stem, suffix = path.stem, path.suffix.lower()
        is_array = suffix == ".npy" and not path.name.startswith(".")
        is_label_image = suffix in SUFFIXES and is_image_file(path) and not stem.endswith("_seg")
        is_named = images != masks or stem.endswith(MASK_ENDINGS[1:])
        if (is_array or is_label_image) and is_named and not stem.endswith(BY_PRODUCTS):
            result[stem].append(path)
    return result


def read_label_images(
    source: LabelImages,
    splits: Sequence[LabelImages],
    names: Mapping[int, Class],
    on_issue: OnIssue,
    options: ReadOptions = DEFAULT_READING,
) -> Content:
    """Read label images as the content of a COCO file.

    Objects that touch stay separate because their numbers differ; all pieces with one number are one object. Images are
    numbered from 1, by name. Sizes are those of the label images. A data set without classes has one, `object`.

    Args:
        source: folders of the split. A label image is PNG, TIFF or numpy, of any bit depth, and has the name of its
            image, with or without an ending such as `_masks`.
        splits: folders of all splits, which share one list of classes.
        names: names of classes that are stored as numbers.
        on_issue: receives files without a counterpart, damaged files, and images that are not label images.
        options: page to read in label images with several pages.

    Returns:
        Lists of images, annotations (masks as run lengths) and categories.
    """
    images, partners = _pair(source, on_issue)
    categories, ids = _categories(splits, names, options.page, on_issue)
    class_files = _class_files(source)
    needs_class = bool(ids) and not source.classes

    def read(stem: str) -> tuple[Size, list[tuple[str, Class, RunLengths]]] | Problem:
        return _read_image(partners[stem], class_files.get(stem), needs_class, options.page)

    # decoding releases the GIL; problems are reported below, in the order of the images
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = list(pool.map(read, partners))
    paths = [path for by_class in partners.values() for several in by_class.values() for path in several]
    for line in report_defaults(paths, ReadOptions(page=options.page), read_extent):
        on_issue(Problem("several pages", f"{source.masks}: {line}", fatal=False))
    report_unread({source.images, source.masks}, on_issue)
    records, annotations = [], []
    for number, (stem, content) in enumerate(zip(partners, contents, strict=True), start=1):
        if isinstance(content, Problem):
            on_issue(content)
            continue
        (height, width), objects = content
        records.append({"id": number, "file_name": images[stem].name, "height": height, "width": width})
        for origin, name, mask in objects:
            entry = {"origin": origin, "image_id": number, "category_id": ids[name] if ids else 1}
            annotations.append({**entry, "segmentation": mask})
    # one object in every image: probably a mask of foreground and background
    if annotations and len({entry["image_id"] for entry in annotations}) == len(annotations):
        message = "no file has more than one label; give every object of an image its own number"
        on_issue(Problem("one label only", f"{source.masks}: {message}", fatal=False))
    return {"images": records, "annotations": annotations, "categories": categories}


def _pair(source: LabelImages, on_issue: OnIssue) -> tuple[dict[str, Path], dict[str, dict[str, list[Path]]]]:
    """Return the image of each stem, and its label images: by class folder, all files with its name."""
    folders = {name: source.masks / name for name in source.classes} or {"": source.masks}
    labels = {name: _masks(source.images, path) for name, path in folders.items()}
    taken = {path for masks in labels.values() for paths in masks.values() for path in paths}
    stems = _stems(source.images)
    images: dict[str, Path] = {}
    for path in sorted(p for p in source.images.iterdir() if is_image_file(p) and p not in taken):
        if any(path.stem.endswith(end) and path.stem.removesuffix(end) in stems for end in BY_PRODUCTS):
            continue
        if path.stem in images:
            message = f"{path}: has the name of {images[path.stem].name}, so its label image is ambiguous"
            on_issue(Problem("duplicate id", f"{message}; rename one of them"))
        images.setdefault(path.stem, path)
    partners: dict[str, dict[str, list[Path]]] = {}
    for stem in images:
        by_class = {
            name: [path for ending in MASK_ENDINGS for path in masks.pop(stem + ending, [])]
            for name, masks in labels.items()
        }
        if any(by_class.values()):
            partners[stem] = {name: paths for name, paths in by_class.items() if paths}
        else:
            message = f"{source.masks}: has no label image {stem}.png or .tif for an image of {source.images}"
            on_issue(Problem("missing mask", f"{message}; add it, all 0 if there is no object"))
    # label images that no image has claimed
    for path in (path for masks in labels.values() for paths in masks.values() for path in paths):
        on_issue(Problem("missing image", f"{path}: has no image of that name in {source.images}; add it"))
    return images, partners


def _class_files(source: LabelImages) -> dict[str, Path]:
    return {} if source.classes else label_classes.class_files(source.masks, MASK_FOLDERS, SUFFIXES)


def _categories(
    splits: Sequence[LabelImages], names: Mapping[int, Class], page: int | None, on_issue: OnIssue
) -> tuple[list[dict[str, Any]], dict[Class, int]]:
    """Return COCO's categories of all splits, and the category id of each class."""
    classes: set[Class] = {name for source in splits for name in source.classes}
    for file in (file for source in splits for file in _class_files(source).values()):
        try:
            if file.suffix.lower() in label_classes.TABLES:
                classes.update(label_classes.read_table(file).values())
            else:
                classes.update(value for value in np.unique(_read_labels(file, page)).tolist() if value != 0)
        except (BadInput, *READ_ERRORS) as error:
            on_issue(Problem("bad record", str(error)))
    if not classes:
        return [{"id": 1, "name": CLASS_NAME}], {}
    # numbers are ids themselves, and those with a name count even if unused; texts follow in alphabetical order
    numbers = sorted({value for value in classes if isinstance(value, int)} | set(names))
    texts = sorted(value for value in classes if isinstance(value, str))
    ids: dict[Class, int] = {number: number for number in numbers}
    ids |= {text: number for number, text in enumerate(texts, start=1 + max(numbers, default=0))}
    titles = {number: str(names.get(number, f"class {number}")) for number in numbers}
    titles |= {ids[text]: text for text in texts}
    return [{"id": number, "name": title} for number, title in titles.items()], ids


def _read_image(
    partners: Mapping[str, Sequence[Path]], class_file: Path | None, needs_class: bool, page: int | None
) -> tuple[Size, list[tuple[str, Class, RunLengths]]] | Problem:
    """Read the objects of an image, each with its origin and class; return the problem if that fails."""
    size: Size | None = None
    result: list[tuple[str, Class, RunLengths]] = []
    for class_name, paths in partners.items():
        content = _read_agreeing(paths, page)
        if isinstance(content, Problem):
            return content
        if size not in (None, content[0]):
            message = f"{paths[0]}: is {content[0]}, but the label image of another class is {size}"
            return Problem("wrong size", f"{message}; write all of them in one size")
        size, objects = content
        classes: Mapping[int, Class] = dict.fromkeys(objects, class_name)
        if class_file is not None:
            try:
                classes = label_classes.object_classes(class_file, objects, partial(_read_labels, page=page))
            except (BadInput, *READ_ERRORS) as error:
                return Problem("bad record", str(error))
        elif needs_class and objects:
            message = "has no file of classes, unlike other label images; add one for it"
            return Problem("bad record", f"{paths[0]}: {message}")
        result += [(f"{paths[0]}: label {number}", classes[number], mask) for number, mask in objects.items()]
    assert size is not None  # `_pair` reports images without label images
    return size, result


def _read_agreeing(paths: Sequence[Path], page: int | None) -> tuple[Size, Objects] | Problem:
    """Read the label image of an image; several files with its name must have the same objects."""
    first = _read_objects(paths[0], page)
    for path in paths[1:]:
        other = _read_objects(path, page)
        if isinstance(first, Problem) or isinstance(other, Problem):
            continue
        runs, other_runs = (
            {number: mask.counts.tobytes() for number, mask in objects.items()}
            for _, objects in (first, other)
        )
        if runs != other_runs:
            fix = "so it is ambiguous which has the masks; keep one of them"
            return Problem("bad mask", f"{paths[0]}, {path}: differ, {fix}")
    return first


def _read_objects(path: Path, page: int | None) -> tuple[Size, Objects] | Problem:
    try:
        labels = _read_labels(path, page)
    except NotLabels as error:
        return Problem("bad mask", str(error))
    except BadInput as error:
        return Problem("broken image", str(error))
    except READ_ERRORS as error:
        return Problem("broken image", f"{path}: cannot be read as an image ({error}); replace the file")
    return (labels.shape[0], labels.shape[1]), dict(label_objects(labels))


def _read_labels(path: Path, page: int | None) -> Labels:
    """Read a label image or a class image, integers `[H, W]`.

    Raises:
        NotLabels: it has other values or dimensions.
        BadInput, READ_ERRORS: it cannot be read.
    """
    labels = read_numpy_labels(path) if path.suffix.lower() == ".npy" else read_numbers(path, page)
    # some tools write whole numbers as floats, and 1 bit is read as bool
    if labels.dtype.kind == "b" or (labels.dtype.kind == "f" and (labels == np.rint(labels)).all()):
        labels = labels.astype(np.int64)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise NotLabels(f"{path}: is not a label image; write one whole number per pixel, 0 for background")
    return labels


def label_objects(labels: Labels) -> Iterator[tuple[int, RunLengths]]:
    """Yield the number and the mask of each object of a label image, by ascending number.

    Linear in the pixels and the runs: objects are not searched one by one.

    Args:
        labels: `[H, W]`, non-negative; 0 is background.
    """
    # column by column, as COCO counts runs: [H * W]
    flat = labels.ravel(order="F")
    # positions of the P foreground pixels, sorted by object, then by position: [P]
    place = np.flatnonzero(flat)
    order = np.argsort(flat[place], kind="stable")
    place = place[order]
    value = flat[place].astype(np.int64)
    # a run begins where the object changes or the positions have a gap: [P]
    begins = np.ones(len(place), dtype=bool)
    begins[1:] = (np.diff(value) != 0) | (np.diff(place) != 1)
    # start, end (exclusive) and object of each of the R runs: [R]
    first = np.flatnonzero(begins)
    starts, owners = place[first], value[first]
    ends = starts + np.diff(first, append=len(place))
    # first and last run of each object: [G]; 0, the background, differs from every object
    firsts, lasts = (np.flatnonzero(np.diff(owners, **edge)) for edge in ({"prepend": 0}, {"append": 0}))
    for begin, end in zip(firsts, lasts + 1, strict=True):
        # start, end, start, end, ... -> lengths of background, object, ..., background
        edges = np.stack((starts[begin:end], ends[begin:end]), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=labels.size)
        yield int(owners[begin]), RunLengths(counts, (labels.shape[0], labels.shape[1]))
