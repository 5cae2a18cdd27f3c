"""Slow references of `embedmask.inference`: whole maps and plain loops."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from embedmask import Predictions
from embedmask.inference.proposals import Proposals
from reference.coupling import weighted_distance
from reference.locations import resize_aligned
from reference.objective import iou

Size = tuple[int, int]


def mask_values(
    pixel_embed: Tensor,
    proposals: Proposals,
    *,
    stride: int,
    image_size: Size,
    original_size: Size,
    interpolation: str,
    frame: str = "authors",
) -> Tensor:
    """Return phi or log phi of every pixel of the original image before the threshold, float64 `[R, H, W]`.

    Resizes the whole padded map of each instance, filled outside its box. The fast version stores only pixels inside
    boxes: for 100 instances of 100 x 100 px in an image of 4000 x 3000 px, 1 MB instead of 4.8 GB.
    """
    if interpolation == "aligned":
        return _aligned_values(pixel_embed, proposals, stride, image_size, original_size)
    pixels = F.interpolate(pixel_embed[None].double(), scale_factor=2, mode="bilinear", align_corners=False)[
        0
    ]
    height, width = pixels.shape[1:]
    cell = stride / 2
    log_phi = -weighted_distance(pixels.flatten(1), proposals.embed, proposals.margin)
    log_phi = log_phi.view(-1, height, width)
    maps = log_phi if interpolation == "log_prob" else log_phi.exp()
    fill = -10.0 if interpolation == "log_prob" else 0.0
    for values, box in zip(maps, (proposals.boxes / cell).tolist(), strict=True):
        for y in range(height):
            for x in range(width):
                rule = "exact" if frame == "exact" else interpolation
                if not (coupled(x, box[0], box[2], rule) and coupled(y, box[1], box[3], rule)):
                    values[y, x] = fill
    if frame == "exact":
        rows, columns = (
            _reading(*side, cell) for side in zip((height, width), original_size, image_size, strict=True)
        )
        return rows @ maps @ columns.T
    size = [
        math.ceil((torch.tensor(float(cells)) * cell * original / network).item())
        for cells, original, network in zip((height, width), original_size, image_size, strict=True)
    ]
    if len(maps):
        maps = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    else:
        maps = maps.new_zeros(0, *size)
    return maps[:, : original_size[0], : original_size[1]]


def _reading(cells: int, original: int, network: int, cell: float) -> Tensor:
    """Return bilinear weights `[original, cells]` of the two cells around each pixel's center."""
    weights = torch.zeros(original, cells, dtype=torch.float64)
    for pixel in range(original):
        place = min(max((pixel + 0.5) * network / original / cell - 0.5, 0.0), cells - 1.0)
        weights[pixel, int(place)] += 1 - place % 1
        weights[pixel, min(int(place) + 1, cells - 1)] += place % 1
    return weights


def _aligned_values(
    pixel_embed: Tensor, proposals: Proposals, stride: int, image_size: Size, original_size: Size
) -> Tensor:
    """Resize whole maps in the second repository's three steps: to half the stride, the frame, the image."""
    height, width = pixel_embed.shape[1:]
    phi = (-weighted_distance(pixel_embed.double().flatten(1), proposals.embed, proposals.margin)).exp()
    frame = resize_aligned(resize_aligned(phi.view(-1, height, width), 2), stride // 2)
    image = frame[:, : image_size[0], : image_size[1]]
    if len(image) == 0:
        return image.new_zeros(0, *original_size)
    return F.interpolate(image[:, None], size=original_size, mode="bilinear", align_corners=False)[:, 0]


def coupled(cell: int, low: float, high: float, interpolation: str) -> bool:
    """Return whether a cell belongs to the box's region.

    2021: two cells around the box's whole cells. 2019: from low - 1 to high + 1. exact: the cell overlaps the box,
    extended on each side by a tenth, or by 1.5 cells if that is more.
    """
    if interpolation == "exact":
        margin = max(1.5, 0.1 * (high - low))
        return cell + 1 > low - margin and cell < high + margin
    if interpolation == "log_prob":
        return int(low) - 2 <= cell < int(high) + 2
    return low - 1 <= cell < high + 1


def decode_proposals(
    predictions: Predictions,
    index: int,
    image_size: Size,
    *,
    score_threshold: float,
    pre_nms_topk: int,
    nms_threshold: float,
    max_detections: int,
    box_offset: float,
    score: str = "product",
    clip_before_nms: bool = True,
) -> list[tuple[float, int, list[float], int, int]]:
    """Return (score, label, box, level, cell) of each proposal, one location at a time, with greedy NMS in Python.

    The fast version thresholds whole maps and calls torchvision's NMS.
    """
    height, width = image_size

    def clip(box: list[float]) -> list[float]:
        limits = (width, height, width, height)
        return [min(max(side, 0.0), limit - box_offset) for side, limit in zip(box, limits, strict=True)]

    candidates: list[tuple[float, int, list[float], int, int]] = []
    for level, stride in enumerate(predictions.strides):
        of_level = []
        rows, columns = predictions.class_logits[level].shape[-2:]
        for y in range(rows):
            for x in range(columns):
                centerness = predictions.centerness_logits[level][index, 0, y, x].sigmoid()
                left, top, right, bottom = predictions.box_ltrb[level][index, :, y, x].tolist()
                px, py = x * stride + stride // 2, y * stride + stride // 2
                box = [px - left, py - top, px + right, py + bottom]
                box = clip(box) if clip_before_nms else box
                for label, prob in enumerate(predictions.class_logits[level][index, :, y, x].sigmoid()):
                    product = (prob * centerness).item()
                    if (product if score == "root" else prob) > score_threshold:
                        final = math.sqrt(product) if score == "root" else product
                        of_level.append((final, label, box, level, y * columns + x))
        of_level.sort(key=lambda c: -c[0])
        candidates += of_level[:pre_nms_topk]
    selected: list[tuple[float, int, list[float], int, int]] = []
    for candidate in sorted(candidates, key=lambda c: -c[0]):
        _, label, box, _, _ = candidate
        if (not clip_before_nms or _has_area(box)) and all(
            label != other[1] or iou(box, other[2], box_offset) <= nms_threshold for other in selected
        ):
            selected.append(candidate)
    selected = [(final, label, clip(box), *place) for final, label, box, *place in selected[:max_detections]]
    return [candidate for candidate in selected if _has_area(candidate[2])]


def _has_area(box: list[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]
