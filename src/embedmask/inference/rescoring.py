"""Scores that know the masks: a score from the detector alone says nothing of the mask that came out of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from embedmask.structures import CropMasks, Instances

MIN_RESCORED = 1000
"""As many proposals get masks and new scores, however few results are asked for: the best of them may come from far
down the detector's order."""


def rescore_by_masks(instances: Instances) -> Instances:
    """Multiply each score by two shares in 0..1, and put the results in their new order.

    - The IoU of the proposal's box and the box around its mask: they are two answers to one question, and where the
      embeddings took a neighbour along, or only a part, they differ.
    - The share of the mask that no better result of its class holds: where two proposals found one object, their masks
      agree, however little their boxes do.

    Nothing is left out, and no score grows: who wants results without duplicates takes those above a threshold. An
    empty mask scores 0.

    Args:
        instances: by descending score, in the image's frame; they are not changed.
    """
    around, free = mask_boxes(instances.masks), free_shares(instances.masks, instances.labels.tolist())
    agreement = box_iou(instances.boxes.cpu(), around).diagonal()
    factor = torch.where(free > 0, agreement * free, 0)  # of two boxes without area the IoU is no number
    scores = instances.scores * factor.to(instances.scores)
    order = scores.argsort(descending=True, stable=True).tolist()
    return replace(instances, scores=scores).select(order)


def mask_boxes(masks: CropMasks) -> Tensor:
    """The box that just holds each mask, float32 `[R, 4]` xyxy px on the CPU; all 0 where it is empty."""
    boxes = torch.zeros(len(masks), 4)
    for index, (crop, (y, x)) in enumerate(zip(masks.crops, masks.offsets, strict=True)):
        rows, columns = (crop.any(axis).nonzero() for axis in (1, 0))
        if len(rows):
            ends = columns[0] + x, rows[0] + y, columns[-1] + x + 1, rows[-1] + y + 1
            boxes[index] = torch.tensor([float(end) for end in ends])
    return boxes


def free_shares(masks: CropMasks, labels: list[int]) -> Tensor:
    """The part of each mask that no earlier mask of the same label holds, float32 `[R]`; of an empty one 0.

    One image is held, and one crop at a time.
    """
    shares = torch.zeros(len(masks))
    for label in set(labels):
        taken = torch.zeros(masks.image_size, dtype=torch.bool)
        for index in (place for place, own in enumerate(labels) if own == label):
            mask, (y, x) = masks.crops[index].cpu(), masks.offsets[index]
            window = taken[y : y + mask.shape[0], x : x + mask.shape[1]]
            area = int(mask.sum())
            if area:
                shares[index] = 1 - int((mask & window).sum()) / area
                window |= mask
    return shares
