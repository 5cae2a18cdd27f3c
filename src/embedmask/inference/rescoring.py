"""Rescoring of instances by their masks, which the detector's score does not take into account."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from embedmask.locations import paired_iou
from embedmask.masks import RunMasks
from embedmask.structures import Instances

MIN_RESCORED = 1000
"""Minimum number of proposals to rescore, because the best results may have a low rank before."""


def rescore_by_masks(instances: Instances) -> Instances:
    """Multiply each score by two factors in 0..1 and sort the instances again.

    - IoU of the proposal's box and the tight box of its mask. They differ if the embeddings include a neighbor or only
      a part of the object.
    - Fraction of the mask that no better instance of its class covers. Two proposals of one object have similar masks,
      even if their boxes differ.

    All instances are returned, and no score increases: duplicates are removed by a score threshold. An empty mask
    scores 0. The given instances, by descending score in the frame of the image, are not changed.
    """
    free = uncovered_fractions(instances.masks, instances.labels.tolist())
    agreement = paired_iou(instances.boxes.cpu(), torch.from_numpy(instances.masks.boxes()).float())
    factor = torch.where(free > 0, agreement * free, 0)  # the IoU of two boxes without area is nan
    scores = instances.scores * factor.to(instances.scores)
    order = scores.argsort(descending=True, stable=True).tolist()
    return replace(instances, scores=scores).select(order)


def uncovered_fractions(masks: RunMasks, labels: list[int]) -> Tensor:
    """Return the fraction of each mask that no earlier mask of its label covers, float32 `[R]`; 0 for empty masks.

    Memory holds one dense mask of the image and one crop at a time.
    """
    shares = torch.zeros(len(masks))
    boxes, areas = masks.boxes().tolist(), masks.areas().tolist()
    for label in set(labels):
        taken = np.zeros(masks.frame, bool)
        for index in (place for place, own in enumerate(labels) if own == label and areas[place]):
            x1, y1, x2, y2 = boxes[index]
            mask, window = masks.window(index, boxes[index]), taken[y1:y2, x1:x2]
            shares[index] = 1 - np.count_nonzero(mask & window) / areas[index]
            window |= mask
    return shares
