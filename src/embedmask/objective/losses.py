"""The losses that no library has, pure functions of tensors in float32 (eq. 2, 4, 7 and FCOS's box losses)."""

from __future__ import annotations

import torch
from torch import Tensor

HINGE_INSIDE, HINGE_OUTSIDE = 0.5, 1.5
"""delta_a and delta_b of eq. 2. The text of the paper that we hold does not show them: these figures are ours."""


def giou_loss(pred_ltrb: Tensor, target_ltrb: Tensor) -> Tensor:
    """1 - GIoU of boxes that share their location, as FCOS: `[P, 4]`, `[P, 4]` -> `[P]`.

    Both in units of the stride: the 1 that FCOS adds to intersection and union is one square stride, which softens
    the loss on boxes of a few cells.
    """
    pred_area = (pred_ltrb[:, :2] + pred_ltrb[:, 2:]).prod(1)
    target_area = (target_ltrb[:, :2] + target_ltrb[:, 2:]).prod(1)
    least, most = torch.minimum(pred_ltrb, target_ltrb), torch.maximum(pred_ltrb, target_ltrb)
    intersection = (least[:, :2] + least[:, 2:]).prod(1)
    hull = (most[:, :2] + most[:, 2:]).prod(1) + 1e-7
    union = pred_area + target_area - intersection
    iou = (intersection + 1) / (union + 1)
    return 1 - (iou - (hull - union) / hull)


def centerness_targets(ltrb: Tensor) -> Tensor:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)), section 3.1: `[P, 4]` > 0 -> `[P]`."""
    horizontal, vertical = ltrb[:, 0::2], ltrb[:, 1::2]
    ratio = horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))
    return ratio.sqrt()


def lovasz_hinge(logits: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Lovász hinge (L of eq. 4; Berman et al. 2018) of every instance at once.

    Errors of each row are sorted together in one call. Only errors above 0 count and they come first in the order,
    so the others are packed away before the sort: late in training that leaves a few per cent of the pixels.

    Args:
        logits: `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]`, the pixels B_k that an instance is judged on; None: all.

    Returns:
        `[M]`, 0 where a region is empty.
    """
    errors = torch.where(targets, 1 - logits, 1 + logits)
    active = errors.detach() > 0
    if region is not None:
        active &= region
        targets = targets & region
    foreground = targets.sum(1, keepdim=True)
    ordered, order = pack_rows(errors, active).sort(1, descending=True)
    ordered_targets = pack_rows(targets, active).gather(1, order)
    return (ordered * _jaccard_steps(ordered_targets, foreground)).sum(1)


def pack_rows(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen values of each row, moved to its front; the rest of the row is 0.

    Args:
        values: `[M, P]`.
        chosen: bool `[M, P]`.

    Returns:
        `[M, W]`, W the most that a row has chosen (0 where none has).
    """
    counts = chosen.sum(1, keepdim=True)
    width = int(counts.max()) if len(counts) else 0
    filled = torch.arange(width, device=values.device) < counts
    return values.new_zeros(filled.shape).masked_scatter(filled, values.masked_select(chosen))


def _jaccard_steps(targets: Tensor, foreground: Tensor) -> Tensor:
    """Growth of the Jaccard loss as one more pixel of each row, in order, is taken for wrong: `[M, P]`."""
    hits = targets.cumsum(1, dtype=torch.int32)
    misses = (~targets).cumsum(1, dtype=torch.int32)
    jaccard = 1 - (foreground - hits) / (foreground + misses)
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)


def hinge_loss(distance: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Eq. 2: pull inside pixels nearer than delta_a, push outside ones farther than delta_b; mean over B_k.

    Args:
        distance: ||p_i - Q_k||, `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]` B_k; None: all pixels.

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
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 1e-5), an option of the second repository.

    Args:
        probs: phi, `[M, P]`.
        targets: bool `[M, P]`.
        region: bool `[M, P]` B_k; None: all pixels.

    Returns:
        `[M]`.
    """
    if region is not None:
        probs, targets = probs * region, targets & region
    common = (probs * targets).sum(1)
    return 1 - 2 * common / (probs.square().sum(1) + targets.sum(1) + 1e-5)


def smooth_loss(values: Tensor, means: Tensor) -> Tensor:
    """Squared distance of each sample to its instance's mean (a term of eq. 7): `[P, D]`, `[P, D]` -> `[P]`."""
    return (values - means).square().sum(1)
