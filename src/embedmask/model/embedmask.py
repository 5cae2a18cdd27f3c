"""EmbedMask: backbone -> FPN -> proposal head and pixel branch (figure 2). Read this one first.

The network knows no targets and returns one type in training and inference. Losses are in `embedmask.objective`,
boxes and masks in `embedmask.inference`.
"""

from __future__ import annotations

from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.errors import BadInput
from embedmask.model.detector import Detector
from embedmask.model.head import Head
from embedmask.model.neck import Neck
from embedmask.structures import ImageBatch, Predictions


class EmbedMask(Detector):
    """The whole network, with random weights until some are loaded.

    Example:
        >>> model = EmbedMask(ModelConfig.preset("paper", num_classes=3))
        >>> predictions = model(torch.zeros(1, 3, 128, 160))
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, min(config.pixel_stride, config.strides[0]))
        self.neck = Neck(
            self.backbone.channels,
            config.channels,
            len(config.strides),
            details=self.backbone.strides.index(config.strides[0]),
        )
        self.head = Head(config)

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
