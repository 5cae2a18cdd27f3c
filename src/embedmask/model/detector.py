"""What every network here is: a config, a backbone, and how pictures become its input."""

from __future__ import annotations

from collections.abc import Sequence

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
        config: of the whole model.
        backbone: gives maps from `finest_stride` to stride 32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig, finest_stride: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone.from_config(config, finest_stride)
        self.register_buffer("mean", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)

    def preprocess(self, images: Sequence[Tensor], least: Size = (0, 0)) -> ImageBatch:
        """Normalise pictures and pad them right and below, with zeros after normalising, to one frame.

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


def frame_of(sizes: Sequence[Size]) -> Size:
    """The smallest frame that holds pictures of these sizes: `(height, width)` px, multiples of `FRAME_MULTIPLE`."""
    height, width = (-(-max(side) // FRAME_MULTIPLE) * FRAME_MULTIPLE for side in zip(*sizes, strict=True))
    return height, width
