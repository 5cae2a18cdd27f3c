"""torchvision's RetinaNet as a type of model, to compare its box AP with `detector: retinanet`.

Import this module before a recipe or model file of the kind `torchvision_retinanet` is read. Backbone, preprocessing,
data and solver are those of EmbedMask; FPN, head, anchors, matching, losses and NMS are torchvision's. Its masks are
filled boxes, so mask AP is meaningless.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from embedmask.config.detector import DetectorConfig
from embedmask.config.model_types import MODEL_TYPES, ModelType
from embedmask.fields import PositiveInt
from embedmask.model.detector import Detector
from embedmask.model.maskrcnn import Detections
from embedmask.structures import ImageBatch, LossTerms, Target

NAME = "torchvision_retinanet"
GRID = 28
"""Side of the masks of `Detections`."""


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(DetectorConfig):
    """Settings that `detector: retinanet` also has; others have torchvision's values."""

    strides: tuple[PositiveInt, ...] = (4, 8, 16, 32)
    """Strides of the levels, px: the backbone's maps, without coarser ones."""
    anchor_scales: tuple[float, ...] = (2.0, 2.8284)
    """Sides of the square anchors of a level, in strides."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors."""
    norm_groups: PositiveInt = 32
    """Groups of GroupNorm in the towers, which have four convolutions."""
    pre_nms_topk: PositiveInt = 1000
    """Maximum number of candidates per level."""


@dataclass
class BoxLosses(LossTerms):
    """Loss terms of a detector without masks."""

    classification: Tensor
    box: Tensor


class TorchvisionRetinaNet(Detector):
    """torchvision's RetinaNet with GroupNorm in its towers, on the backbone and the preprocessing of `Detector`."""

    config: RetinaNetConfig

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__(config, config.strides[0])
        self.fpn = FeaturePyramidNetwork(self.backbone.channels, config.channels)
        # as in embedmask.model.maskrcnn: torchvision's network around an empty backbone
        empty = nn.Module()
        empty.out_channels = config.channels  # type: ignore[assignment]
        sizes = tuple(tuple(stride * scale for scale in config.anchor_scales) for stride in config.strides)
        anchors: Any = AnchorGenerator(sizes, (config.anchor_ratios,) * len(sizes))  # type: ignore[no-untyped-call]
        norm = partial(nn.GroupNorm, config.norm_groups)
        head: Any = RetinaNetHead(  # type: ignore[no-untyped-call]
            config.channels, anchors.num_anchors_per_location()[0], config.num_classes, norm_layer=norm
        )
        self.retinanet: Any = RetinaNet(  # type: ignore[no-untyped-call]
            empty,
            config.num_classes,
            anchor_generator=anchors,
            head=head,
            topk_candidates=config.pre_nms_topk,
        )

    def losses(self, batch: ImageBatch, targets: Sequence[Target]) -> BoxLosses:
        """Compute torchvision's two losses; `targets` as in `MaskRCNN.losses`."""
        gts = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
        outputs, anchors, _ = self._outputs(batch)
        losses = self.retinanet.compute_loss(gts, outputs, anchors)
        return BoxLosses(losses["classification"], losses["bbox_regression"])

    def forward(
        self, batch: ImageBatch, *, score_threshold: float, nms_threshold: float, max_detections: int
    ) -> list[Detections]:
        """Detect the objects of a batch; arguments and output as in `MaskRCNN.forward`."""
        model = copy.copy(self.retinanet)  # as there: torchvision stores thresholds as attributes
        model.score_thresh, model.nms_thresh = score_threshold, nms_threshold
        model.detections_per_img = max_detections
        outputs, anchors, cells = self._outputs(batch)
        # outputs: [N, all anchors, .] -> per level; anchors: per image -> per image and level
        counts = [count * model.head.classification_head.num_anchors for count in cells]
        by_level = {name: list(values.split(counts, dim=1)) for name, values in outputs.items()}
        detections: list[Detections] = model.postprocess_detections(
            by_level, [list(image.split(counts)) for image in anchors], batch.sizes
        )
        return [
            {**one, "masks": one["boxes"].new_ones(len(one["boxes"]), 1, GRID, GRID)} for one in detections
        ]

    def _outputs(self, batch: ImageBatch) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Return the head's float32 outputs, the anchors of each image, and the number of cells of each level."""
        named = OrderedDict((str(k), level) for k, level in enumerate(self.backbone(batch.tensors)))
        features = list(self.fpn(named).values())
        outputs = {name: values.float() for name, values in self.retinanet.head(features).items()}
        anchors = self.retinanet.anchor_generator(ImageList(batch.tensors, batch.sizes), features)
        return outputs, anchors, [level.shape[-2] * level.shape[-1] for level in features]


def make_objective(
    config: RetinaNetConfig,
) -> Callable[[TorchvisionRetinaNet, ImageBatch, Sequence[Target]], BoxLosses]:
    """Return the function `(model, batch, targets)` that computes the losses; they are methods of the model."""
    return TorchvisionRetinaNet.losses


MODEL_TYPES[NAME] = ModelType(
    title="torchvision's RetinaNet",
    config=RetinaNetConfig,
    model=f"{__name__}:TorchvisionRetinaNet",
    objective=f"{__name__}:make_objective",
    postprocessor="embedmask.model.maskrcnn_postprocess:MaskRCNNPostprocessor",
)
