"""What every network here is: a config, a backbone, and how images become its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from embedmask.config.detector import DetectorConfig
from embedmask.model.backbone import Backbone
from embedmask.structures import ImageBatch, Size

FRAME_MULTIPLE = 32
"""Padded frames are multiples of the backbone's coarsest stride."""


class Detector(nn.Module):
    """The common part of all kinds of model.

    Attributes:
        config: of the whole model; what it left to the backbone is filled in, so that files of weights hold it.
        backbone: gives maps from `finest_stride` to stride 32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig, finest_stride: int) -> None:
        super().__init__()
        self.backbone = Backbone.from_config(config, finest_stride)
        self.config = with_backbone_defaults(config, self.backbone)
        for name, values in (("mean", self.config.image_mean), ("std", self.config.image_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def preprocess(self, images: Sequence[Tensor], least: Size = (0, 0)) -> ImageBatch:
        """Normalise images and pad them right and below, with zeros after normalising, to one frame.

        Args:
            images: uint8 RGB `[3, h, w]`, sizes may differ; already at the network's resolution.
            least: height and width that the frame has at least, px.

        Returns:
            A batch on the model's device.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = frame_of([*sizes, least])
        tensors = self.mean.new_zeros(len(images), 3, height, width)
        for slot, image, (h, w) in zip(tensors, images, sizes, strict=True):
            slot[:, :h, :w] = self._normalize(image)
        return ImageBatch(tensors, sizes)

    def _normalize(self, image: Tensor) -> Tensor:
        pixels = image.to(self.mean.device).float()
        if self.config.channel_order == "bgr":
            pixels = pixels.flip(0)
        if self.config.image_norm == "image":
            # one grey level more: a blank image stays blank
            return (pixels - pixels.mean()) / (pixels.std() + 1.0)
        return (pixels - self.mean) / self.std


def with_backbone_defaults(config: DetectorConfig, backbone: Backbone) -> DetectorConfig:
    """Fill the fields that are None for the backbone's own value: `image_mean`, `image_std`, `backbone_norm_eps`."""
    order = -1 if config.channel_order == "bgr" else 1
    own: dict[str, Any] = {
        "image_mean": backbone.image_mean[::order],
        "image_std": backbone.image_std[::order],
        "backbone_norm_eps": backbone.norm_eps,
    }
    return replace(config, **{name: value for name, value in own.items() if getattr(config, name) is None})


def frame_of(sizes: Sequence[Size]) -> Size:
    """The smallest frame that holds images of these sizes: `(height, width)` px, multiples of `FRAME_MULTIPLE`."""
    height, width = (-(-max(side) // FRAME_MULTIPLE) * FRAME_MULTIPLE for side in zip(*sizes, strict=True))
    return height, width
