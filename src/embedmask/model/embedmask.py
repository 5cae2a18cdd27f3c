"""EmbedMask: backbone -> FPN -> proposal head and pixel branch (figure 2). Start reading here.

The network takes images only and returns `Predictions` in training and inference. Losses are in
`embedmask.objective`, boxes and masks in `embedmask.inference`.
"""

from __future__ import annotations

from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.errors import BadInput
from embedmask.model.aligned_head import AlignedHead
from embedmask.model.anchor_head import AnchorHead
from embedmask.model.detector import Detector
from embedmask.model.head import Head
from embedmask.model.neck import Neck
from embedmask.structures import ImageBatch, Predictions

HEADS: dict[str, type[Head]] = {"fcos": Head, "retinanet": AnchorHead, "tal": AlignedHead}
"""Heads by the names of `ModelConfig.detector`."""


class EmbedMask(Detector):
    """The whole network of the paper, with random weights.

    Examples:
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
        self.head = HEADS[config.detector](config)

    def forward(self, images: ImageBatch | Tensor) -> Predictions:
        """Run the network on a batch.

        Args:
            images: a batch from `preprocess`, or a normalized float tensor `[N, 3, H, W]`.

        Raises:
            BadInput: the tensor has another shape.
        """
        tensors = images.tensors if isinstance(images, ImageBatch) else images
        if tensors.ndim != 4 or tensors.shape[1] != 3:
            raise BadInput(
                f"expected images [N, 3, H, W], got a tensor of shape {tuple(tensors.shape)}; call preprocess first"
            )
        predictions: Predictions = self.head(self.neck(self.backbone(tensors)))
        return predictions
