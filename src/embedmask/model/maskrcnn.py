"""Baseline of Table 1: torchvision's Mask R-CNN with the backbone, preprocessing and training of EmbedMask."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from embedmask.config import MaskRCNNConfig
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Target, TwoStageLosses

FINEST_STRIDE = 4
ASPECT_RATIOS = (0.5, 1.0, 2.0)

Detections = dict[str, Tensor]
"""Detections of one image by descending score: boxes `[R, 4]` px of the network's frame, scores `[R]`, labels `[R]`
(0..C-1), and masks, probabilities `[R, 1, 28, 28]` on a grid over each box."""


class MaskRCNN(Detector):
    """torchvision's Mask R-CNN on the backbone and the preprocessing of `Detector`.

    `rpn` and `roi_heads` are torchvision's. Their class 0 is the background, so this class adds 1 to labels on the way
    in and subtracts 1 on the way out. Under autocast only the convolutions run in reduced precision: torchvision would
    also decode boxes in it, and bfloat16 represents whole pixels only up to 256.
    """

    config: MaskRCNNConfig

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__(config, FINEST_STRIDE)
        self.fpn = FeaturePyramidNetwork(
            self.backbone.channels, config.channels, extra_blocks=LastLevelMaxPool()
        )
        # build torchvision's network around an empty backbone, and take its two stages
        empty = nn.Module()
        empty.out_channels = config.channels  # type: ignore[assignment]
        sizes = tuple((size,) for size in config.anchor_sizes)
        anchors = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))  # type: ignore[no-untyped-call]
        stages: Any = TorchvisionMaskRCNN(  # type: ignore[no-untyped-call]
            empty, config.num_classes + 1, rpn_anchor_generator=anchors
        )
        self.rpn, self.roi_heads = stages.rpn, stages.roi_heads
        for part in (self.fpn, self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            part.register_forward_hook(_to_float32)

    def losses(self, batch: ImageBatch, targets: Sequence[Target]) -> TwoStageLosses:
        """Compute torchvision's five losses, with proposals sampled by torch's global generator.

        Args:
            batch: from `preprocess`.
            targets: N, each in the frame of its image before padding; G may be 0.

        Raises:
            BadInput: the shapes or labels of a target are invalid.
        """
        for target in targets:
            target.validate(self.config.num_classes)
        # torchvision counts classes from 1
        gts = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.dense_masks()} for t in targets]
        features, images = self._features(batch)
        proposals, rpn_losses = self.rpn(images, features, gts)
        _, losses = self.roi_heads(features, proposals, batch.sizes, gts)
        return TwoStageLosses(
            classification=losses["loss_classifier"],
            box=losses["loss_box_reg"],
            mask=losses["loss_mask"],
            objectness=rpn_losses["loss_objectness"],
            rpn_box=rpn_losses["loss_rpn_box_reg"],
        )

    def forward(
        self,
        batch: ImageBatch,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detections]:
        """Detect the objects of a batch from `preprocess`.

        Args:
            batch: N images.
            score_threshold: lower bound of the scores.
            nms_threshold: IoU above which the lower score of a class is dropped.
            max_detections: upper bound of R.
        """
        # torchvision stores thresholds as attributes: set them on a shallow copy that shares all weights
        heads = copy.copy(self.roi_heads)
        heads.score_thresh, heads.nms_thresh = score_threshold, nms_threshold
        heads.detections_per_img = max_detections
        features, images = self._features(batch)
        proposals, _ = self.rpn(images, features)
        detections: list[Detections] = heads(features, proposals, batch.sizes)[0]
        return [{**image, "labels": image["labels"] - 1} for image in detections]

    def _features(self, batch: ImageBatch) -> tuple[OrderedDict[str, Tensor], ImageList]:
        maps = self.backbone(batch.tensors)
        named = OrderedDict((str(index), level) for index, level in enumerate(maps))
        return self.fpn(named), ImageList(batch.tensors, batch.sizes)


def make_objective(
    config: MaskRCNNConfig,
) -> Callable[[MaskRCNN, ImageBatch, Sequence[Target]], TwoStageLosses]:
    """Return the function `(model, batch, targets)` that computes the losses; they are methods of the model."""
    return MaskRCNN.losses


def _to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Convert an output to float32 (a forward hook): a tensor, or a list, tuple or dict of tensors."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return OrderedDict((name, level.float()) for name, level in output.items())
    return type(output)(_to_float32(module, inputs, part) for part in output)
