"""Types that assigners and criterion share: locations, ground truths of an image, and the positives of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from embedmask.locations import all_locations, flatten_levels
from embedmask.masks import BitMasks
from embedmask.structures import Predictions


@dataclass
class ImageTargets:
    """Target of one image on the device of the predictions, with its masks as crops."""

    boxes: Tensor
    labels: Tensor
    masks: BitMasks

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class Locations:
    """The K locations of every image of a batch.

    Attributes:
        xy: float32 `[K, 2]` px, whole numbers.
        stride: float32 `[K]` px, of the location's level.
        level: int64 `[K]`, index of the map in `Predictions`; with A anchors per cell, L A of them.
    """

    xy: Tensor
    stride: Tensor
    level: Tensor

    @classmethod
    def of(cls, predictions: Predictions) -> Self:
        """Return the locations of predictions."""
        device = predictions.pixel_embed.device
        sizes = [(m.shape[2], m.shape[3]) for m in predictions.class_logits]
        xy, level = all_locations(sizes, predictions.strides, device)
        strides = torch.tensor(predictions.strides, device=device, dtype=torch.float32)
        return cls(xy, strides[level], level)

    def __len__(self) -> int:
        return len(self.xy)


@dataclass
class Positives:
    """Positive locations of a batch, P of them, ordered by image.

    Attributes:
        image: int64 `[P]`, index of the image in the batch.
        location: int64 `[P]`, index into the K locations of an image.
        gt: int64 `[P]`, index into the concatenated ground truths of all images.
        ltrb: float32 `[P, 4]` px, regression targets.
        stride: float32 `[P]` px, stride of the location's level.
        xy: float32 `[P, 2]` px, the location.
        level: int64 `[P]`, level of the location, see `Locations`.
        box_weight: float32 `[P]`, weights in the box loss.
        quality: float32 `[P]`, class targets; None: 1.
        ignored: bool `[N, K]`, locations without a class target; None: none.
    """

    image: Tensor
    location: Tensor
    gt: Tensor
    ltrb: Tensor
    stride: Tensor
    xy: Tensor
    level: Tensor
    box_weight: Tensor
    quality: Tensor | None = None
    ignored: Tensor | None = None

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the values of L maps `[N, C, Hl, Wl]` at the positives: `[P, C]`."""
        # [N, C, K] indexed by [P], :, [P] -> [P, C]
        return flatten_levels(maps)[self.image, :, self.location]
