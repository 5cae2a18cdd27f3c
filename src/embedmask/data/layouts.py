"""Recognize how a folder is laid out: where the images and the ground truth of a split are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
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
FOLDERS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    "test-dev": ("test-dev",),
}
"""What tools call the folder of a split."""
ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class SplitFiles:
    """Where a split lies.

    Attributes:
        annotations: what messages name: the COCO annotation file, or the file or folder that stands for it.
        images: folder that the layout puts the images in.
        layout: what the folder was recognized as, for one line to the user.
        read: reads the ground truth in the form of a COCO file.
        others: more folders that the images may be in; `images` is among them where it has no precedence.
        read_stored: likewise, with relative coordinates meant in images as stored, not upright by EXIF; None: the
            coordinates are absolute.
    """

    annotations: Path
    images: Path
    layout: str
    read: Callable[[OnIssue, ReadOptions], Content]
    others: tuple[Path, ...] = ()
    read_stored: Callable[[OnIssue, ReadOptions], Content] | None = None

    @property
    def root(self) -> Path:
        """Folder that holds all the folders of images."""
        return Path(os.path.commonpath((self.images, *self.others)))


def find_split(data_dir: str | Path, split: Split) -> SplitFiles:
    """Find the files of a split; a folder without splits counts as `train`.

    Known layouts, in this order:
    - `{split}.json` beside `images/`;
    - COCO's own: `annotations/instances_{split}{year}.json` (or `image_info_{split}{year}.json`, which has no
      annotations) with `{split}{year}/`;
    - Roboflow's COCO export: `{split}/_annotations.coco.json` among its images;
    - YOLO's: `data.yaml`, and `labels/` with polygons beside `images/`;
    - label images: `{split}/images/` and `{split}/masks/`, `images/{split}/` and `masks/{split}/`, or
      `NAME_masks.tif` and the like beside each image in `{split}/`;
    - LabelMe's: a JSON file for each image in `{split}/`;
    - any other COCO file whose name or folder says the split, as annotation tools export them.

    The last three are also looked for without splits.

    Raises:
        BadInput: no such folder, none of the layouts, several COCO files, or the folder of images is missing; says
            which.
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
        raise BadInput(f"{folder}: has no {split} split, but {inner[0]} is a data set; give that folder")
    raise BadInput(
        f"{folder}: has no {split} split; looked for {split}.json beside images/, "
        f"annotations/instances_{split}2017.json (or another year) with {split}2017/, "
        f"{split}/_annotations.coco.json, data.yaml, {split}/images/ with label images in {split}/masks/, "
        f"LabelMe's files in {split}/, and COCO files of other names"
    )


def has_split(data_dir: str | Path, split: Split) -> bool:
    """Return whether a folder has a split.

    Raises:
        BadInput: see `find_split`.
    """
    return _find(Path(data_dir), split) is not None


def _is_data_set(folder: Path) -> bool:
    try:
        return any(_find(folder, split) for split in SPLITS)
    except BadInput:
        return False


def _find(folder: Path, split: Split) -> SplitFiles | None:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such data folder; give the folder that holds the data set")
    found = next((files for find in LAYOUTS if (files := find(folder, split)) is not None), None)
    has_splits = any(find(folder, name) for name in SPLITS for find in LAYOUTS) if found is None else True
    if split != "train" or has_splits:
        return found
    return next((files for find in WITHOUT_SPLITS if (files := find(folder, ())) is not None), None)


def _plain(folder: Path, split: Split) -> SplitFiles | None:
    return _coco_file(
        folder / f"{split}.json", folder / "images", f"{split}.json beside images/", folder, split
    )


def _coco(folder: Path, split: Split) -> SplitFiles | None:
    pattern = re.compile(rf"(?:instances|image_info)_({re.escape(split)}(\d{{4}}))\.json")
    files = [file for file in (folder / "annotations").glob("*.json") if pattern.fullmatch(file.name)]
    if not files:
        return None
    file = max(files, key=lambda file: (file.name[-9:], file.name))  # the newest year, instances first
    images = f"{split.removesuffix('-dev')}{file.stem[-4:]}"
    return _coco_file(file, folder / images, f"COCO, annotations/{file.name} with {images}/", folder, split)


def _roboflow(folder: Path, split: Split) -> SplitFiles | None:
    for name in FOLDERS[split]:
        file = folder / name / ROBOFLOW_FILE
        if file.is_file():
            layout = f"Roboflow's COCO export, {name}/{file.name}"
            others = tuple(subfolders(file.parent, IMAGE_FOLDERS))
            return SplitFiles(file, file.parent, layout, partial(_read_roboflow, file), others)
    return None


def _read_roboflow(file: Path, _: OnIssue, __: ReadOptions) -> Content:
    """Leave out Roboflow's category 0: it names the project, other categories call it theirs, and no object has it.

    Whatever does not look like that stays, to be checked.
    """
    content = read_coco(file)
    used = {as_id(entry.get("category_id")) for entry in content["annotations"] if isinstance(entry, dict)}
    parents = {str(entry.get("supercategory")) for entry in content["categories"] if isinstance(entry, dict)}

    def is_placeholder(entry: object) -> bool:
        return (
            isinstance(entry, dict)
            and entry.get("id") == 0
            and 0 not in used
            and entry.get("supercategory") == "none"
            and entry.get("name") in parents
        )

    content["categories"] = [entry for entry in content["categories"] if not is_placeholder(entry)]
    return content


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


def _label_images(folder: Path, split: Split) -> SplitFiles | None:
    return _label_images_of(folder, FOLDERS[split])


def _label_images_of(folder: Path, names: Sequence[str]) -> SplitFiles | None:
    found = find_label_images(folder, names)
    if found is None:
        return None
    everywhere = [place for place in (find_label_images(folder, FOLDERS[name]) for name in SPLITS) if place]
    tables = [path / name for path in (folder, found.masks) for name in ("classes.json", "classes.csv")]

    def read(on_issue: OnIssue, options: ReadOptions) -> Content:
        titles = next((read_table(path) for path in tables if path.is_file()), {})
        return read_label_images(found, everywhere or [found], titles, on_issue, options)

    classes = f", one folder for each of {len(found.classes)} classes" if found.classes else ""
    layout = f"label images, {_in(folder, found.images)} with {_in(folder, found.masks)}{classes}"
    return SplitFiles(found.masks, found.images, layout, read)


def _labelme(folder: Path, split: Split) -> SplitFiles | None:
    return _labelme_of(folder, FOLDERS[split])


def _labelme_of(folder: Path, names: Sequence[str]) -> SplitFiles | None:
    found = find_labelme(folder, names)
    if found is None:
        return None
    splits = [place for place in (find_labelme(folder, FOLDERS[name]) for name in SPLITS) if place] or [found]
    others = tuple(labelme_image_folders(found, folder, names))
    layout = f"LabelMe, {_in(folder, found)}"
    return SplitFiles(
        found, found, layout, lambda on_issue, _: read_labelme(found, splits, on_issue), others[1:]
    )


def _export(folder: Path, split: Split) -> SplitFiles | None:
    return _export_of(folder, FOLDERS[split])


def _export_of(folder: Path, names: Sequence[str]) -> SplitFiles | None:
    file = find_export(folder, names)
    if file is None:
        return None
    others = tuple(image_folders(file, folder, names))
    return SplitFiles(file, others[0], export_layout(file, folder), lambda _, __: read_coco(file), others)


def _coco_file(file: Path, images: Path, layout: str, folder: Path, split: Split) -> SplitFiles | None:
    if not file.is_file():
        return None
    others = tuple(path for path in image_folders(file, folder, FOLDERS[split]) if path != images)
    if not images.is_dir() and not any(map(has_images, others)):
        raise BadInput(f"{images}: no such folder, but {file} needs its images there; add it")
    return SplitFiles(file, images, layout, lambda _, __: read_coco(file), others)


def _in(folder: Path, path: Path) -> str:
    return f"{path.relative_to(folder).as_posix()}/"


LAYOUTS: list[Callable[[Path, Split], SplitFiles | None]] = [
    _plain,
    _coco,
    _roboflow,
    _yolo,
    _label_images,
    _labelme,
    _export,
]
"""Tried in this order; each gives the files of a split, or None where the folder is laid out otherwise."""
WITHOUT_SPLITS: list[Callable[[Path, Sequence[str]], SplitFiles | None]] = [
    _export_of,
    _label_images_of,
    _labelme_of,
]
"""Tried for `train` where no split is found; given no names of splits."""
