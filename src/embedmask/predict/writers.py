"""Annotation files that `predict` writes for each image or frame, beside predictions.json."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from os.path import relpath
from pathlib import Path
from typing import Literal

import yaml

from embedmask.files import is_temporary, write_json, write_text
from embedmask.predict.polygons import label_image, labelme, yolo_lines
from embedmask.predict.sources import Source
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
    fmt: Format, out: Path, name: str, instances: Instances, *, class_names: Sequence[str], source: Path
) -> None:
    """Write the instances of one image, in the order of predictions.json.

    Args:
        fmt: Format of the file; `coco` writes nothing.
        name: Name of the file without suffix; for frames, with a folder.
        instances: Instances in the image's own frame.
        source: Image that the instances were predicted in.

    Raises:
        BadInput: The file cannot be written, or the format cannot store this number of objects.
    """
    if fmt not in FOLDERS:
        return
    path = out / FOLDERS[fmt] / f"{name}{ENDINGS[fmt]}"
    if fmt == "labels":
        write_image(label_image(instances.masks, str(source)), path)
    elif fmt == "polygons":
        image_path = Path(relpath(source, path.parent)).as_posix()
        write_json(path, labelme(instances, class_names, image_path))
    elif fmt == "yolo":
        write_text(path, "".join(f"{line}\n" for line in yolo_lines(instances)))
    else:
        shutil.rmtree(path, ignore_errors=True)  # an earlier run may have written more masks
        path.mkdir(parents=True, exist_ok=True)  # also for an image without detections
        for index in range(len(instances)):
            write_image(instances.masks.select([index]).to_dense()[0].numpy(), path / f"{index + 1:04}.png")


def write_classes(fmt: Format, out: Path, class_names: Sequence[str]) -> None:
    """Write YOLO's `data.yaml` with the class names and image folder; other formats need none."""
    if fmt == "yolo":
        data = {"train": "images", "val": "images", "names": dict(enumerate(class_names))}
        write_text(out / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def remove_leftovers(fmt: Format, out: Path) -> None:
    """Remove temporary files of interrupted runs; no other process may be writing."""
    if fmt in FOLDERS:
        for path in filter(is_temporary, list((out / FOLDERS[fmt]).rglob(".*"))):
            path.unlink()


def targets(sources: Sequence[Source], fmt: Format, out: Path, *, drawn: bool) -> Iterator[Path]:
    """Yield the files and folders that are written or replaced for each source."""
    for source in sources:
        if drawn:
            yield out / drawn_name(source)
        if fmt in FOLDERS:
            yield out / FOLDERS[fmt] / f"{source.name}{'' if source.is_video else ENDINGS[fmt]}"


def drawn_name(source: Source) -> str:
    """Return the file name of the image or video with masks drawn."""
    return f"{source.name}{'.mp4' if source.is_video else '.png'}"
