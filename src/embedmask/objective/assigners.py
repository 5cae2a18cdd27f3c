"""Assignment of ground truths to the locations of a batch by the assigner of a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.objective import anchor_matching, fcos_assignment, task_aligned
from embedmask.objective.positives import ImageTargets, Locations, Positives
from embedmask.structures import Assignment, Predictions


@dataclass(frozen=True)
class Assigner:
    """Entry of the registry.

    Attributes:
        assign: function `(predictions, index, locations, gt, cfg)` that assigns the ground truths of image `index` to
            its locations; the predictions are read by those that depend on them.
        box_loss: function `(pred_ltrb, positives, cfg)` from boxes at the positives, `[P, 4]` px, to losses `[P]`.
    """

    assign: Callable[[Predictions, int, Locations, ImageTargets, ModelConfig], Assignment]
    box_loss: Callable[[Tensor, Positives, ModelConfig], Tensor]


ASSIGNERS = {
    "fcos": Assigner(fcos_assignment.assign_image, fcos_assignment.box_loss),
    "iou": Assigner(anchor_matching.assign_image, anchor_matching.box_loss),
    "task_aligned": Assigner(task_aligned.assign_image, task_aligned.box_loss),
}
"""Assigners by the names of `ModelConfig.assigner_name`."""


def assign_batch(predictions: Predictions, gts: Sequence[ImageTargets], cfg: ModelConfig) -> Positives:
    """Assign ground truths to the locations of every image and collect the P positive locations."""
    locations = Locations.of(predictions)
    assign_image = ASSIGNERS[cfg.assigner_name].assign
    images = [assign_image(predictions, index, locations, gt, cfg) for index, gt in enumerate(gts)]
    gt_index = torch.stack([a.gt_index for a in images])  # [N, K], index within each image
    image, location = (gt_index >= 0).nonzero(as_tuple=True)  # [P]
    # [N], ground truths before each image
    first_gt = torch.tensor([0] + [len(gt) for gt in gts[:-1]], device=image.device).cumsum(0)
    box_weight = _stacked([a.box_weight for a in images])
    quality = _stacked([a.quality for a in images])
    return Positives(
        image,
        location,
        gt=gt_index[image, location] + first_gt[image],
        ltrb=torch.stack([a.ltrb for a in images])[image, location],  # [N, K, 4] -> [P, 4]
        stride=locations.stride[location],
        xy=locations.xy[location],
        level=locations.level[location],
        box_weight=torch.ones_like(locations.stride[location])
        if box_weight is None
        else box_weight[image, location],
        quality=None if quality is None else quality[image, location],
        ignored=_stacked([a.ignored for a in images]),
    )


def _stacked(columns: Sequence[Tensor | None]) -> Tensor | None:
    """Stack a column of the assignments to `[N, K]`; None if the assigner has none."""
    present = [column for column in columns if column is not None]
    return torch.stack(present) if present else None
