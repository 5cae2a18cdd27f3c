"""Write a data set without a val split as a new one with `train.json`, `val.json` and `images/`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from embedmask.config.data import Degenerate, Exif
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.coco import CocoInstances, check_no_val_split
from embedmask.data.layouts import has_split
from embedmask.data.near_duplicates import split_by_content
from embedmask.data.problems import BadObject
from embedmask.data.records import CROWD, as_id
from embedmask.data.segmentation import Polygons, Segmentation, parse_segmentation, shortest_decimals
from embedmask.errors import BadInput
from embedmask.files import atomic_folder, read_text
from embedmask.structures import Size


@dataclass(frozen=True)
class SplitReport:
    """Summary of the data set that was written.

    Attributes:
        layout: recognized layout of the source.
        counts: number of images of each split.
        linked: number of images that are hard links to the source; the others are copies.
        notes: lines about a test split that was not copied, and warnings about the source.
    """

    layout: str
    counts: dict[str, int]
    linked: int
    notes: list[str]


def write_split(
    data_dir: Path,
    out: Path,
    *,
    val: float,
    test: float = 0.0,
    degenerate: Degenerate = "refuse",
    exif: Exif = "auto",
    options: ReadOptions = DEFAULT_READING,
    copy: bool = False,
) -> SplitReport:
    """Split a data set by the content of its images, see `split_by_content`, and write it; the source is not changed.

    COCO records are written unchanged except for the file names, other layouts are converted to COCO. A test split of
    the source is copied, unless it has no annotations.

    Args:
        data_dir: data set without a val split, of any layout.
        out: new or empty folder outside `data_dir`.
        val, test: fractions of the images; `test` 0 for no new test split.
        degenerate: "refuse" objects that cover no pixel, or "drop" them.
        exif: frame of the annotations where an image's EXIF orientation allows two, as in `CocoInstances.open`; that of
            converted annotations is stored in the new set.
        options: how image files and label images are read.
        copy: whether to copy images even if they can be hard links.

    Raises:
        BadInput: there is a val split, or a test split although `test` is set; the data cannot be read or divided; or
            `out` cannot be written.
    """
    if out.resolve().is_relative_to(data_dir.resolve()):
        raise BadInput(
            f"{out}: lies inside {data_dir}, which must not be changed; choose a folder outside it"
        )
    check_no_val_split(data_dir)
    has_test = has_split(data_dir, "test")
    if has_test and test:
        raise BadInput(f"{data_dir}: already has a test split, which is copied; omit --test")
    whole = CocoInstances.open(data_dir, "train", degenerate=degenerate, exif=exif, options=options)
    fractions: dict[str, float] = {"val": val, **({"test": test} if test else {})}
    places = split_by_content([whole.image_path(i) for i in range(len(whole))], fractions, options)
    sets = {split: whole.select(indices) for split, indices in places.items()}
    notes = whole.warning_lines()
    if has_test:
        given = CocoInstances.open(data_dir, "test", degenerate=degenerate, exif=exif, options=options)
        if given.has_annotations:
            sets["test"] = given
            notes += given.warning_lines()
        else:
            notes.append(f"{given.annotations_file}: has no annotations, so test is not copied")
    taken: set[str] = set()
    linked = 0
    with atomic_folder(out) as folder:
        for split, dataset in sets.items():
            names: list[str] = []
            for index in range(len(dataset)):
                name, is_link = _add_image(dataset, index, folder / "images", taken, copy)
                names.append(name)
                linked += is_link
            text = json.dumps(_content(dataset, names))
            (folder / f"{split}.json").write_text(text, encoding="utf-8")
    counts = {split: len(dataset) for split, dataset in sets.items()}
    return SplitReport(whole.layout, counts, linked, notes)


def _add_image(
    dataset: CocoInstances, index: int, folder: Path, taken: set[str], copy: bool
) -> tuple[str, bool]:
    """Link or copy an image to a folder.

    Args:
        folder: new image folder.
        taken: case-folded names in the folder; the new name is added.
        copy: whether to copy the image even if it can be a hard link.

    Returns:
        The new name, which is the path inside the old image folder, with a number appended if that is taken; and
        whether the new file is a hard link.
    """
    path = dataset.image_path(index)
    inside = path.is_relative_to(dataset.images_dir) and ".." not in path.parts
    name = path.relative_to(dataset.images_dir) if inside else PurePath(path.name)
    free, number = name, 2
    while free.as_posix().casefold() in taken:
        free, number = name.with_stem(f"{name.stem}_{number}"), number + 1
    taken.add(free.as_posix().casefold())
    target = folder / free
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        try:
            os.link(path.resolve(), target)
        except OSError:  # another file system, or one without hard links
            pass
        else:
            return free.as_posix(), True
    shutil.copyfile(path, target)
    return free.as_posix(), False


def _content(dataset: CocoInstances, names: Sequence[str]) -> dict[str, Any]:
    """Return the content of a COCO file: the records of the source if it is COCO, or else converted ones."""
    new = dict(zip(dataset.image_ids, names, strict=True))
    if dataset.annotations_file.suffix.lower() != ".json":
        return _as_coco(dataset, new)
    content = json.loads(read_text(dataset.annotations_file))
    dropped = set(dataset.ground_truth.dropped)
    usable = (entry for index, entry in enumerate(content["annotations"]) if index not in dropped)
    if dataset.ground_truth.dropped_parts:
        sizes = dict(zip(dataset.ground_truth.image_ids, dataset.ground_truth.sizes, strict=True))
        usable = (_without_degenerate_polygons(entry, sizes) for entry in usable)
    images = [
        {**image, "file_name": new[number]}
        for image in content["images"]
        if (number := as_id(image["id"])) in new
    ]
    return {
        **content,
        "images": images,
        "annotations": [entry for entry in usable if as_id(entry["image_id"]) in new],
        "categories": [c for c in content["categories"] if as_id(c["id"]) in dataset.category_ids],
    }


def _without_degenerate_polygons(entry: dict[str, Any], sizes: Mapping[int, Size]) -> dict[str, Any]:
    """Return a usable annotation, without those of its polygons that `degenerate: drop` leaves out."""
    number = as_id(entry["image_id"])
    size = None if number is None else sizes.get(number)
    if size is None or not isinstance(entry["segmentation"], list) or CROWD[entry.get("iscrowd")]:
        return entry
    dropped: list[BadObject] = []
    mask = parse_segmentation(entry["segmentation"], size, dropped.append)
    return {**entry, "segmentation": _as_written(mask)} if dropped else entry


def _as_coco(dataset: CocoInstances, names: Mapping[int, str]) -> dict[str, Any]:
    """Convert the annotations of a data set to COCO; `names` is the new file name by image id."""
    gt = dataset.ground_truth
    images = [
        {"id": image_id, "file_name": names[image_id], "height": size[0], "width": size[1]}
        for image_id, size in zip(gt.image_ids, gt.sizes, strict=True)
    ]
    annotations: list[dict[str, Any]] = []
    for item in map(gt.annotations.__getitem__, range(len(images))):
        rows = zip(item.labels.tolist(), item.segmentations, item.known_areas(), strict=True)
        for label, mask, area in rows:
            left, top, right, bottom = mask.bounds()
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": item.image_id,
                "category_id": gt.category_ids[label],
                "iscrowd": 0,
                "area": area,
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": _as_written(mask),
            })  # fmt: skip
    names_by_id = zip(gt.category_ids, gt.class_names, strict=True)
    categories = [{"id": number, "name": name} for number, name in names_by_id]
    return {"images": images, "annotations": annotations, "categories": categories}


def _as_written(mask: Segmentation) -> list[list[float]] | dict[str, Any]:
    """Return the `segmentation` of an annotation: lists of polygons, or run lengths with a list of counts."""
    if isinstance(mask, Polygons):
        return [shortest_decimals(part).ravel().tolist() for part in mask.parts]
    return {"size": list(mask.size), "counts": mask.counts.tolist()}
