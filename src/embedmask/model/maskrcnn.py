"""The baseline of Table 1: torchvision's Mask R-CNN on the same backbone, images and engine as EmbedMask."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
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
"""Of one image, in its network's frame, by descending score: boxes [R, 4] px, scores, labels (0..C-1), and masks,
probabilities [R, 1, 28, 28] on a grid over the box."""


class MaskRCNN(Detector):
    """torchvision's network; resizing and normalising are ours, so that both kinds of model see the same images.

    `rpn` and `roi_heads` are torchvision's own. In them class 0 is the background: labels are moved up by one on the
    way in and down on the way out, here and nowhere else. Under autocast the convolutions alone run in the reduced
    format: torchvision would decode boxes in it, too, and bfloat16 tells pixels apart up to 256 only.
    """

    config: MaskRCNNConfig

    def __init__(self, config: MaskRCNNConfig) -> None:
        super().__init__(config, FINEST_STRIDE)
        self.fpn = FeaturePyramidNetwork(
            self.backbone.channels, config.channels, extra_blocks=LastLevelMaxPool()
        )
        stages = _stages(config)
        self.rpn, self.roi_heads = stages.rpn, stages.roi_heads
        for part in (self.fpn, self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            part.register_forward_hook(_to_float32)

    def losses(self, batch: ImageBatch, targets: Sequence[Target]) -> TwoStageLosses:
        """Training: the five losses as torchvision has them, of proposals drawn at random (torch's generator).

        Args:
            batch: from `preprocess`.
            targets: N, each in its image's own frame before padding; G may be 0.

        Raises:
            BadInput: numbers, shapes or labels of the targets do not fit.
        """
        for target in targets:
            target.validate(self.config.num_classes)
        wanted = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.dense_masks()} for t in targets]
        features, images = self._features(batch)
        proposals, rpn_losses = self.rpn(images, features, wanted)
        _, losses = self.roi_heads(features, proposals, batch.sizes, wanted)
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
        """Evaluation: what is found in each image of a batch from `preprocess`."""
        heads = copy.copy(self.roi_heads)  # shares all weights; torchvision keeps thresholds as attributes
        heads.score_thresh, heads.nms_thresh = score_threshold, nms_threshold
        heads.detections_per_img = max_detections
        features, images = self._features(batch)
        proposals, _ = self.rpn(images, features)
        found: list[Detections] = heads(features, proposals, batch.sizes)[0]
        return [{**one, "labels": one["labels"] - 1} for one in found]

    def _features(self, batch: ImageBatch) -> tuple[OrderedDict[str, Tensor], ImageList]:
        maps = self.backbone(batch.tensors)
        named = OrderedDict((str(index), level) for index, level in enumerate(maps))
        return self.fpn(named), ImageList(batch.tensors, batch.sizes)


def _stages(config: MaskRCNNConfig) -> Any:
    """torchvision's network around an empty backbone: its heads are all that is wanted of it."""
    empty = nn.Module()
    empty.out_channels = config.channels  # type: ignore[assignment]
    sizes = tuple((size,) for size in config.anchor_sizes)
    anchors = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))  # type: ignore[no-untyped-call]
    return TorchvisionMaskRCNN(  # type: ignore[no-untyped-call]
        empty,
        config.num_classes + 1,
        rpn_anchor_generator=anchors,
    )


def _to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook."""
    del module, inputs
    return _as_float32(output)


def _as_float32(output: Any) -> Any:
    """A tensor, or the tensors in a list, a tuple or an ordered dict, as float32."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return OrderedDict((name, level.float()) for name, level in output.items())
    return type(output)(_as_float32(part) for part in output)
