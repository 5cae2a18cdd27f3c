"""Assigner `fcos`: section 3.5, with boxes weighted by centerness."""

from __future__ import annotations

import torch
from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.objective.assignment import assign
from embedmask.objective.losses import centerness_targets, giou_loss
from embedmask.objective.positives import ImageTargets, Locations, Positives
from embedmask.structures import Assignment, Predictions


def assign_image(
    predictions: Predictions, index: int, locations: Locations, gt: ImageTargets, cfg: ModelConfig
) -> Assignment:
    """Assign the ground truths of an image; its predictions are not read. See `assign`."""
    del predictions, index
    assignment = assign(
        locations.xy,
        locations.stride,
        torch.tensor(cfg.level_ranges, device=locations.xy.device)[locations.level],  # [K, 2]
        gt.boxes,
        gt.masks,
        center_radius=cfg.center_radius,
        sampling_center=cfg.sampling_center,
        sample_in_mask=cfg.sample_in_mask,
        box_offset=cfg.box_offset,
    )
    positive = assignment.gt_index >= 0
    assignment.box_weight = torch.zeros_like(locations.stride)
    assignment.box_weight[positive] = centerness_targets(assignment.ltrb[positive])
    return assignment


def box_loss(pred_ltrb: Tensor, positives: Positives, cfg: ModelConfig) -> Tensor:
    """Compute 1 - GIoU of boxes in units of the stride, `[P]`."""
    del cfg
    stride = positives.stride[:, None]
    return giou_loss(pred_ltrb / stride, positives.ltrb / stride)
