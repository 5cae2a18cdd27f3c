"""Slow references of `embedmask.objective`: loops over images, instances and locations."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def lovasz_hinge(logits: Tensor, targets: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute the Lovász hinge of Berman et al. 2018 (algorithm 1), one instance at a time: `[M, P]` -> `[M]`.

    The fast version sorts all rows in one call, and only positive errors.
    """
    losses = []
    for row in range(len(logits)):
        inside = torch.ones_like(targets[row]) if region is None else region[row]
        score, gt = logits[row][inside], targets[row][inside].to(logits.dtype)
        if len(score) == 0:
            losses.append(logits[row].sum() * 0)
            continue
        errors, order = (1 - score * (2 * gt - 1)).sort(descending=True)
        losses.append((errors.relu() * _lovasz_gradient(gt[order])).sum())
    return torch.stack(losses) if losses else logits.sum(1)


def _lovasz_gradient(gt: Tensor) -> Tensor:
    """Return the discrete derivative of the Jaccard loss along the sorted errors."""
    intersection = gt.sum() - gt.cumsum(0)
    union = gt.sum() + (1 - gt).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])


def assign(
    locations: Tensor,
    strides: Tensor,
    ranges: Tensor,
    boxes: Tensor,
    masks: Tensor,
    *,
    center_radius: float | None,
    sample_in_mask: bool,
    box_offset: float,
    sampling_center: str = "box",
) -> tuple[list[int], list[list[float]]]:
    """Assign one location at a time (section 3.5): ground gt (-1: none) and side distances of each.

    The fast version compares all pairs at once; for 20,000 locations and 50 objects these loops take about 10 s.
    """
    chosen, distances = [], []
    for (x, y), stride, (low, high) in zip(
        locations.tolist(), strides.tolist(), ranges.tolist(), strict=True
    ):
        best, best_area, best_sides = -1, math.inf, [0.0] * 4
        for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = [x - x1, y - y1, x2 - x, y2 - y]
            if min(sides) <= 0 or not low <= max(sides) <= high:
                continue
            if center_radius is not None:
                reach = stride * center_radius
                center = ((x1 + x2) / 2, (y1 + y2) / 2)
                if sampling_center == "mass":
                    inside = masks[index].nonzero().double()
                    if len(inside) == 0:
                        continue
                    center = (inside[:, 1].mean().item(), inside[:, 0].mean().item())
                if abs(x - center[0]) >= reach or abs(y - center[1]) >= reach:
                    continue
            if sample_in_mask:
                height, width = masks.shape[1:]
                if x >= width or y >= height or not masks[index, int(y), int(x)]:
                    continue
            area = (x2 - x1 + box_offset) * (y2 - y1 + box_offset)
            if area < best_area:
                best, best_area, best_sides = index, area, sides
        chosen.append(best)
        distances.append(best_sides)
    return chosen, distances


def align(
    scores: Tensor,
    ious: Tensor,
    candidate: Tensor,
    *,
    alpha: float,
    beta: float,
    topk: int,
) -> tuple[list[int], list[float]]:
    """Assign by alignment (TOOD, section 3.2) one pair at a time, in float64 and without logarithms.

    The fast version compares all pairs at once.
    """
    count, places = ious.shape
    t = [
        [s**alpha * u**beta for s, u in zip(*rows, strict=True)]
        for rows in zip(scores.tolist(), ious.tolist(), strict=True)
    ]
    wanted: list[list[int]] = [[] for _ in range(places)]
    for gt in range(count):
        allowed = [k for k in range(places) if candidate[gt, k]]
        for k in sorted(allowed, key=lambda k: -t[gt][k])[:topk]:
            wanted[k].append(gt)
    chosen = [max(gts, key=lambda gt: ious[gt, k].item(), default=-1) for k, gts in enumerate(wanted)]
    quality = [0.0] * places
    for gt in range(count):
        own = [k for k in range(places) if chosen[k] == gt]
        for k in own:
            quality[k] = t[gt][k] / max(t[gt][j] for j in own) * max(ious[gt, j].item() for j in own)
    return chosen, quality


def iou(box: list[float], other: list[float], box_offset: float) -> float:
    """Compute the IoU of two xyxy boxes, with `box_offset` added to their sides."""
    width = max(min(box[2], other[2]) - max(box[0], other[0]) + box_offset, 0)
    height = max(min(box[3], other[3]) - max(box[1], other[1]) + box_offset, 0)
    areas = [(b[2] - b[0] + box_offset) * (b[3] - b[1] + box_offset) for b in (box, other)]
    return width * height / (sum(areas) - width * height)


def select_samples(
    pred_boxes: Tensor,
    gt_boxes: Tensor,
    gt_of_positive: Tensor,
    *,
    mode: str,
    iou_threshold: float,
    box_offset: float,
) -> list[bool]:
    """Select samples (Table 2 (c)) one ground gt at a time; the fast version has no loop."""
    selected = [False] * len(pred_boxes)
    for gt in range(len(gt_boxes)):
        members = [i for i, g in enumerate(gt_of_positive.tolist()) if g == gt]
        overlaps = {i: iou(pred_boxes[i].tolist(), gt_boxes[gt].tolist(), box_offset) for i in members}
        if not members:
            continue
        best = max(overlaps.values())
        passing = [i for i in members if overlaps[i] > iou_threshold]
        ties = [i for i in members if overlaps[i] == best]
        for i in {"all": members, "best": ties[:1], "iou": passing or ties}[mode]:
            selected[i] = True
    return selected


def mask_targets(masks: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Resize masks as the authors do: pad to the frame, resize bilinearly, threshold at 0.

    The fast version reads bool pixels without interpolation.
    """
    height, width = grid[0] * stride, grid[1] * stride
    padded = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1])).float()
    return F.interpolate(padded[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0] > 0


def any_of(masks: Tensor, places: list[tuple[int, int]], stride: int, grid: tuple[int, int]) -> Tensor:
    """Return, cell by cell, whether one of the cell's pixels `places` is in the mask; the fast version reads crops."""
    found = torch.zeros(len(masks), *grid, dtype=torch.bool)
    for row in range(grid[0]):
        for column in range(grid[1]):
            for y, x in ((row * stride + dy, column * stride + dx) for dy, dx in places):
                if y < masks.shape[1] and x < masks.shape[2]:
                    found[:, row, column] |= masks[:, y, x]
    return found


def semantic_targets(masks: Tensor, labels: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """Return, cell by cell, the class of the smallest object at its location, -1 for none.

    The fast version sorts the objects once; for 2,000 objects on 128 x 128 cells these loops take minutes.
    """
    found = torch.full(grid, -1)
    for row in range(grid[0]):
        for column in range(grid[1]):
            y, x = row * stride + stride // 2, column * stride + stride // 2
            fewest = math.inf
            for mask, label in zip(masks, labels.tolist(), strict=True):
                inside = y < mask.shape[0] and x < mask.shape[1] and bool(mask[y, x])
                if inside and mask.sum().item() < fewest:
                    found[row, column], fewest = label, mask.sum().item()
    return found


def box_regions(boxes: Tensor, grid: tuple[int, int], stride: int, expansion: float) -> Tensor:
    """Compute B_k cell by cell in float64; the fast version is an outer product of rows and columns."""
    height, width = grid
    inside = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for index, box in enumerate(boxes.double().tolist()):
        x1, y1, x2, y2 = (side / stride for side in box)
        grow_x = (x2 - x1) * (expansion - 1) / 2 + 1
        grow_y = (y2 - y1) * (expansion - 1) / 2 + 1
        for y in range(height - 1):
            for x in range(width - 1):
                inside[index, y, x] = x1 - grow_x <= x < x2 + grow_x and y1 - grow_y <= y < y2 + grow_y
    return inside
