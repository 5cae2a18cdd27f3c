"""Annotation files that `predict` writes for each image or frame, beside predictions.json."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from os.path import relpath
from pathlib import Path
from typing import Literal, get_args

import yaml
from torch import Tensor

from embedmask.data.images import hyperstack_position
from embedmask.data.slides import Slide
from embedmask.errors import BadInput, needs_extra
from embedmask.files import is_temporary, make_folder, write_json, write_text
from embedmask.predict.geojson import write_geojson
from embedmask.predict.label_tiff import write_label_tiff
from embedmask.predict.measurements import write_measurements
from embedmask.predict.polygons import label_image, labelme, yolo_lines
from embedmask.predict.rois import write_rois
from embedmask.predict.sources import Source
from embedmask.structures import Instances
from embedmask.visualize import write_image

Format = Literal["coco", "labels", "tiff", "polygons", "yolo", "masks", "geojson", "roi", "csv"]
FOLDERS: dict[Format, str] = {
    "labels": "labels",
    "tiff": "labels",
    "polygons": "polygons",
    "yolo": "labels",
    "masks": "masks",
    "geojson": "geojson",
    "roi": "rois",
    "csv": "measurements",
}
ENDINGS: dict[Format, str] = {
    "labels": ".png",
    "tiff": ".tif",
    "polygons": ".json",
    "yolo": ".txt",
    "masks": "",
    "geojson": ".geojson",
    "roi": ".zip",
    "csv": ".csv",
}
PACKAGES: dict[Format, str] = {"roi": "roifile", "csv": "skimage.measure"}
"""Package of the extra `microscopy` that a format needs."""


@dataclass(frozen=True)
class ImageOutput:
    """Content of the annotation file of an image or frame.

    Attributes:
        instances: In the frame of `image`, in the order of predictions.json.
        class_names: Name of each label.
        source: File that the image was read from.
        image: uint8 RGB `[3, H, W]`.
        page: Page of the file, from 0; None: the first.
        scale: px of the full resolution per px of the image, of y and x.
    """

    instances: Instances
    class_names: Sequence[str]
    source: Path
    image: Tensor | Slide
    page: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)


def check_format(fmt: Format) -> None:
    """Check before a run that a format exists and that its packages are installed.

    Raises:
        BadInput: there is no such format, or a package is missing; the message names the extra.
    """
    if fmt not in get_args(Format):
        raise BadInput(f"format {fmt!r}: use one of {', '.join(get_args(Format))}")
    if fmt in PACKAGES:
        with needs_extra("microscopy", f"--format {fmt}"):
            import_module(PACKAGES[fmt])


def write_annotations(fmt: Format, out: Path, name: str, output: ImageOutput) -> str | None:
    """Write the annotation file of one image.

    Args:
        fmt: Format of the file; `coco` writes nothing.
        name: Name of the file without suffix; for frames, with a folder.

    Returns:
        A line about a choice that the number of objects required; None without one.

    Raises:
        BadInput: The file cannot be written, or the format cannot store the image or its number of objects.
    """
    if fmt not in FOLDERS:
        return None
    return WRITERS[fmt](out / FOLDERS[fmt] / f"{name}{ENDINGS[fmt]}", output)


def _labels(path: Path, output: ImageOutput) -> None:
    write_image(label_image(output.instances.masks, str(output.source)), path)


def _tiff(path: Path, output: ImageOutput) -> str | None:
    if not write_label_tiff(path, output.instances.masks):
        return None
    return f"{path}: labels have 32 bits, because 16 bits do not hold {len(output.instances)} objects"


def _polygons(path: Path, output: ImageOutput) -> None:
    image_path = Path(relpath(output.source, path.parent)).as_posix()
    write_json(path, labelme(output.instances, output.class_names, image_path))


def _yolo(path: Path, output: ImageOutput) -> None:
    write_text(path, "".join(f"{line}\n" for line in yolo_lines(output.instances)))


def _masks(path: Path, output: ImageOutput) -> None:
    shutil.rmtree(path, ignore_errors=True)  # an earlier run may have written more masks
    make_folder(path)  # also for an image without detections
    for index in range(len(output.instances)):
        mask = output.instances.masks.select([index]).to_dense()[0].numpy()
        write_image(mask, path / f"{index + 1:04}.png")


def _geojson(path: Path, output: ImageOutput) -> None:
    write_geojson(path, output.instances, output.class_names, output.scale)


def _roi(path: Path, output: ImageOutput) -> None:
    source, page = output.source, output.page
    position = None if page is None else hyperstack_position(source, page)
    write_rois(path, output.instances, output.class_names, str(source), page=page, position=position)


def _csv(path: Path, output: ImageOutput) -> None:
    write_measurements(path, output.instances, output.class_names, output.image)


WRITERS: dict[Format, Callable[[Path, ImageOutput], str | None]] = {
    "labels": _labels,
    "tiff": _tiff,
    "polygons": _polygons,
    "yolo": _yolo,
    "masks": _masks,
    "geojson": _geojson,
    "roi": _roi,
    "csv": _csv,
}


def write_classes(fmt: Format, out: Path, class_names: Sequence[str]) -> None:
    """Write YOLO's `data.yaml` with the class names and image folder; other formats need none."""
    if fmt == "yolo":
        data = {"train": "images", "val": "images", "names": dict(enumerate(class_names))}
        write_text(out / "data.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def remove_leftovers(fmt: Format, out: Path) -> None:
    """Remove temporary files of interrupted runs; no other process may be writing."""
    if fmt in FOLDERS:
        for path in filter(is_temporary, list((out / FOLDERS[fmt]).rglob(".*"))):
            if path.is_file():
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
