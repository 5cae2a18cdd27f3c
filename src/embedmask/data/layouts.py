"""How a folder is laid out, found out by looking: where the pictures and the ground truth of a split are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from embedmask.config.data import Split
from embedmask.config.reading import ReadOptions
from embedmask.data.annotations import Content, read_coco
from embedmask.data.label_images import find_label_images, read_label_images
from embedmask.data.problems import Note
from embedmask.data.yolo import find_pictures, read_data_file, read_yolo
from embedmask.errors import BadInput

SPLITS: tuple[Split, ...] = get_args(Split)
FOLDERS: dict[str, tuple[str, ...]] = {"val": ("val", "valid", "validation")}
"""What tools call the folder of a split, where it is not the split's own name."""
ROBOFLOW_FILE = "_annotations.coco.json"


@dataclass(frozen=True)
class SplitFiles:
    """Where a split lies.

    Attributes:
        annotations: what messages name: the COCO annotation file, or the file or folder that stands for it.
        images: folder that the names of pictures are relative to.
        layout: what the folder was recognised as, for one line to the user.
        read: reads the ground truth in the form of a COCO file.
    """

    annotations: Path
    images: Path
    layout: str
    read: Callable[[Note, ReadOptions], Content]


def find_split(data_dir: str | Path, split: Split) -> SplitFiles:
    """Find out how a folder is laid out, by looking.

    Known layouts, in this order:
    - `{split}.json` beside `images/`;
    - COCO's own: `annotations/instances_{split}{year}.json` (or `image_info_{split}{year}.json`, which has no
      annotations) with `{split}{year}/`;
    - Roboflow's COCO export: `{split}/_annotations.coco.json` among its pictures;
    - YOLO's: `data.yaml`, and `labels/` with polygons beside `images/`;
    - label images: `{split}/images/` and `{split}/masks/`, `images/{split}/` and `masks/{split}/`, or
      `NAME_masks.tif` beside each picture in `{split}/`.

    Raises:
        BadInput: no such folder, none of the layouts, or the folder of images is missing; says which.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such data folder; give the folder that holds the data set")
    for finder in LAYOUTS:
        files = finder(folder, split)
        if files is not None:
            return files
    others = [name for name in SPLITS if name != split and any(look(folder, name) for look in LAYOUTS)]
    if others:
        raise BadInput(
            f"{folder}: has no {split} split, only {' and '.join(others)}; "
            f"move some of its pictures, with their annotations, to {split}"
        )
    raise BadInput(
        f"{folder}: has no {split} split; looked for {split}.json beside images/, "
        f"annotations/instances_{split}2017.json (or another year) with {split}2017/, "
        f"{split}/_annotations.coco.json, data.yaml, and {split}/images/ with label images in {split}/masks/"
    )


def _plain(folder: Path, split: Split) -> SplitFiles | None:
    return _coco_file(folder / f"{split}.json", folder / "images", f"{split}.json beside images/")


def _coco(folder: Path, split: Split) -> SplitFiles | None:
    pattern = re.compile(rf"(?:instances|image_info)_({re.escape(split)}(\d{{4}}))\.json")
    files = [file for file in (folder / "annotations").glob("*.json") if pattern.fullmatch(file.name)]
    if not files:
        return None
    file = max(files, key=lambda file: (file.name[-9:], file.name))  # the newest year, instances first
    images = f"{split.removesuffix('-dev')}{file.stem[-4:]}"
    return _coco_file(file, folder / images, f"COCO, annotations/{file.name} with {images}/")


def _roboflow(folder: Path, split: Split) -> SplitFiles | None:
    for name in FOLDERS.get(split, (split,)):
        file = folder / name / ROBOFLOW_FILE
        if file.is_file():
            layout = f"Roboflow's COCO export, {name}/{file.name}"
            return SplitFiles(file, file.parent, layout, partial(_read_roboflow, file))
    return None


def _read_roboflow(file: Path, _: Note, __: ReadOptions) -> Content:
    """Leave out Roboflow's category 0: it names the project, other categories call it theirs, and no object has it.

    Whatever does not look like that stays, to be checked.
    """
    content = read_coco(file)
    used = {entry.get("category_id") for entry in content["annotations"] if isinstance(entry, dict)}
    parents = {entry.get("supercategory") for entry in content["categories"] if isinstance(entry, dict)}

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
    pictures = find_pictures(data, file, FOLDERS.get(split, (split,)))
    if pictures is None:
        return None
    read = partial(read_yolo, pictures, data["names"], file)
    return SplitFiles(file, folder, f"YOLO, {file.name} with {len(pictures)} pictures of {split}", read)


def _label_images(folder: Path, split: Split) -> SplitFiles | None:
    found = find_label_images(folder, FOLDERS.get(split, (split,)))
    if found is None:
        return None
    images, masks = found
    layout = f"label images, {images.relative_to(folder)}/ with {masks.relative_to(folder)}/"
    return SplitFiles(masks, images, layout, partial(read_label_images, images, masks))


def _coco_file(file: Path, images: Path, layout: str) -> SplitFiles | None:
    if not file.is_file():
        return None
    if not images.is_dir():
        raise BadInput(f"{images}: no such folder, but {file} needs its images there; add it")
    return SplitFiles(file, images, layout, lambda _, __: read_coco(file))


LAYOUTS: list[Callable[[Path, Split], SplitFiles | None]] = [_plain, _coco, _roboflow, _yolo, _label_images]
"""Tried in this order; each gives the files of a split, or None where the folder is laid out otherwise."""
