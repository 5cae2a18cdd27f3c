"""Assigner `iou` of RetinaNet: anchors match ground truths by IoU, with torchvision's matcher and box coding."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from embedmask.anchors import CODER, cell_anchors
from embedmask.config import ModelConfig
from embedmask.locations import ltrb_to_xyxy
from embedmask.objective.assignment import in_masks, ltrb_targets
from embedmask.objective.positives import ImageTargets, Locations, Positives
from embedmask.structures import Assignment, Predictions

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4
"""An anchor is positive from the first IoU on, background below the second, and ignored between the two."""


@torch.no_grad()
def assign_image(
    predictions: Predictions, index: int, locations: Locations, gt: ImageTargets, cfg: ModelConfig
) -> Assignment:
    """Assign the ground truths of an image to its anchors; its predictions are not read.

    With `sample_in_mask`, an anchor matches only ground truths whose mask contains its location. Each ground truth
    also gets the anchors of its highest IoU, however low, unless they have a better ground truth. One without an anchor
    that overlaps it and lies in its mask gets none. Memory: a few float32 `[G, K]`.
    """
    del predictions, index
    count = len(locations)
    matches = torch.full((count,), Matcher.BELOW_LOW_THRESHOLD, device=gt.boxes.device)  # [K]
    iou = box_iou(gt.boxes, anchors_at(locations.xy, locations.level, cfg))  # [G, K]
    if cfg.sample_in_mask:
        iou *= in_masks(locations.xy, gt.masks)
    rows = (iou.amax(1) > 0).nonzero()[:, 0]
    if len(rows):
        matcher = Matcher(FOREGROUND_IOU, BACKGROUND_IOU, allow_low_quality_matches=True)
        matches = matcher(iou[rows])
    positive = matches >= 0
    gt_index = torch.full_like(matches, -1)
    gt_index[positive] = rows[matches[positive]]
    ltrb = ltrb_targets(gt_index, locations.xy, gt.boxes)
    return Assignment(gt_index, ltrb, ignored=matches == Matcher.BETWEEN_THRESHOLDS)


def box_loss(pred_ltrb: Tensor, positives: Positives, cfg: ModelConfig) -> Tensor:
    """Compute the L1 distance of the codes of predicted and ground-truth boxes relative to their anchors, `[P]`."""
    anchors = anchors_at(positives.xy, positives.level, cfg)
    pred, target = (
        CODER.encode_single(ltrb_to_xyxy(positives.xy, ltrb), anchors) for ltrb in (pred_ltrb, positives.ltrb)
    )
    return (pred - target).abs().sum(1)


def anchors_at(xy: Tensor, level: Tensor, cfg: ModelConfig) -> Tensor:
    """Return the anchors of locations `[K, 2]` px: float32 `[K, 4]` xyxy px; `level` int64 `[K]` counts L A maps."""
    anchors = cell_anchors(cfg.strides, cfg.anchor_scales, cfg.anchor_ratios).flatten(0, 1)  # [L A, 4]
    return anchors.to(xy.device)[level] + xy.repeat(1, 2)
