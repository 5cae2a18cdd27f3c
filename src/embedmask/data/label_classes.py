"""Classes of the objects of label images: from folders, from files beside the label images, or from class images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.data.segmentation import RunLengths
from embedmask.errors import BadInput
from embedmask.files import read_text

ENDING = "_classes"
"""What follows the image's name in the name of a file of classes beside the label image."""
FOLDER = "classes"
TABLES = (".json", ".csv")
Class = int | str


def read_table(file: Path) -> dict[int, Class]:
    """Read a table of numbers and classes: a JSON object such as `{"1": 2}`, or a CSV file with two columns.

    Raises:
        BadInput: it is neither, or a class is missing.
    """
    try:
        text = read_text(file)
        rows = _csv_rows(text) if file.suffix.lower() == ".csv" else json.loads(text).items()
        return {int(number): _as_class(value) for number, value in rows}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        message = 'write {"1": "name", ...}, or two columns in CSV: label, class'
        raise BadInput(f"{file}: is no table of labels and classes ({error}); {message}") from None


def _csv_rows(text: str) -> list[tuple[str, str]]:
    lines = [re.split(r"[;,\t]", line, maxsplit=1) for line in text.splitlines() if line.strip()]
    pairs = [(line[0].strip(), line[1].strip().strip('"')) for line in lines if len(line) == 2]
    if len(pairs) < len(lines):
        raise ValueError("a line without two columns")
    return pairs if not pairs or pairs[0][0].strip('"').isdigit() else pairs[1:]


def _as_class(value: Any) -> Class:
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().isdigit() else value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is neither a name nor a number")


def class_files(masks: Path, folders: Iterable[str], image_endings: Iterable[str]) -> dict[str, Path]:
    """Return the file of classes of each image, by the image's stem.

    `STEM_classes.json` (or `.csv`, or an image) lies among the label images, `STEM.json` in a folder `classes` in the
    place of the folder of label images.

    Args:
        masks: folder of the label images.
        folders: names of folders of label images, which `classes` stands in for.
        image_endings: of class images.
    """
    endings = (*TABLES, *image_endings)
    found = {}
    for place in (masks.parent / FOLDER, masks.parent.parent / FOLDER / masks.name):
        is_parallel = place.is_dir() and (masks.name in folders) == (place.parent == masks.parent)
        if is_parallel:
            found.update({path.stem: path for path in place.iterdir() if path.suffix.lower() in endings})
    beside = (
        path for path in masks.iterdir() if path.stem.endswith(ENDING) and path.suffix.lower() in endings
    )
    return {**found, **{path.stem.removesuffix(ENDING): path for path in beside}}


def object_classes(
    file: Path, objects: Mapping[int, RunLengths], read_labels: Callable[[Path], NDArray[Any]]
) -> dict[int, Class]:
    """Return the class of each object of a label image.

    Raises:
        BadInput: an object without a class, or in a class image with several; or the file cannot be read.
    """
    if file.suffix.lower() in TABLES:
        table = read_table(file)
    else:
        flat = read_labels(file).ravel(order="F")
        table = {number: _class_of(flat, mask, f"{file}: label {number}") for number, mask in objects.items()}
    for number in objects:
        if number not in table:
            raise BadInput(f"{file}: has no class for label {number}; add it")
    return {number: table[number] for number in objects}


def _class_of(flat: NDArray[Any], mask: RunLengths, where: str) -> int:
    if len(flat) != mask.size[0] * mask.size[1]:
        raise BadInput(f"{where}: the class image is not of the label image's size {mask.size}; correct it")
    ends = np.cumsum(mask.counts)
    values = np.unique(np.concatenate([flat[a:b] for a, b in zip(ends[:-1:2], ends[1::2], strict=True)]))
    if len(values) != 1 or values[0] == 0:
        raise BadInput(
            f"{where}: has the classes {values.tolist()}; give all its pixels one class, from 1 on"
        )
    return int(values[0])
