"""Make images that match their annotations: white objects on black."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embedmask.data.packed import Annotations
from embedmask.data.segmentation import parse_segmentation

from .conftest import run_lengths


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def no_objects(size: tuple[int, int]) -> Annotations:
    """Return the annotations of an image of `(height, width)` px without objects."""
    return Annotations(np.zeros(0, np.int64), [], size, 3)


def scene(masks: np.ndarray) -> tuple[Tensor, Annotations]:
    """Return a black image with white objects `[G, H, W]`, and the objects as run lengths."""
    size = (masks.shape[1], masks.shape[2])
    objects = [parse_segmentation(run_lengths(mask), size) for mask in masks]
    white = masks.any(0)[None].repeat(3, 0) * np.uint8(255)
    return torch.from_numpy(white), Annotations(np.arange(len(masks)), objects, size, 11)


def rectangles(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (60, 80)) -> np.ndarray:
    masks = np.zeros((len(boxes), *size), dtype=bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def ellipse(
    size: tuple[int, int], middle: tuple[float, float], radii: tuple[float, float], tilt: float
) -> np.ndarray:
    """Return a filled ellipse, bool `[H, W]`; a pixel is inside if its center is."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = x - middle[0], y - middle[1]
    along, across = x * np.cos(tilt) + y * np.sin(tilt), y * np.cos(tilt) - x * np.sin(tilt)
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1


def outline(middle: tuple[float, float], radii: tuple[float, float], tilt: float) -> list[float]:
    """Return the same ellipse as a polygon."""
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    corners = (
        middle[0] + x * np.cos(tilt) - y * np.sin(tilt),
        middle[1] + x * np.sin(tilt) + y * np.cos(tilt),
    )
    return np.stack(corners, 1).ravel().tolist()


def slow_boxes(masks: Tensor) -> list[list[int]]:
    where = [mask.nonzero() for mask in masks]
    return [[*w.min(0).values.flip(0).tolist(), *(w.max(0).values + 1).flip(0).tolist()] for w in where]


class Pair:
    """A data set of items in memory."""

    def __init__(self, *items: tuple[Tensor, Annotations]) -> None:
        self.items = items
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        self.read.append(index)
        return self.items[index][0]

    def annotations(self, index: int) -> Annotations:
        return self.items[index][1]
