"""Images of a run: what the data set says beside what the model finds."""

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
from embedmask.structures import Instances, Target
from embedmask.visualize import draw_detections, side_by_side, write_image


def write_samples(predictor: Predictor, dataset: CocoInstances, folder: Path, count: int = 8) -> None:
    """Images spread over a data set, as `IMAGE_ID.png`: left the ground truth, right the predictions.

    Args:
        predictor: its classes are those of the data set.
    """
    whole = EvalTransform(None, 0)
    for index in spread(len(dataset), count):
        image = dataset.image(index)
        panels = side_by_side(
            draw_target(*whole(image, dataset.annotations(index), torch.Generator()), dataset.class_names),
            draw_detections(image, predictor(image), dataset.class_names),
            titles=("ground truth", "prediction"),
        )
        write_image(panels, folder / f"{dataset.image_ids[index]}.png")


def draw_target(image: Tensor, target: Target, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Ground truth over the uint8 image `[3, h, w]` that it belongs to, uint8 `[h, w, 3]`."""
    truth = Instances(target.boxes, torch.ones(len(target)), target.labels, target.crop_masks())
    detections = to_detections(truth, class_names)
    detections.confidence = None  # the truth has no score
    return draw_detections(image, detections, class_names)


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices of a list of `length`, evenly spread from its first to its last."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length)).tolist()})
