"""Which location serves which ground truth, and which of them give q and s (sections 3.1 and 3.5). Pure."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from embedmask.objective.lookup import MaskLookup, Masks
from embedmask.structures import Assignment

GT_CHUNK = 256
"""Ground truths looked at together: bounds the [G, K] comparisons on crowded images."""

LOOKED_UP_TOGETHER = 32
"""Masks looked up together, at eight bytes a location."""

EmbedSamples = Literal["iou", "all", "best", "each"]


@torch.no_grad()
def assign(
    locations: Tensor,
    location_strides: Tensor,
    location_ranges: Tensor,
    boxes: Tensor,
    masks: Masks,
    *,
    center_radius: float | None = 1.5,
    sampling_center: Literal["box", "mass"] = "box",
    sample_in_mask: bool = True,
    box_offset: float = 0.0,
) -> Assignment:
    """FCOS assignment with the in-mask rule of section 3.5, for one image and all levels together.

    A location may serve a ground truth when it lies strictly inside the box and inside the centre square, its
    largest side distance is in its level's range (both ends included), and it lies inside the mask. Among several
    the smallest box wins, the first of equal ones. An object without a mask pixel gets no location, unless neither
    rule asks for its mask.

    Args:
        locations: float32 `[K, 2]` px, on whole pixels.
        location_strides: `[K]` px.
        location_ranges: `[K, 2]`, bounds of max(l, t, r, b) px.
        boxes: float32 `[G, 4]` xyxy px.
        masks: bool `[G, H, W]`, or crops; outside H x W nothing is inside a mask.
        center_radius: half side of the centre square in strides; None: the whole box.
        sampling_center: what the square lies around, the box's centre or the mask's centre of mass.
        sample_in_mask: Table 2 (c).
        box_offset: added to box sides when areas are compared.
    """
    count, lookup = len(boxes), MaskLookup.of(masks)
    by_area = _areas(boxes, box_offset).sort(stable=True).indices
    best_rank = torch.full((len(locations),), count, device=locations.device)
    centers = mass_centers(lookup) if sampling_center == "mass" else (boxes[:, :2] + boxes[:, 2:]) / 2
    for start in range(0, count, GT_CHUNK):
        chosen = by_area[start : start + GT_CHUNK]
        allowed = _inside_box(
            locations,
            location_strides,
            location_ranges,
            boxes[chosen],
            centers[chosen],
            center_radius=center_radius,
        )
        if sample_in_mask:
            allowed &= _inside_mask(locations, lookup, chosen)
        rank = torch.arange(start, start + len(chosen), device=locations.device)
        best_rank = torch.minimum(best_rank, torch.where(allowed, rank[:, None], count).amin(0))
    matched = best_rank < count
    gt_index = torch.full_like(best_rank, -1)
    gt_index[matched] = by_area[best_rank[matched]]
    ltrb = locations.new_zeros(len(locations), 4)
    ltrb[matched] = _side_distances(locations[matched], boxes[gt_index[matched]])
    return Assignment(gt_index, ltrb)


@torch.no_grad()
def select_samples(
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_of_positive: Tensor,
    *,
    mode: EmbedSamples,
    iou_threshold: float,
    box_offset: float = 0.0,
) -> Tensor:
    """Which positive locations give q and s of their ground truth (section 3.5, Table 2 (c)).

    `iou`: those whose predicted box has IoU above the threshold, and where none has, all that reach the maximum;
    `best`: the single location with the highest IoU, the first of equal ones; `all`, `each`: every positive.

    Args:
        pred_boxes: `[P, 4]` xyxy px, boxes predicted at the positive locations.
        gt_boxes: `[G, 4]`.
        gt_of_positive: int64 `[P]`, index into `gt_boxes`.

    Returns:
        bool `[P]`.
    """
    if mode in ("all", "each") or len(pred_boxes) == 0:
        return torch.ones_like(gt_of_positive, dtype=torch.bool)
    iou = paired_iou(pred_boxes, gt_boxes[gt_of_positive], box_offset)
    best = iou.new_zeros(len(gt_boxes)).scatter_reduce(0, gt_of_positive, iou, "amax")[gt_of_positive]
    at_best = iou == best
    if mode == "iou":
        return (iou > iou_threshold) | at_best
    order = torch.arange(len(iou), device=iou.device)
    first = torch.full((len(gt_boxes),), len(iou), device=iou.device)
    first = first.scatter_reduce(0, gt_of_positive[at_best], order[at_best], "amin")
    return order == first[gt_of_positive]


def mass_centers(masks: Masks) -> Tensor:
    """Mean (x, y) of each mask's pixels, counted from 0 at the first pixel's location.

    Args:
        masks: bool `[G, H, W]`, or crops.

    Returns:
        float32 `[G, 2]` px; nan for a mask without pixels.
    """
    lookup = MaskLookup.of(masks)
    centers = []
    for crop, row, column in lookup:
        filled = crop.nonzero()
        centers.append(filled.sum(0) / len(filled) + filled.new_tensor((row, column)))
    return torch.stack(centers).flip(1) if centers else torch.zeros(0, 2, device=lookup.pixels.device)


def paired_iou(boxes: Tensor, others: Tensor, box_offset: float = 0.0) -> Tensor:
    """IoU of each row with the same row: `[P, 4]`, `[P, 4]` xyxy -> `[P]`; `box_offset` is added to every side."""
    top_left = torch.maximum(boxes[:, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], others[:, 2:])
    intersection = (bottom_right - top_left + box_offset).clamp(min=0).prod(1)
    return intersection / (_areas(boxes, box_offset) + _areas(others, box_offset) - intersection)


def _areas(boxes: Tensor, box_offset: float) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0] + box_offset) * (boxes[:, 3] - boxes[:, 1] + box_offset)


def _side_distances(locations: Tensor, boxes: Tensor) -> Tensor:
    """l, t, r, b: `[..., 2]`, `[..., 4]` -> `[..., 4]`."""
    return torch.cat([locations - boxes[..., :2], boxes[..., 2:] - locations], -1)


def _inside_box(
    locations: Tensor,
    strides: Tensor,
    ranges: Tensor,
    boxes: Tensor,
    centers: Tensor,
    *,
    center_radius: float | None,
) -> Tensor:
    """Box, centre square and size range together: bool `[G, K]`; a square around nan holds nothing."""
    x, y = locations.unbind(1)
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    sides = [x - x1, y - y1, x2 - x, y2 - y]  # [G, K] each: one map of four sides takes several times as long
    largest = reduce(torch.maximum, sides)
    if center_radius is not None:
        middle_x, middle_y = centers[:, :, None].unbind(1)
        radius = strides * center_radius
        sides += [
            x - (middle_x - radius),
            y - (middle_y - radius),
            middle_x + radius - x,
            middle_y + radius - y,
        ]
    nearest = reduce(torch.minimum, sides)
    return (nearest > 0) & (largest >= ranges[:, 0]) & (largest <= ranges[:, 1])


def _inside_mask(locations: Tensor, masks: MaskLookup, chosen: Tensor) -> Tensor:
    """Value of each chosen mask at each location, False outside the masks' frame: bool `[len(chosen), K]`."""
    x, y = locations.long().unbind(1)
    return torch.cat([masks.at(y, x, part) for part in torch.split(chosen, LOOKED_UP_TOGETHER)])
