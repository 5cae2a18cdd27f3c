"""Parameters and floating-point operations of a model, counted without running it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from embedmask.config import DetectorConfig
from embedmask.data.transforms import EvalTransform
from embedmask.model.build import build_model
from embedmask.model.detector import Detector, padded_size_of
from embedmask.model.maskrcnn import MaskRCNN
from embedmask.structures import ImageBatch, Size

IMAGE_SIZE: Size = (480, 640)
"""Height and width of the counted image before it is resized, px: the most frequent size in COCO."""
PROPOSALS = 1000
"""Proposals in Mask R-CNN's second stage, its maximum."""


@dataclass(frozen=True)
class Complexity:
    """Size of a model.

    Attributes:
        parameters: number of parameters.
        trainable: number of those that training changes.
        flops: floating-point operations of convolutions and matrix products for one image; a multiplication and an
            addition are two.
        frame: `(height, width)` of the padded image, px.
    """

    parameters: int
    trainable: int
    flops: int
    frame: Size

    def __str__(self) -> str:
        height, width = self.frame
        return (
            f"{self.parameters / 1e6:.1f} million parameters, {self.trainable / 1e6:.1f} million trained; "
            f"{self.flops / 1e9:.0f} GFLOPs for an image of {height} x {width} px"
        )


def count_complexity(config: DetectorConfig, image_size: Size = IMAGE_SIZE) -> Complexity:
    """Count the parameters of a model and the operations of its network for one image.

    The network is built without memory for its weights. Mask R-CNN's second stage, whose work depends on the image, is
    counted for 1000 proposals and `max_detections` masks. NMS, the coupling and masks at full size are not counted.

    Args:
        image_size: `(height, width)` px before the image is resized by the config's rule.
    """
    image_size = EvalTransform.from_config(config).geometry(image_size).resized
    frame = padded_size_of([image_size])
    # fake tensors have a shape and a device, but no values
    with FakeTensorMode(), torch.no_grad():
        model = build_model(config).eval()
        batch = ImageBatch(torch.empty(1, 3, *frame), [image_size])
        with FlopCounterMode(display=False) as counter:
            _run(model, batch)
    parameters = list(model.parameters())
    return Complexity(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        flops=counter.get_total_flops(),
        frame=frame,
    )


def _run(model: Detector, batch: ImageBatch) -> None:
    """Run the network; of Mask R-CNN, the parts around its data-dependent choices of boxes."""
    if not isinstance(model, MaskRCNN):
        model(batch)
        return
    levels = list(model.fpn(dict(enumerate(model.backbone(batch.tensors)))).values())
    model.rpn.head(levels)
    heads, channels = model.roi_heads, model.config.channels
    # pooled features of the proposals, then of the detections
    boxes = torch.empty(PROPOSALS, channels, *heads.box_roi_pool.output_size)
    heads.box_predictor(heads.box_head(boxes))
    masks = torch.empty(model.config.max_detections, channels, *heads.mask_roi_pool.output_size)
    heads.mask_predictor(heads.mask_head(masks))
