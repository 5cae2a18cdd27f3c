"""Measurements of objects by scikit-image, as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from embedmask.files import atomic_write
from embedmask.masks import RunMasks
from embedmask.structures import Instances

if TYPE_CHECKING:
    from embedmask.data.slides import Slide

COLUMNS = (
    "object", "class", "score", "area", "perimeter", "centroid_x", "centroid_y", "eccentricity",
    "mean_red", "mean_green", "mean_blue",
)  # fmt: skip
BLOCK = 1024
"""Objects of a square of this side, px, are measured together, so that an image on disk is read once."""


def write_measurements(
    path: Path, instances: Instances, class_names: Sequence[str], image: Tensor | Slide
) -> None:
    """Write a row of `COLUMNS` per object, in the order of the instances; objects without pixels are skipped.

    Lengths are px of the image, centroids continuous px (0.5 is the center of the first pixel), intensities those of
    the 8-bit image that the network sees.

    Args:
        image: uint8 RGB `[3, H, W]`, the frame of the instances.

    Raises:
        BadInput: the file cannot be written.
    """
    measured = dict(measure(instances.masks, image))
    labels, scores = instances.labels.tolist(), instances.scores.tolist()
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for index in sorted(measured):
            values = (f"{value:.6g}" for value in measured[index])
            rows.writerow([index + 1, class_names[labels[index]], f"{scores[index]:.6f}", *values])


def measure(masks: RunMasks, image: Tensor | Slide) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield index and values (`COLUMNS` from `area` on) of each mask that has pixels, block by block of the image."""
    from skimage import measure as measuring

    regions: Any = measuring.regionprops
    boxes = masks.boxes()
    blocks: dict[tuple[int, int], list[int]] = {}
    for index in np.flatnonzero(boxes[:, 2] > boxes[:, 0]).tolist():
        blocks.setdefault((boxes[index, 1] // BLOCK, boxes[index, 0] // BLOCK), []).append(index)
    for members in blocks.values():
        block_boxes = boxes[members]
        (left, top), (right, bottom) = block_boxes[:, :2].min(0).tolist(), block_boxes[:, 2:].max(0).tolist()
        # [3, h, w] -> [h, w, 3]
        pixels = image[:, top:bottom, left:right].permute(1, 2, 0).numpy()
        for index, (x1, y1, x2, y2) in zip(members, block_boxes.tolist(), strict=True):
            mask = masks.window(index, (x1, y1, x2, y2)).astype(np.uint8)
            inside = pixels[y1 - top : y2 - top, x1 - left : x2 - left]
            region = regions(mask, inside)[0]
            y, x = region.centroid
            shape = region.area, region.perimeter, x + x1 + 0.5, y + y1 + 0.5, region.eccentricity
            yield index, (*map(float, shape), *map(float, region.intensity_mean))
