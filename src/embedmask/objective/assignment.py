"""Assignment of ground truths to locations, and the locations that sample q and s (sections 3.1 and 3.5)."""

from __future__ import annotations

from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from embedmask.locations import box_areas, paired_iou, xyxy_to_ltrb
from embedmask.masks import BitMasks
from embedmask.structures import Assignment

GT_CHUNK = 256
"""Ground truths per chunk: bounds the `[G, K]` comparisons on crowded images."""

MASK_CHUNK = 32
"""Masks per lookup, which needs eight bytes per mask and location."""

EmbedSamples = Literal["iou", "all", "best", "each"]


@torch.no_grad()
def assign(
    locations: Tensor,
    location_strides: Tensor,
    location_ranges: Tensor,
    boxes: Tensor,
    masks: Tensor | BitMasks,
    *,
    center_radius: float | None = 1.5,
    sampling_center: Literal["box", "mass"] = "box",
    sample_in_mask: bool = True,
    box_offset: float = 0.0,
) -> Assignment:
    """Assign ground truths to the locations of one image: FCOS with the in-mask rule of section 3.5.

    A ground truth is a candidate of a location that lies strictly inside its box, its center square and its mask, if
    max(l, t, r, b) is in the range of the location's level, both ends included. Of several candidates the smallest box
    wins, then the first. An object without a mask pixel gets no location, unless neither rule reads the mask.

    Args:
        locations: float32 `[K, 2]` px of all levels, whole numbers.
        location_strides: `[K]` px.
        location_ranges: `[K, 2]`, bounds of max(l, t, r, b), px.
        boxes: float32 `[G, 4]` xyxy px.
        masks: bool `[G, H, W]`, or crops; False beyond H x W.
        center_radius: half the side of the center square in strides; None: no center square.
        sampling_center: center of the square, the box's center or the mask's center of mass.
        sample_in_mask: whether a location must lie in the mask (Table 2 (c)).
        box_offset: added to box sides when areas are compared.
    """
    count, lookup = len(boxes), BitMasks.of(masks)
    centers = mass_centers(lookup) if sampling_center == "mass" else (boxes[:, :2] + boxes[:, 2:]) / 2
    # ground truths by ascending area: the smallest rank among the candidates of a location wins
    by_area = box_areas(boxes, box_offset).sort(stable=True).indices  # [G]
    best_rank = torch.full((len(locations),), count, device=locations.device)  # [K], `count`: no candidate
    for start in range(0, count, GT_CHUNK):
        chunk = by_area[start : start + GT_CHUNK]  # [g]
        candidate = _inside_box(
            locations,
            location_strides,
            location_ranges,
            boxes[chunk],
            centers[chunk],
            center_radius=center_radius,
        )
        if sample_in_mask:
            candidate &= in_masks(locations, lookup, chunk)
        rank = torch.arange(start, start + len(chunk), device=locations.device)
        # [g, K] -> [K], the smallest rank of this chunk, then of all chunks
        best_rank = torch.minimum(best_rank, torch.where(candidate, rank[:, None], count).amin(0))
    matched = best_rank < count
    gt_index = torch.full_like(best_rank, -1)
    gt_index[matched] = by_area[best_rank[matched]]
    return Assignment(gt_index, ltrb_targets(gt_index, locations, boxes))


def ltrb_targets(gt_index: Tensor, locations: Tensor, boxes: Tensor) -> Tensor:
    """Return the distances to the sides of the assigned ground truths, float32 `[K, 4]` px; 0 for background.

    Args:
        gt_index: int64 `[K]`, -1 for background.
        locations: float32 `[K, 2]` px.
        boxes: float32 `[G, 4]` xyxy px.
    """
    ltrb = locations.new_zeros(len(locations), 4)
    positive = gt_index >= 0
    ltrb[positive] = xyxy_to_ltrb(locations[positive], boxes[gt_index[positive]])
    return ltrb


def in_masks(locations: Tensor, masks: BitMasks, index: Tensor | None = None) -> Tensor:
    """Return which locations lie in each mask.

    Args:
        locations: float32 `[K, 2]` px, whole numbers.
        masks: of G objects.
        index: int64 `[M]`, masks to look up, at least one; None: all, M = G.

    Returns:
        bool `[M, K]`.
    """
    x, y = locations.long().unbind(1)
    rows = torch.arange(len(masks), device=locations.device) if index is None else index
    return torch.cat([masks.at(y, x, part) for part in torch.split(rows, MASK_CHUNK)])


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
    """Select the positive locations that sample q and s of their ground truth (section 3.5, Table 2 (c)).

    Args:
        pred_boxes: `[P, 4]` xyxy px, boxes predicted at the positive locations.
        gt_boxes: `[G, 4]` xyxy px.
        gt_of_positive: int64 `[P]`, index into `gt_boxes`.
        mode: `iou`: predicted boxes with IoU above the threshold, and all that tie for the highest IoU of their ground
            truth; `best`: the single location of highest IoU, the first of equal ones; `all`, `each`: every positive.
        iou_threshold: of mode `iou`.
        box_offset: added to box sides in the IoU.

    Returns:
        bool `[P]`.
    """
    if mode in ("all", "each") or len(pred_boxes) == 0:
        return torch.ones_like(gt_of_positive, dtype=torch.bool)
    iou = paired_iou(pred_boxes, gt_boxes[gt_of_positive], box_offset)  # [P]
    # highest IoU of each ground truth, [G], read back at its positives, [P]
    best = iou.new_zeros(len(gt_boxes)).scatter_reduce(0, gt_of_positive, iou, "amax")[gt_of_positive]
    at_best = iou == best
    if mode == "iou":
        return (iou > iou_threshold) | at_best
    # the first positive that reaches the highest IoU of each ground truth: [G], then [P]
    order = torch.arange(len(iou), device=iou.device)
    first = torch.full((len(gt_boxes),), len(iou), device=iou.device)
    first = first.scatter_reduce(0, gt_of_positive[at_best], order[at_best], "amin")
    return order == first[gt_of_positive]


def mass_centers(masks: Tensor | BitMasks) -> Tensor:
    """Return the mean (x, y) of each mask's pixels, relative to the first pixel's location.

    Args:
        masks: bool `[G, H, W]`, or crops.

    Returns:
        float32 `[G, 2]` px; nan for a mask without pixels.
    """
    lookup = BitMasks.of(masks)
    centers = []
    for crop, row, column in lookup.crops():
        yx = crop.nonzero()  # [pixels, 2], relative to the crop
        centers.append(yx.sum(0) / len(yx) + yx.new_tensor((row, column)))
    return torch.stack(centers).flip(1) if centers else torch.zeros(0, 2, device=lookup.pixels.device)


def _inside_box(
    locations: Tensor,
    strides: Tensor,
    ranges: Tensor,
    boxes: Tensor,
    centers: Tensor,
    *,
    center_radius: float | None,
) -> Tensor:
    """Return which locations lie in the box, the center square and the size range of each object: bool `[G, K]`."""
    x, y = locations.unbind(1)  # [K]
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # [G, 1]
    # [G, K] each; as one [G, K, 4] tensor, the reductions below take several times as long
    sides = [x - x1, y - y1, x2 - x, y2 - y]
    largest = reduce(torch.maximum, sides)
    if center_radius is not None:
        center_x, center_y = centers[:, :, None].unbind(1)
        radius = strides * center_radius
        # a center that is nan (an empty mask) fails the comparison below
        sides += [
            x - (center_x - radius),
            y - (center_y - radius),
            center_x + radius - x,
            center_y + radius - y,
        ]
    nearest = reduce(torch.minimum, sides)
    return (nearest > 0) & (largest >= ranges[:, 0]) & (largest <= ranges[:, 1])
