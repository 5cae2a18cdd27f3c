"""Rescoring of instances by their masks, which the detector's score does not take into account."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from embedmask.structures import CropMasks, Instances

MIN_RESCORED = 1000
"""Minimum number of proposals to rescore, because the best results may have a low rank before."""


def rescore_by_masks(instances: Instances) -> Instances:
    """Multiply each score by two factors in 0..1 and sort the instances again.

    - IoU of the proposal's box and the tight box of its mask. They differ if the embeddings include a neighbour or only
      a part of the object.
    - Fraction of the mask that no better instance of its class covers. Two proposals of one object have similar masks,
      even if their boxes differ.

    All instances are returned, and no score increases: duplicates are removed by a score threshold. An empty mask
    scores 0.

    Args:
        instances: by descending score, in the frame of the image; they are not changed.
    """
    around, free = (
        mask_boxes(instances.masks),
        uncovered_fractions(instances.masks, instances.labels.tolist()),
    )
    agreement = box_iou(instances.boxes.cpu(), around).diagonal()
    factor = torch.where(free > 0, agreement * free, 0)  # the IoU of two boxes without area is nan
    scores = instances.scores * factor.to(instances.scores)
    order = scores.argsort(descending=True, stable=True).tolist()
    return replace(instances, scores=scores).select(order)


def mask_boxes(masks: CropMasks) -> Tensor:
    """Return the tight box of each mask, float32 `[R, 4]` xyxy px on the CPU; 0 for empty masks."""
    boxes = torch.zeros(len(masks), 4)
    for index, (crop, (y, x)) in enumerate(zip(masks.crops, masks.offsets, strict=True)):
        rows, columns = (crop.any(axis).nonzero() for axis in (1, 0))
        if len(rows):
            ends = columns[0] + x, rows[0] + y, columns[-1] + x + 1, rows[-1] + y + 1
            boxes[index] = torch.tensor([float(end) for end in ends])
    return boxes


def uncovered_fractions(masks: CropMasks, labels: list[int]) -> Tensor:
    """Return the fraction of each mask that no earlier mask of its label covers, float32 `[R]`; 0 for empty masks.

    Memory holds one dense mask of the image and one crop at a time.
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
