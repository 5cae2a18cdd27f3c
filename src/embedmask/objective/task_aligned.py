"""Assigner `task_aligned`: the locations whose class score and box agree best with a ground truth.

TOOD: Feng et al., Task-aligned One-stage Object Detection, ICCV 2021 (arXiv 2108.07755), section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from embedmask.config import ModelConfig
from embedmask.locations import flatten_levels, ltrb_to_xyxy
from embedmask.objective.assignment import in_masks, ltrb_targets
from embedmask.objective.positives import ImageTargets, Locations, Positives
from embedmask.structures import Assignment, Predictions

MIN_IOU = 1e-9
"""Lower bound of the IoU in the alignment: boxes that miss their ground truth are ranked by class score."""


@torch.no_grad()
def assign_image(
    predictions: Predictions, index: int, locations: Locations, gt: ImageTargets, cfg: ModelConfig
) -> Assignment:
    """Assign the ground truths of image `index` to its locations by the alignment of its predictions.

    A location is a candidate of a ground truth if it lies strictly inside the box and, with `sample_in_mask`, inside
    the mask. A ground truth without a candidate gets no location. Memory: a few float32 `[G, K]`.
    """
    # [C, K], [4, K]
    logits, ltrb = (
        flatten_levels([level[index : index + 1] for level in maps])[0].float()
        for maps in (predictions.class_logits, predictions.box_ltrb)
    )
    x, y = locations.xy.unbind(1)  # [K]
    x1, y1, x2, y2 = gt.boxes[:, :, None].unbind(1)  # [G, 1]
    candidate = (x > x1) & (y > y1) & (x < x2) & (y < y2)  # [G, K]
    if cfg.sample_in_mask:
        candidate &= in_masks(locations.xy, gt.masks)
    gt_index, quality = align(
        F.logsigmoid(logits)[gt.labels],  # [G, K]
        box_iou(gt.boxes, ltrb_to_xyxy(locations.xy, ltrb.T)),
        candidate,
        alpha=cfg.align_alpha,
        beta=cfg.align_beta,
        topk=cfg.align_topk,
    )
    targets = ltrb_targets(gt_index, locations.xy, gt.boxes)
    return Assignment(gt_index, targets, box_weight=quality, quality=quality)


@torch.no_grad()
def align(
    log_score: Tensor, iou: Tensor, candidate: Tensor, *, alpha: float, beta: float, topk: int
) -> tuple[Tensor, Tensor]:
    """Select the candidates of highest alignment t = score^alpha IoU^beta of each ground truth.

    A location that several ground truths select goes to that of the highest IoU, then to the first. The quality is t,
    scaled so that the largest of a ground truth equals the largest IoU among its locations (TOOD, section 3.2.2).

    Args:
        log_score: logarithm of the score of each ground truth's class, `[G, K]`.
        iou: of ground truth and predicted box, `[G, K]`.
        candidate: bool `[G, K]`.
        topk: maximum number of locations of a ground truth.

    Returns:
        int64 `[K]`, ground truth or -1; float32 `[K]`, quality, 0 for background.
    """
    # in log space, since t underflows: 0.01 IoU^6
    log_t = alpha * log_score + beta * iou.clamp(min=MIN_IOU).log()
    log_t = torch.where(candidate, log_t, -math.inf)  # [G, K]
    best = log_t.topk(min(topk, log_t.shape[1]), dim=1).indices  # [G, topk]
    selected = torch.zeros_like(candidate).scatter_(1, best, True) & candidate
    gt_index = torch.full((iou.shape[1],), -1, device=iou.device)
    quality = iou.new_zeros(iou.shape[1])
    positive = selected.any(0).nonzero()[:, 0]  # [P]
    if len(positive) == 0:
        return gt_index, quality
    gt = torch.where(selected, iou, -1)[:, positive].argmax(0)  # [P]
    # of each location with its own ground truth, then the largest of each ground truth, read back: [P] each
    own_t, own_iou = log_t[gt, positive], iou[gt, positive]
    top_t, top_iou = (
        iou.new_full((len(iou),), -math.inf).scatter_reduce(0, gt, own, "amax")[gt]
        for own in (own_t, own_iou)
    )
    gt_index[positive] = gt
    quality[positive] = (own_t - top_t).exp() * top_iou
    return gt_index, quality


def box_loss(pred_ltrb: Tensor, positives: Positives, cfg: ModelConfig) -> Tensor:
    """Compute 1 - GIoU of the boxes in px, `[P]`."""
    del cfg
    pred, target = (ltrb_to_xyxy(positives.xy, ltrb) for ltrb in (pred_ltrb, positives.ltrb))
    loss: Tensor = generalized_box_iou_loss(pred, target)
    return loss
