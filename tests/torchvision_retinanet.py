"""torchvision's RetinaNet head beside ours: equal weights, equal order of anchors, its losses."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import box_iou

from embedmask import Target

STRIDES, ANCHORS = (8, 16, 32, 64, 128), 9


def twin_of(head: Any, channels: int, num_classes: int, groups: int) -> Any:
    """Return torchvision's head with the weights of ours, whose towers must have four convolutions without bias."""
    norm = partial(nn.GroupNorm, groups)
    twin: Any = RetinaNetHead(channels, ANCHORS, num_classes, norm_layer=norm)  # type: ignore[no-untyped-call]
    towers = (
        (head.class_tower, head.class_logits, twin.classification_head, "cls_logits"),
        (head.box_tower, head.box, twin.regression_head, "bbox_reg"),
    )
    for tower, last, part, name in towers:
        for index, block in enumerate(part.conv):
            block[0].load_state_dict({"weight": tower[3 * index].weight})
            block[1].load_state_dict(tower[3 * index + 1].state_dict())
        getattr(part, name).load_state_dict(last.state_dict())
    return twin


def level_anchors(size: tuple[int, int]) -> list[Tensor]:
    """Return torchvision's anchors of each level, `[Hl Wl A, 4]`."""
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    generator: Any = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)  # type: ignore[no-untyped-call]
    grids = [[math.ceil(side / stride) for side in size] for stride in STRIDES]
    anchors: list[Tensor] = generator.grid_anchors(grids, [[torch.tensor(s)] * 2 for s in STRIDES])
    return anchors


def matches_of(target: Target, anchors: Tensor) -> Tensor:
    """Return torchvision's matches: int64 `[K]`, -1 background, -2 ignored."""
    if len(target) == 0:
        return torch.full((len(anchors),), -1)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return matcher(box_iou(target.boxes, anchors))


def losses_of(head: Any, outputs: dict[str, Tensor], target: Target, anchors: Tensor) -> dict[str, Tensor]:
    """Return torchvision's losses of one image: `classification`, `bbox_regression`."""
    model: Any = object.__new__(RetinaNet)  # its backbone is not needed
    nn.Module.__init__(model)
    model.head = head
    model.proposal_matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    targets = [{"boxes": target.boxes, "labels": target.labels}]
    losses: dict[str, Tensor] = model.compute_loss(targets, outputs, [anchors])
    return losses
