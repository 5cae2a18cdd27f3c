"""Images of a data set with their objects drawn: contact sheets, close-ups of problems, and predictions beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from embedmask.config import DEFAULT_READING, DataConfig, ReadOptions, Recipe
from embedmask.config.data import Exif, Split
from embedmask.data.check import Report
from embedmask.data.coco import CocoInstances
from embedmask.data.geometry import GeometricTransform
from embedmask.data.problems import PROBLEM_TYPES, Example
from embedmask.data.segmentation import Bounds, Polygons
from embedmask.data.transforms import EvalTransform, TrainTransform
from embedmask.errors import BadInput
from embedmask.inference.predictor import Predictor
from embedmask.inference.results import to_detections
from embedmask.masks import BitMasks
from embedmask.structures import Instances, Size, Target
from embedmask.visualize import (
    Pixels,
    contact_sheet,
    draw_detections,
    entitle,
    plot_counts,
    side_by_side,
    write_image,
)

NUM_COLUMNS = 4
NUM_SAMPLES = 8
NUM_IMAGES = 12
"""Images on the contact sheet of a split that `data check` writes."""
TILE = 320
"""Longest side of an image on a sheet of `data check`, px."""
MAX_SCALE = 8.0
"""Largest factor by which small objects are enlarged."""
MARGIN = 0.3
"""Margin shown around an object, as a fraction of its longer side."""
OUTLINE, FRAME = (255, 40, 40), (255, 255, 255)
"""Colors of an object's polygons and of the border of its image."""


def draw_target(image: Tensor, target: Target, class_names: Sequence[str]) -> Pixels:
    """Return an image, uint8 `[3, h, w]`, with the ground truth in its frame drawn over it, uint8 `[h, w, 3]`."""
    instances = Instances(
        target.boxes, torch.ones(len(target)), target.labels, BitMasks.of(target.masks).to_runs()
    )
    detections = to_detections(instances, class_names)
    detections.confidence = None  # ground truth has no scores
    return draw_detections(image, detections, class_names)


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return at most `count` indices below `length`, evenly spaced from the first to the last."""
    return sorted({round(position) for position in np.linspace(0, length - 1, min(count, length)).tolist()})


def write_samples(predictor: Predictor, dataset: CocoInstances, folder: Path) -> None:
    """Write images of a data set as `IMAGE_ID.png`, with ground truth on the left and predictions on the right.

    `NUM_SAMPLES` images, evenly spaced, are written. The predictor has the classes of the data set.
    """
    full_size = EvalTransform.full_size()
    for index in evenly_spaced(len(dataset), NUM_SAMPLES):
        image = dataset.image(index)
        panels = side_by_side(
            draw_target(
                *full_size(image, dataset.annotations(index), torch.Generator()), dataset.class_names
            ),
            draw_detections(image, predictor(image), dataset.class_names),
            titles=("ground truth", "prediction"),
        )
        write_image(panels, folder / f"{dataset.image_ids[index]}.png")


def write_contact_sheet(
    folder: Path,
    split: Split,
    out: Path,
    count: int,
    *,
    recipe: Recipe | None = None,
    exif: Exif | None = None,
    options: ReadOptions = DEFAULT_READING,
    val_fraction: float = 0.0,
) -> int:
    """Draw images spread evenly over a split with their ground truth on one contact sheet.

    Args:
        folder: Data set in any layout.
        recipe: Draw augmented samples, as in its training; None: draw the original images.
        exif: Frame of the annotations of images with an EXIF orientation; None: that of `recipe`, else `auto`.
        val_fraction: Fraction of train held out as val; 0: that of `recipe`.

    Returns:
        Number of images drawn.

    Raises:
        BadInput: `count` is below 1, or the data set or the file cannot be used.
    """
    if count < 1:
        raise BadInput(f"--count must be at least 1, got {count}")
    config = DataConfig() if recipe is None else recipe.data
    dataset = CocoInstances.open(
        folder,
        split,
        None if recipe is None else TrainTransform(config, recipe.model.image_rounding),
        config.degenerate,
        config.image_filter,
        exif=exif or config.exif,
        options=options,
        val_fraction=val_fraction or config.val_fraction,
    )
    if split == "train" and not config.keep_empty:
        dataset = dataset.without_empty()
    if not len(dataset):
        raise BadInput(f"{dataset.annotations_file}: {split} has no image to draw; add annotations")
    items = [dataset.sample(i, torch.Generator().manual_seed(i)) for i in evenly_spaced(len(dataset), count)]
    images = [draw_target(image, target, dataset.class_names) for image, target in items]
    write_image(contact_sheet(images, columns=min(NUM_COLUMNS, len(images))), out)
    return len(images)


def counts_file(out: Path) -> Path:
    """Return the file of the counts that `write_drawings` writes to `out`."""
    return out if out.suffix and not out.is_dir() else out / "counts.png"


def write_drawings(report: Report, out: Path) -> None:
    """Draw the report of a check.

    Args:
        out: Image file for the counts alone; or a folder for `counts.png`, a contact sheet of each split (`train.png`,
            ...) and `problems.png`, if there are problems that can be drawn.
    """
    counts = {split: summary.counts for split, summary in report.splits.items()}
    path = counts_file(out)
    plot_counts(counts, path)
    if path == out:
        return
    for split, dataset in report.datasets.items():
        indices = evenly_spaced(len(dataset), NUM_IMAGES)
        tiles = [_draw_tile(dataset, index, dataset.image_path(index).name) for index in indices]
        _write_sheet(tiles, out / f"{split}.png")
    examples = []
    for kind, problems in sorted(report.examples.items(), key=lambda item: PROBLEM_TYPES.index(item[0])):
        for split, example in problems:
            dataset = report.datasets[split]
            index = dataset.image_ids.index(example.image_id)
            title = f"{kind}: {dataset.image_path(index).name} of {split}"
            examples.append(_draw_tile(dataset, index, title, example))
    _write_sheet(examples, out / "problems.png")


def _write_sheet(tiles: Sequence[Pixels | None], path: Path) -> None:
    """Write a contact sheet of the images that could be read, if any."""
    drawn = [tile for tile in tiles if tile is not None]
    if drawn:
        write_image(contact_sheet(drawn, NUM_COLUMNS), path)


def _draw_tile(
    dataset: CocoInstances, index: int, title: str, example: Example | None = None
) -> Pixels | None:
    """Draw an image with its objects, or a close-up of one object with its polygons; None for an unreadable image."""
    mask = None if example is None else example.mask
    try:
        image = dataset.image(index)
    except BadInput:
        return None  # it is listed in the report
    annotations, names, size = dataset.annotations(index), dataset.class_names, dataset.sizes[index]
    bounds: Bounds = (0, 0, size[1], size[0])
    if example is not None and mask is not None:
        # keep the one object: label 0 of a list of one class name
        annotations = replace(annotations, labels=np.zeros(1, np.int64), segmentations=[mask])
        names, bounds = [example.name], mask.bounds()
    transform = _close_up(size, bounds, margin=0.0 if mask is None else MARGIN)
    drawn = draw_target(transform.image(image), transform.target(annotations, min_box_side=0), names)
    if isinstance(mask, Polygons):
        drawn = _outline(drawn, mask, transform)
    return entitle(drawn, title)


def _close_up(size: Size, bounds: Bounds, margin: float) -> GeometricTransform:
    """Return the transform that crops and scales to a box and a margin around it, which may exceed the image.

    Args:
        size: Height and width of the image, px.
        bounds: Box xyxy, px.
        margin: Margin as a fraction of the box's longer side.
    """
    left, top, right, bottom = bounds
    side = max(right - left, bottom - top, 1.0)
    # enlarge small objects and shrink large ones until box and margins fit the tile
    scale = min(TILE / (side * (1 + 2 * margin)), MAX_SCALE)
    # the image is resized to whole px, so the actual scale differs slightly by axis
    resized = max(round(scale * size[0]), 1), max(round(scale * size[1]), 1)
    (y, x), around = (resized[0] / size[0], resized[1] / size[1]), margin * side
    # round outwards to whole px of the resized image
    low = math.floor((left - around) * x), math.floor((top - around) * y)
    high = math.ceil((right + around) * x), math.ceil((bottom + around) * y)
    return GeometricTransform(size, resized, (*low, *high))


def _outline(drawn: Pixels, mask: Polygons, transform: GeometricTransform) -> Pixels:
    """Draw the polygons of a mask, including parts beyond the image, and the border of the image."""
    canvas = Image.fromarray(drawn)
    # original px -> resized px (x scale) -> px of the crop (minus its corner)
    pen, (y, x), (left, top, _, _) = ImageDraw.Draw(canvas), transform.scale, transform.window
    pen.rectangle(
        (-left, -top, transform.resized[1] - left - 1, transform.resized[0] - top - 1), outline=FRAME
    )
    for part in mask.parts:
        # [P, 2] xy
        points = part * np.array((x, y)) - (left, top)
        pen.line([*map(tuple, points.tolist()), tuple(points[0].tolist())], fill=OUTLINE)
    return np.asarray(canvas)
