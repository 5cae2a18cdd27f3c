"""EmbedMask: backbone -> FPN -> proposal head and pixel branch (figure 2). Read this one first.

The network knows no targets and returns one type in training and inference. Losses are in `embedmask.objective`,
boxes and masks in `embedmask.inference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedmask.config import ModelConfig
from embedmask.errors import BadInput
from embedmask.model.backbone import Backbone
from embedmask.model.head import Head
from embedmask.model.neck import Neck
from embedmask.structures import ImageBatch, Predictions

FRAME_MULTIPLE = 32
"""Padded frames are multiples of the backbone's coarsest stride."""


class EmbedMask(nn.Module):
    """The whole network, with random weights until some are loaded.

    Example:
        >>> model = EmbedMask(ModelConfig.preset("paper", num_classes=3))
        >>> predictions = model(torch.zeros(1, 3, 128, 160))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone.from_config(config)
        self.neck = Neck(self.backbone.channels, config.channels, len(config.strides))
        self.head = Head(config)
        self.register_buffer("mean", torch.tensor(config.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std).view(3, 1, 1), persistent=False)

    def forward(self, images: ImageBatch | Tensor) -> Predictions:
        """Predictions of a batch.

        Args:
            images: from `preprocess`, or an already normalised float tensor `[N, 3, H, W]`.
        """
        tensors = images.tensors if isinstance(images, ImageBatch) else images
        if tensors.ndim != 4 or tensors.shape[1] != 3:
            raise BadInput(f"expected images [N, 3, H, W], got a tensor of shape {tuple(tensors.shape)}")
        predictions: Predictions = self.head(self.neck(self.backbone(tensors)))
        return predictions

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalise pictures and pad them right and below, with zeros after normalising, to one frame.

        Args:
            images: uint8 RGB `[3, h, w]`, sizes may differ; already at the network's resolution.

        Returns:
            A batch on the model's device.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (
            -(-max(side) // FRAME_MULTIPLE) * FRAME_MULTIPLE for side in zip(*sizes, strict=True)
        )
        tensors = self.mean.new_zeros(len(images), 3, height, width)
        for slot, image, (h, w) in zip(tensors, images, sizes, strict=True):
            slot[:, :h, :w] = self._normalize(image)
        return ImageBatch(tensors, sizes)

    def load_pretrained_backbone(self) -> None:
        """Start the backbone from timm's ImageNet weights; `BadInput` with the way out when they cannot be had."""
        self.backbone.load_pretrained()

    def _normalize(self, image: Tensor) -> Tensor:
        pixels = image.to(self.mean.device).float()
        if self.config.channel_order == "bgr":
            pixels = pixels.flip(0)
        if self.config.image_norm == "image":
            # one grey level more: a blank image stays blank
            return (pixels - pixels.mean()) / (pixels.std() + 1.0)
        return (pixels - self.mean) / self.std
