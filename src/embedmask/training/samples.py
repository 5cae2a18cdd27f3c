"""Sample images of a run: ground truth beside predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.inference.predictor import Predictor
from embedmask.inference.results import to_detections
from embedmask.masks import BitMasks
from embedmask.structures import Instances, Target
from embedmask.visualize import draw_detections, side_by_side, write_image


def write_samples(predictor: Predictor, dataset: CocoInstances, folder: Path, count: int = 8) -> None:
    """Write images of a data set as `IMAGE_ID.png`, with ground truth on the left and predictions on the right.

    Args:
        predictor: predictor with the classes of the data set.
        dataset: data set to take images from, evenly spaced.
        folder: folder to write to.
        count: maximum number of images.
    """
    full_size = EvalTransform(None, 0)
    for index in evenly_spaced(len(dataset), count):
        image = dataset.image(index)
        panels = side_by_side(
            draw_target(
                *full_size(image, dataset.annotations(index), torch.Generator()), dataset.class_names
            ),
            draw_detections(image, predictor(image), dataset.class_names),
            titles=("ground truth", "prediction"),
        )
        write_image(panels, folder / f"{dataset.image_ids[index]}.png")


def draw_target(image: Tensor, target: Target, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Return the image with its ground truth drawn over it, uint8 `[h, w, 3]`.

    Args:
        image: uint8 `[3, h, w]`.
        target: ground truth in the frame of `image`.
        class_names: name of each label.
    """
    masks = BitMasks.of(target.masks).to_runs()
    instances = Instances(target.boxes, torch.ones(len(target)), target.labels, masks)
    detections = to_detections(instances, class_names)
    detections.confidence = None  # ground truth has no scores
    return draw_detections(image, detections, class_names)


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return at most `count` indices below `length`, evenly spaced from the first to the last."""
    return sorted({round(position) for position in np.linspace(0, length - 1, min(count, length)).tolist()})
