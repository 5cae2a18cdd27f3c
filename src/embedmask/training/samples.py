"""Pictures of a run: what the data set says beside what the model finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.inference.predictor import Predictor
from embedmask.inference.results import to_detections
from embedmask.structures import Instances, Target
from embedmask.visualize import draw, side_by_side

SCORE_THRESHOLD = 0.3


def write_samples(predictor: Predictor, dataset: CocoInstances, folder: Path, count: int = 8) -> None:
    """Pictures spread over a data set, as `IMAGE_ID.png`: left the ground truth, right the predictions.

    Args:
        predictor: its classes are those of the data set.
    """
    for index in spread(len(dataset), count):
        image = dataset.image(index)
        found = to_detections(predictor.instances(image), dataset.class_names, SCORE_THRESHOLD)
        picture = side_by_side(
            draw_truth(dataset, index),
            draw(image, found, dataset.class_names),
            titles=("ground truth", "prediction"),
        )
        write_picture(picture, folder / f"{dataset.image_ids[index]}.png")


def draw_truth(dataset: CocoInstances, index: int) -> NDArray[np.uint8]:
    """Item `index` in its own frame with its ground truth drawn, uint8 `[H, W, 3]`."""
    whole = EvalTransform(None, 0)
    image, target = whole(dataset.image(index), dataset.annotations(index), torch.Generator())
    return draw_target(image, target, dataset.class_names)


def draw_target(image: Tensor, target: Target, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """Ground truth over the uint8 picture `[3, h, w]` that it belongs to, uint8 `[h, w, 3]`."""
    detections = to_detections(target_instances(target), class_names)
    detections.confidence = None  # the truth has no score
    return draw(image, detections, class_names)


def target_instances(target: Target) -> Instances:
    """Ground truth as if it had been predicted, with score 1."""
    return Instances(target.boxes, torch.ones(len(target)), target.labels, target.crop_masks())


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices of a list of `length`, evenly spread from its first to its last."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length)).tolist()})


def write_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """Write uint8 `[H, W, 3]`, whole or not at all; the suffix says the format.

    Raises:
        BadInput: a suffix that is no picture format's.
    """
    if path.suffix.lower() not in Image.registered_extensions():
        raise BadInput(f"{path}: not the name of a picture; end it in .png or .jpg")
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary)
