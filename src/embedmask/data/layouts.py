"""Recognize the layout of a data folder: where the images and the ground truth of a split are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from embedmask.config.data import Split
from embedmask.config.reading import ReadOptions
from embedmask.data.annotations import Content, read_coco
from embedmask.data.exports import IMAGE_FOLDERS, export_layout, find_export, image_folders, subfolders
from embedmask.data.image_files import has_images
from embedmask.data.label_classes import read_table
from embedmask.data.label_images import find_label_images, read_label_images
from embedmask.data.labelme import find_labelme, labelme_image_folders, read_labelme
from embedmask.data.problems import OnIssue
from embedmask.data.records import as_id
from embedmask.data.yolo import find_images, read_data_file, read_yolo
from embedmask.errors import BadInput

SPLITS: tuple[Split, ...] = get_args(Split)
FOLDERS: dict[str | None, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    "test-dev": ("test-dev",),
    None: (),
}
"""Folder names that tools use for a split; none for a data set without splits."""
ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class SplitFiles:
    """Files of a split.

    Attributes:
        annotations: path that messages name: the COCO annotation file, or the file or folder that takes its place.
        images: folder in which the layout places the images.
        layout: description of the recognized layout, one line.
        read: reads the ground truth as the content of a COCO file.
        others: further folders that may contain the images; `images` is among them if it has no precedence.
        read_stored: same as `read`, with relative coordinates interpreted in the images as stored, before the EXIF
            rotation; None if the coordinates are absolute.
    """

    annotations: Path
    images: Path
    layout: str
    read: Callable[[OnIssue, ReadOptions], Content]
    others: tuple[Path, ...] = ()
    read_stored: Callable[[OnIssue, ReadOptions], Content] | None = None

    @property
    def root(self) -> Path:
        """Return the deepest folder that contains all image folders."""
        return Path(os.path.commonpath((self.images, *self.others)))


def find_split(data_dir: str | Path, split: Split) -> SplitFiles:
    """Find the files of a split. A folder without splits is read as `train`.

    Supported layouts, in order of precedence:
    - `{split}.json` beside `images/`;
    - COCO: `annotations/instances_{split}{year}.json` (or `image_info_{split}{year}.json`, without annotations) with
      `{split}{year}/`;
    - Roboflow's COCO export: `{split}/_annotations.coco.json` in the folder of its images;
    - YOLO: `data.yaml`, and polygons in `labels/` beside `images/`;
    - label images: `{split}/images/` and `{split}/masks/`, `images/{split}/` and `masks/{split}/`, or
      `NAME_masks.tif` and similar beside each image in `{split}/`;
    - LabelMe: a JSON file for each image in `{split}/`;
    - any other COCO file with the split in its file name or folder, as annotation tools export them.

    The last three also apply to a folder without splits.

    Raises:
        BadInput: the folder does not exist, has no such split, contains several COCO files for it, or the image
            folder is missing.
    """
    folder = Path(data_dir)
    files = _find(folder, split)
    if files is not None:
        return files
    others = [name for name in SPLITS if name != split and _find(folder, name)]
    if others == ["train"] and split == "val":
        raise BadInput(
            f"{folder}: has no val split, only train; hold out images for it with --val-fraction 0.2, "
            f"or write a data set with both: embedmask data split {folder} --out NEW --val 0.2"
        )
    if others:
        raise BadInput(
            f"{folder}: has no {split} split, only {' and '.join(others)}; "
            f"move some of its images, with their annotations, to {split}"
        )
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and _is_data_set(path)]
    if inner:
        raise BadInput(f"{folder}: has no {split} split, but {inner[0]} is a data set; pass that folder")
    raise BadInput(
        f"{folder}: has no {split} split; looked for {split}.json beside images/, "
        f"annotations/instances_{split}2017.json (or another year) with {split}2017/, "
        f"{split}/_annotations.coco.json, data.yaml, {split}/images/ with label images in {split}/masks/, "
        f"LabelMe's files in {split}/, and COCO files of other names"
    )


def has_split(data_dir: str | Path, split: Split) -> bool:
    """Return whether a folder contains a split; errors as in `find_split`."""
    return _find(Path(data_dir), split) is not None


def _is_data_set(folder: Path) -> bool:
    try:
        return any(_find(folder, split) for split in SPLITS)
    except BadInput:
        return False


def _find(folder: Path, split: Split) -> SplitFiles | None:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such data folder; pass the folder that contains the data set")
    files = next((files for find in LAYOUTS if (files := find(folder, split)) is not None), None)
    has_splits = files is not None or any(find(folder, name) for name in SPLITS for find in LAYOUTS)
    # A COCO file of the whole set would include val in train: it counts only if there is no split at all.
    if has_splits or split != "train":
        return files
    return next((files for find in WITHOUT_SPLITS if (files := find(folder, None)) is not None), None)


def _coco(folder: Path, split: Split) -> SplitFiles | None:
    """Find `{split}.json` beside `images/`, or the files of COCO."""
    file, images, layout = folder / f"{split}.json", folder / "images", f"{split}.json beside images/"
    if not file.is_file():
        pattern = re.compile(rf"(?:instances|image_info)_({re.escape(split)}(\d{{4}}))\.json")
        files = [path for path in (folder / "annotations").glob("*.json") if pattern.fullmatch(path.name)]
        if not files:
            return None
        # the last year; of one year, "instances" sorts after "image_info"
        file = max(files, key=lambda path: (path.name[-9:], path.name))
        images = folder / f"{split.removesuffix('-dev')}{file.stem[-4:]}"  # test-dev is a part of test
        layout = f"COCO, annotations/{file.name} with {images.name}/"
        if not file.is_file():
            return None
    others = tuple(path for path in image_folders(file, folder, FOLDERS[split]) if path != images)
    if not images.is_dir() and not any(map(has_images, others)):
        raise BadInput(f"{images}: no such folder, but {file} needs its images there; add it")
    return SplitFiles(file, images, layout, lambda _, __: read_coco(file), others)


def _roboflow(folder: Path, split: Split) -> SplitFiles | None:
    file = next((p for name in FOLDERS[split] if (p := folder / name / ROBOFLOW_FILE).is_file()), None)
    if file is None:
        return None

    def read(_: OnIssue, __: ReadOptions) -> Content:
        content = read_coco(file)
        used = {
            as_id(entry.get("category_id")) for entry in content["annotations"] if isinstance(entry, dict)
        }
        parents = {
            str(entry.get("supercategory")) for entry in content["categories"] if isinstance(entry, dict)
        }
        # Roboflow adds category 0, named after the project: the supercategory of all others, used by no object.
        # A category that differs in any of this is kept, and checked later.
        content["categories"] = [
            entry
            for entry in content["categories"]
            if not isinstance(entry, dict)
            or entry.get("id") != 0
            or 0 in used
            or entry.get("supercategory") != "none"
            or entry.get("name") not in parents
        ]
        return content

    others = tuple(subfolders(file.parent, IMAGE_FOLDERS))
    layout = f"Roboflow's COCO export, {file.parent.name}/{file.name}"
    return SplitFiles(file, file.parent, layout, read, others)


def _yolo(folder: Path, split: Split) -> SplitFiles | None:
    file = next((file for file in (folder / "data.yaml", folder / "data.yml") if file.is_file()), None)
    if file is None:
        return None
    data = read_data_file(file)
    images = find_images(data, file, FOLDERS[split])
    if images is None:
        return None
    read = partial(read_yolo, images, data["names"], file)
    layout = f"YOLO, {file.name} with {len(images)} images of {split}"
    return SplitFiles(file, folder, layout, read, read_stored=partial(read, upright=False))


def _label_images(folder: Path, split: Split | None) -> SplitFiles | None:
    source = find_label_images(folder, FOLDERS[split])
    if source is None:
        return None
    # all splits share one list of classes, so that a class missing from one of them does not shift the labels
    splits = [other for name in SPLITS if (other := find_label_images(folder, FOLDERS[name]))] or [source]
    tables = [path / name for path in (folder, source.masks) for name in ("classes.json", "classes.csv")]

    def read(on_issue: OnIssue, options: ReadOptions) -> Content:
        class_names = next((read_table(path) for path in tables if path.is_file()), {})
        return read_label_images(source, splits, class_names, on_issue, options)

    classes = f", one folder for each of {len(source.classes)} classes" if source.classes else ""
    layout = f"label images, {_in(folder, source.images)} with {_in(folder, source.masks)}{classes}"
    return SplitFiles(source.masks, source.images, layout, read)


def _labelme(folder: Path, split: Split | None) -> SplitFiles | None:
    source = find_labelme(folder, FOLDERS[split])
    if source is None:
        return None
    splits = [other for name in SPLITS if (other := find_labelme(folder, FOLDERS[name]))] or [source]
    others = tuple(labelme_image_folders(source, folder, FOLDERS[split]))
    layout = f"LabelMe, {_in(folder, source)}"
    return SplitFiles(
        source, source, layout, lambda on_issue, _: read_labelme(source, splits, on_issue), others[1:]
    )


def _export(folder: Path, split: Split | None) -> SplitFiles | None:
    file = find_export(folder, FOLDERS[split])
    if file is None:
        return None
    others = tuple(image_folders(file, folder, FOLDERS[split]))
    return SplitFiles(file, others[0], export_layout(file, folder), lambda _, __: read_coco(file), others)


def _in(folder: Path, path: Path) -> str:
    return f"{path.relative_to(folder).as_posix()}/"


LAYOUTS: list[Callable[[Path, Split], SplitFiles | None]] = [
    _coco,
    _roboflow,
    _yolo,
    _label_images,
    _labelme,
    _export,
]
"""Finders in order of precedence; each returns the files of a split, or None if the folder has another layout."""
WITHOUT_SPLITS: list[Callable[[Path, None], SplitFiles | None]] = [_export, _label_images, _labelme]
"""Finders for `train` in a folder without splits."""
