"""Read the classes of the objects of label images: from tables or class images."""

from __future__ import annotations

import csv
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
"""Ending that a file of classes beside a label image adds to the name of the image."""
FOLDER = "classes"
TABLES = (".json", ".csv")
Class = int | str


def read_table(file: Path) -> dict[int, Class]:
    """Read a table of numbers and classes: a JSON object such as `{"1": 2}`, or a CSV file with two columns.

    Raises:
        BadInput: the file is neither, a class is missing, or a label has two.
    """
    try:
        text = read_text(file)
        if file.suffix.lower() != ".csv":
            # a tuple of pairs: a dict would keep the last class of a repeated label
            pairs = json.loads(text, object_pairs_hook=tuple)
            if not isinstance(pairs, tuple):
                raise ValueError("no object")
            return _as_table(pairs)
        lines = [line for line in text.splitlines() if line.strip()]
        # the first separator of the table counts; names may contain the others
        separator = next((one for one in re.findall(r"[;,\t]", lines[0])), ",") if lines else ","
        rows = [
            [cell.strip() for cell in row]
            for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)
        ]
        if rows and not rows[0][0].isdigit():
            rows = rows[1:]  # header
        wrong = next((row for row in rows if len(row) != 2), None)
        if wrong is not None:
            raise ValueError(f"{separator.join(wrong)!r} has {len(wrong)} columns, not 2")
        return _as_table((label, name) for label, name in rows)
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        fix = 'write {"1": "name", ...}, or two columns in CSV: label, class'
        raise BadInput(f"{file}: is not a table of labels and classes ({error}); {fix}") from None


def _as_table(pairs: Iterable[tuple[str, Any]]) -> dict[int, Class]:
    table: dict[int, Class] = {}
    for text, value in pairs:
        number, name = int(text), _as_class(value)
        if table.setdefault(number, name) != name:
            raise ValueError(f"label {number} has the classes {table[number]} and {name}")
    return table


def _as_class(value: Any) -> Class:
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().isdigit() else value.strip()
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is neither a name nor a number")


def class_files(masks: Path, folders: Iterable[str], image_endings: Iterable[str]) -> dict[str, Path]:
    """Return the file of classes of each image, by the stem of the image.

    `STEM_classes.json` (or `.csv`, or an image) is in the folder of the label images, `STEM.json` in a folder `classes`
    that takes the place of the folder of label images in its path.

    Args:
        masks: folder of the label images.
        folders: names of folders of label images, which `classes` may replace.
        image_endings: suffixes of class images.
    """
    endings = (*TABLES, *image_endings)
    result = {}
    # SPLIT/masks -> SPLIT/classes; masks/SPLIT -> classes/SPLIT
    for place in (masks.parent / FOLDER, masks.parent.parent / FOLDER / masks.name):
        is_parallel = place.is_dir() and (masks.name in folders) == (place.parent == masks.parent)
        if is_parallel:
            result.update({path.stem: path for path in place.iterdir() if path.suffix.lower() in endings})
    for path in masks.iterdir():
        if path.stem.endswith(ENDING) and path.suffix.lower() in endings:
            result[path.stem.removesuffix(ENDING)] = path
    return result


def object_classes(
    file: Path, objects: Mapping[int, RunLengths], read_labels: Callable[[Path], NDArray[Any]]
) -> dict[int, Class]:
    """Return the class of each object of a label image.

    Args:
        file: table of classes, or class image of the size of the label image.
        objects: mask of each label.
        read_labels: reads a class image, `[H, W]`.

    Raises:
        BadInput: an object has no class, or several in a class image; or the file cannot be read.
    """
    if file.suffix.lower() in TABLES:
        table = read_table(file)
        for number in objects:
            if number not in table:
                raise BadInput(f"{file}: has no class for label {number}; add it")
        return {number: table[number] for number in objects}
    flat = read_labels(file).ravel(order="F")
    classes: dict[int, Class] = {}
    for number, mask in objects.items():
        if len(flat) != mask.size[0] * mask.size[1]:
            message = f"the class image does not have the size of the label image, {mask.size}"
            raise BadInput(f"{file}: label {number}: {message}; correct it")
        # ends of the runs [2R + 1]: background and object alternate, so object runs lie between even and odd ends
        ends = np.cumsum(mask.counts)
        runs = [flat[begin:end] for begin, end in zip(ends[:-1:2], ends[1::2], strict=True)]
        values = np.unique(np.concatenate(runs))
        if len(values) != 1 or values[0] == 0:
            fix = "give all its pixels one class, from 1 on"
            raise BadInput(f"{file}: label {number}: has the classes {values.tolist()}; {fix}")
        classes[number] = int(values[0])
    return classes
