"""What `predict` writes for each image or frame beside its part in predictions.json."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from os.path import relpath
from pathlib import Path
from typing import Literal

import yaml

from embedmask.cli.sources import Source
from embedmask.files import is_temporary, write_json, write_text
from embedmask.inference.polygons import label_image, labelme, yolo_lines
from embedmask.structures import Instances
from embedmask.visualize import write_image

Format = Literal["coco", "labels", "polygons", "yolo", "masks"]
FOLDERS: dict[Format, str] = {
    "labels": "labels",
    "polygons": "polygons",
    "yolo": "labels",
    "masks": "masks",
}
ENDINGS: dict[Format, str] = {"labels": ".png", "polygons": ".json", "yolo": ".txt", "masks": ""}


def write_annotations(
    form: Format, out: Path, name: str, found: Instances, *, class_names: Sequence[str], source: Path
) -> None:
    """Write one image's objects; the k-th is the k-th of the image in predictions.json.

    Args:
        name: of the files, with a folder for frames.
        source: the image that they were found in.

    Raises:
        BadInput: it cannot be written, or the form has no room for so many objects.
    """
    if form not in FOLDERS:
        return
    path = out / FOLDERS[form] / f"{name}{ENDINGS[form]}"
    if form == "labels":
        write_image(label_image(found.masks, str(source)), path)
    elif form == "polygons":
        image_path = Path(relpath(source, path.parent)).as_posix()
        write_json(path, labelme(found, class_names, image_path))
    elif form == "yolo":
        write_text(path, "".join(f"{line}\n" for line in yolo_lines(found)))
    else:
        shutil.rmtree(path, ignore_errors=True)  # an earlier run may have found more
        path.mkdir(parents=True, exist_ok=True)  # also where nothing is found
        for index in range(len(found)):
            write_image(found.masks.dense(index).numpy(), path / f"{index + 1:04}.png")


def write_classes(form: Format, out: Path, class_names: Sequence[str]) -> None:
    """YOLO's `data.yaml`: the names of the classes, and where the images go; other forms need none."""
    if form == "yolo":
        data = {"train": "images", "val": "images", "names": dict(enumerate(class_names))}
        write_text(out / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def remove_leftovers(form: Format, out: Path) -> None:
    """Remove what killed writers have left among the files of a form; nobody may be writing there."""
    if form in FOLDERS:
        for path in filter(is_temporary, list((out / FOLDERS[form]).rglob(".*"))):
            path.unlink()


def targets(sources: Sequence[Source], form: Format, out: Path, *, drawn: bool) -> Iterator[Path]:
    """The files and folders that are written, or replaced, for each source."""
    for source in sources:
        if drawn:
            yield out / drawn_name(source)
        if form in FOLDERS:
            yield out / FOLDERS[form] / f"{source.name}{'' if source.is_video else ENDINGS[form]}"


def drawn_name(source: Source) -> str:
    """Name of the image or video with masks drawn."""
    return f"{source.name}{'.mp4' if source.is_video else '.png'}"
