"""Base class of all networks: config, backbone and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from embedmask.config.detector import DetectorConfig
from embedmask.model.backbone import Backbone
from embedmask.structures import ImageBatch, Size

FRAME_MULTIPLE = 32
"""Padded frames are multiples of this, the backbone's coarsest stride, px."""


class Detector(nn.Module):
    """Base class of the models.

    Attributes:
        config: config of the model, with the backbone's own values filled in, as it is saved with the weights.
        backbone: returns feature maps from `finest_stride` to stride 32.
        float32_only: whether the network supports float32 only.
    """

    float32_only: ClassVar[bool] = False
    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig, finest_stride: int) -> None:
        super().__init__()
        self.backbone = Backbone.from_config(config, finest_stride)
        self.config = with_backbone_defaults(config, self.backbone)
        for name, values in (("mean", self.config.image_mean), ("std", self.config.image_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def preprocess(self, images: Sequence[Tensor], min_size: Size = (0, 0)) -> ImageBatch:
        """Normalize images, then pad them with zeros on the right and at the bottom to one frame.

        Args:
            images: uint8 RGB `[3, h, w]` at the network's resolution; sizes may differ.
            min_size: minimum `(height, width)` of the frame, px.

        Returns:
            float32 `[N, 3, Hp, Wp]` on the model's device, and the sizes before padding.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = padded_size_of([*sizes, min_size])
        tensors = self.mean.new_zeros(len(images), 3, height, width)
        for slot, image, (h, w) in zip(tensors, images, sizes, strict=True):
            pixels = image.to(self.mean.device).float()
            if self.config.channel_order == "bgr":
                pixels = pixels.flip(0)
            if self.config.image_norm == "image":
                # + 1 gray level: an image of a single value has deviation 0
                slot[:, :h, :w] = (pixels - pixels.mean()) / (pixels.std() + 1.0)
            else:
                slot[:, :h, :w] = (pixels - self.mean) / self.std
        return ImageBatch(tensors, sizes)


def with_backbone_defaults(config: DetectorConfig, backbone: Backbone) -> DetectorConfig:
    """Replace None in `image_mean`, `image_std` and `backbone_norm_eps` by the backbone's own values."""
    order = -1 if config.channel_order == "bgr" else 1
    defaults: dict[str, Any] = {
        "image_mean": backbone.image_mean[::order],
        "image_std": backbone.image_std[::order],
        "backbone_norm_eps": backbone.norm_eps,
    }
    return replace(
        config, **{name: value for name, value in defaults.items() if getattr(config, name) is None}
    )


def padded_size_of(sizes: Sequence[Size]) -> Size:
    """Return the smallest frame that contains images of these sizes.

    Args:
        sizes: `(height, width)` px of each image.

    Returns:
        `(height, width)` px, multiples of `FRAME_MULTIPLE`.
    """
    # -(-a // b) rounds up
    height, width = (-(-max(side) // FRAME_MULTIPLE) * FRAME_MULTIPLE for side in zip(*sizes, strict=True))
    return height, width
