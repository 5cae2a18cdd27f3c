"""Contact sheets of a data set: what `data show` and `data check --out` draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from embedmask.config import DEFAULT_READING, DataConfig, ReadOptions
from embedmask.config.data import Exif, Split
from embedmask.data.check import Report
from embedmask.data.coco import CocoInstances
from embedmask.data.geometry import GeometricTransform
from embedmask.data.problems import KINDS, Example
from embedmask.data.segmentation import Bounds, Polygons
from embedmask.data.transforms import TrainTransform
from embedmask.errors import BadInput
from embedmask.structures import Size
from embedmask.training.samples import draw_target, spread
from embedmask.visualize import Pixels, contact_sheet, entitle, plot_counts, write_image

NUM_COLUMNS = 4
NUM_IMAGES = 12
"""On the contact sheet of a split that `data check` writes."""
TILE = 320
"""Longest side of an image on a sheet of `data check`, px."""
MAX_SCALE = 8.0
"""Small objects are enlarged no further."""
MARGIN = 0.3
"""Shown around an object, as a part of its longer side."""
OUTLINE, FRAME = (255, 40, 40), (255, 255, 255)
"""Colours of an object's polygons and of the border of its image."""


def write_contact_sheet(
    folder: Path,
    split: Split,
    out: Path,
    count: int,
    *,
    augment: DataConfig | None = None,
    exif: Exif | None = None,
    options: ReadOptions = DEFAULT_READING,
    val_fraction: float = 0.0,
) -> int:
    """Draw images spread over a split with their ground truth on one sheet; return how many.

    With `augment`, each is one of the items that training would see. `exif` is that of `augment` by default.
    """
    if count < 1:
        raise BadInput(f"--count must be at least 1, got {count}")
    if augment is None:
        dataset = CocoInstances.open(
            folder, split, exif=exif or "auto", options=options, val_fraction=val_fraction
        )
    else:
        dataset = CocoInstances.open(
            folder,
            split,
            TrainTransform(augment),
            augment.degenerate,
            augment.where,
            exif=exif or augment.exif,
            options=options,
            val_fraction=val_fraction or augment.val_fraction,
        )
    items = [dataset.sample(i, torch.Generator().manual_seed(i)) for i in spread(len(dataset), count)]
    images = [draw_target(image, target, dataset.class_names) for image, target in items]
    write_image(contact_sheet(images, columns=min(NUM_COLUMNS, len(images))), out)
    return len(images)


def write_drawings(report: Report, out: Path) -> None:
    """Draw what a check has found.

    Args:
        report: of `check_folder`.
        out: name of an image: the counts alone; otherwise a folder, for `counts.png`, a contact sheet of each split
            (`train.png`, ...), and where there are problems that can be drawn, `problems.png`.
    """
    counts = {split: summary.counts for split, summary in report.splits.items()}
    if out.suffix and not out.is_dir():
        plot_counts(counts, out)
        return
    plot_counts(counts, out / "counts.png")
    for split, dataset in report.datasets.items():
        places = spread(len(dataset), NUM_IMAGES)
        tiles = [_draw_tile(dataset, index, dataset.image_path(index).name) for index in places]
        _write_sheet(tiles, out / f"{split}.png")
    examples = []
    for kind, problems in sorted(report.examples.items(), key=lambda item: KINDS.index(item[0])):
        for split, example in problems:
            dataset = report.datasets[split]
            index = dataset.image_ids.index(example.image_id)
            title = f"{kind}: {dataset.image_path(index).name} of {split}"
            examples.append(_draw_tile(dataset, index, title, example))
    _write_sheet(examples, out / "problems.png")


def _write_sheet(tiles: Sequence[Pixels | None], path: Path) -> None:
    drawn = [tile for tile in tiles if tile is not None]
    if drawn:
        write_image(contact_sheet(drawn, NUM_COLUMNS), path)


def _draw_tile(
    dataset: CocoInstances, index: int, title: str, example: Example | None = None
) -> Pixels | None:
    """Draw an image with its objects, or one object close up with its polygons; None where it cannot be read."""
    mask = None if example is None else example.mask
    try:
        image = dataset.image(index)
    except BadInput:
        return None  # the report says so
    annotations, names, (height, width) = (
        dataset.annotations(index),
        dataset.class_names,
        dataset.sizes[index],
    )
    bounds: Bounds = (0, 0, width, height)
    if example is not None and mask is not None:
        annotations = replace(annotations, labels=np.zeros(1, np.int64), segmentations=[mask])
        names, bounds = [example.name], mask.bounds()
    view = _close_up((height, width), bounds, margin=0.0 if mask is None else MARGIN)
    drawn = draw_target(view.image(image), view.target(annotations, min_box_side=0), names)
    if isinstance(mask, Polygons):
        drawn = _outline(drawn, mask, view)
    return entitle(drawn, title)


def _close_up(size: Size, bounds: Bounds, margin: float) -> GeometricTransform:
    """Return the view of a box xyxy px, and of a part of its longer side around it, even beyond the image."""
    left, top, right, bottom = bounds
    side = max(right - left, bottom - top, 1.0)
    scale = min(TILE / (side * (1 + 2 * margin)), MAX_SCALE)
    resized = max(round(scale * size[0]), 1), max(round(scale * size[1]), 1)
    (y, x), around = (resized[0] / size[0], resized[1] / size[1]), margin * side
    low = math.floor((left - around) * x), math.floor((top - around) * y)
    high = math.ceil((right + around) * x), math.ceil((bottom + around) * y)
    return GeometricTransform(size, resized, (*low, *high))


def _outline(drawn: Pixels, mask: Polygons, view: GeometricTransform) -> Pixels:
    """Draw the polygons of a mask, also where they leave the image, and the border of the image."""
    canvas = Image.fromarray(drawn)
    pen, (y, x), (left, top, _, _) = ImageDraw.Draw(canvas), view.scale, view.window
    pen.rectangle((-left, -top, view.resized[1] - left - 1, view.resized[0] - top - 1), outline=FRAME)
    for part in mask.parts:
        points = part * np.array((x, y)) - (left, top)
        pen.line([*map(tuple, points.tolist()), tuple(points[0].tolist())], fill=OUTLINE)
    return np.asarray(canvas)
