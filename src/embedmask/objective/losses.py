"""Losses that torchvision lacks: pure functions of float32 tensors (eq. 2, 4, 7 and FCOS's box losses)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HINGE_INSIDE, HINGE_OUTSIDE = 0.5, 1.5
"""delta_a and delta_b of eq. 2. Our choice: our copy of the paper does not state them."""


def giou_loss(pred_ltrb: Tensor, target_ltrb: Tensor) -> Tensor:
    """Compute 1 - GIoU of boxes that share their location, as in FCOS.

    FCOS adds 1 to intersection and union. In units of the stride this is one square stride, which softens the loss on
    boxes of a few cells.

    Args:
        pred_ltrb: `[P, 4]`, distances to the sides in units of the stride; negative where a box does not contain its
            location.
        target_ltrb: `[P, 4]`, in the same units.

    Returns:
        `[P]`.
    """
    pred_area = (pred_ltrb[:, :2] + pred_ltrb[:, 2:]).clamp(min=0).prod(1)
    target_area = (target_ltrb[:, :2] + target_ltrb[:, 2:]).prod(1)
    # boxes share the location: the smaller distances bound the intersection, empty if they cross, the larger the hull
    inner, outer = torch.minimum(pred_ltrb, target_ltrb), torch.maximum(pred_ltrb, target_ltrb)
    intersection = (inner[:, :2] + inner[:, 2:]).clamp(min=0).prod(1)
    hull = (outer[:, :2] + outer[:, 2:]).prod(1) + 1e-7
    union = pred_area + target_area - intersection
    iou = (intersection + 1) / (union + 1)
    return 1 - (iou - (hull - union) / hull)


def varifocal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Compute the varifocal loss (Zhang et al. 2021, arXiv 2008.13367, eq. 2).

    Cross entropy, weighted by the target where it is positive and by alpha p^gamma where it is 0.

    Args:
        logits: any shape.
        targets: 0..1, quality of positives, in the same shape.

    Returns:
        The sum.
    """
    weight = torch.where(targets > 0, targets, alpha * logits.sigmoid().pow(gamma))
    return (weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum()


def centerness_targets(ltrb: Tensor) -> Tensor:
    """Compute sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (section 3.1): `[P, 4]` > 0 -> `[P]`."""
    horizontal, vertical = ltrb[:, 0::2], ltrb[:, 1::2]
    ratio = horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))
    return ratio.sqrt()


def lovasz_hinge(logits: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute the Lovász hinge of every instance at once (L of eq. 4; Berman et al. 2018, algorithm 1).

    Args:
        logits: `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]`, the pixels B_k of each instance; None: all.

    Returns:
        `[M]`, 0 where a region is empty.
    """
    errors = torch.where(targets, 1 - logits, 1 + logits)  # [M, P]
    active = errors.detach() > 0
    if region is not None:
        active &= region
        targets = targets & region
    foreground = targets.sum(1, keepdim=True)  # [M, 1]
    # Only positive errors count, and they come first in the order. Packing them before the sort, [M, P] -> [M, W],
    # leaves a few per cent of the pixels late in training.
    errors, wrong = pack_rows(active, errors, targets)
    ordered, order = errors.sort(1, descending=True)  # [M, W]
    wrong = wrong.gather(1, order)
    # Jaccard loss after the first 1, 2, ... W pixels are misclassified: missed objects shrink the intersection,
    # false positives grow the union
    missed = wrong.cumsum(1, dtype=torch.int32)
    false_positives = (~wrong).cumsum(1, dtype=torch.int32)
    jaccard = 1 - (foreground - missed) / (foreground + false_positives)
    # gradient of the Lovász extension: the growth of the Jaccard loss at each pixel
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    return (ordered * steps).sum(1)


def pack_rows(selected: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Move the selected values of each row to its front and fill the rest with 0.

    Args:
        selected: bool `[M, P]`.
        values: each `[M, P]`.

    Returns:
        Of each `[M, W]`, where W is the largest number of selected values in a row.
    """
    counts = selected.sum(1, keepdim=True)  # [M, 1]
    width = int(counts.max()) if len(counts) else 0
    empty = torch.arange(width, device=selected.device) >= counts  # [M, W]
    # nonzero and masked_scatter both walk in row-major order, so the rows stay apart
    places = selected.nonzero()[:, 1]
    columns = places.new_zeros(empty.shape).masked_scatter(~empty, places)
    # filled rather than multiplied: column 0, which empty places read, may be infinite
    return tuple(value.gather(1, columns).masked_fill(empty, 0) for value in values)


def hinge_loss(distance: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute eq. 2: pull object pixels within delta_a, push others beyond delta_b; the mean over B_k.

    Args:
        distance: ||p_i - Q_k||, `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]`, the pixels B_k of each instance; None: all.

    Returns:
        `[M]`.
    """
    pull = (distance - HINGE_INSIDE).clamp(min=0).square()
    push = (HINGE_OUTSIDE - distance).clamp(min=0).square()
    value = torch.where(targets, pull, push)
    if region is None:
        return value.mean(1)
    return (value * region).sum(1) / region.sum(1).clamp(min=1)


def dice_loss(probs: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute 1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 1e-5), an option of the authors' second repository.

    Args:
        probs: phi, `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]`, the pixels B_k of each instance; None: all.

    Returns:
        `[M]`.
    """
    if region is not None:
        probs, targets = probs * region, targets & region
    common = (probs * targets).sum(1)
    # targets are 0 or 1, so their squares sum to their count
    return 1 - 2 * common / (probs.square().sum(1) + targets.sum(1) + 1e-5)


def bce_loss(logits: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute binary cross-entropy, the mean over B_k: the plain choice of L in eq. 4 (section 3.3).

    Args:
        logits: log phi - log(1 - phi), `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]`, the pixels B_k of each instance; None: all.

    Returns:
        `[M]`, 0 where a region is empty.
    """
    value = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    if region is None:
        return value.mean(1)
    return (value * region).sum(1) / region.sum(1).clamp(min=1)


def smooth_loss(values: Tensor, means: Tensor) -> Tensor:
    """Compute the squared distance of each sample to its instance's mean (eq. 7): `[P, D]`, `[P, D]` -> `[P]`."""
    return (values - means).square().sum(1)
