"""From predictions to surviving proposals: candidates, boxes, class-wise NMS (section 3.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import nms

from embedmask.locations import level_locations, ltrb_to_xyxy
from embedmask.structures import Predictions, Size


@dataclass
class Proposals:
    """R proposals of one image, by descending score, in the network's frame.

    Attributes:
        boxes: float32 `[R, 4]` xyxy px.
        scores: float32 `[R]`.
        labels: int64 `[R]`.
        embed: q, float32 `[R, D]`.
        margin: s, float32 `[R, 1 or D]`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    embed: Tensor
    margin: Tensor

    def __getitem__(self, index: Tensor) -> Proposals:
        return Proposals(**{name: value[index] for name, value in vars(self).items()})

    def __len__(self) -> int:
        return len(self.scores)


def decode_proposals(
    predictions: Predictions,
    index: int,
    image_size: Size,
    *,
    score_threshold: float = 0.05,
    pre_nms: int = 1000,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    box_offset: float = 0.0,
    score: Literal["product", "root"] = "product",
    clip_before_nms: bool = True,
) -> Proposals:
    """Proposals of image `index` after NMS.

    A (location, class) pair is a candidate when its class score is above the threshold; its final score is class
    score times centerness. With `root` it is a candidate when that product is, and its final score is the root of it.
    Boxes are clipped to the image and those without area dropped: before the NMS, or after the best
    `max_detections` are chosen, which may leave fewer.

    Args:
        image_size: `(height, width)` of the image inside the padded frame.
        pre_nms: candidates kept a level.
        box_offset: added to box sides in the IoU of the NMS; 1 means that boxes end on their last pixel, so
            the image ends there, too.
    """
    levels = [
        _level_candidates(predictions, level, index, score_threshold, pre_nms, root=score == "root")
        for level in range(len(predictions.strides))
    ]
    found = _Candidates(*map(torch.cat, zip(*(vars(part).values() for part in levels), strict=True)))
    if clip_before_nms:
        found = _clip(found, image_size, box_offset)
    ends = found.boxes.new_tensor([0, 0, box_offset, box_offset])
    kept = class_wise_nms(found.boxes + ends, found.scores, found.labels, nms_threshold)[:max_detections]
    found = found[kept] if clip_before_nms else _clip(found[kept], image_size, box_offset)
    embed, margin = (
        _at_places(maps, index, found) for maps in (predictions.proposal_embed, predictions.proposal_margin)
    )
    return Proposals(found.boxes, found.scores, found.labels, embed, margin)


@dataclass
class _Candidates:
    """P boxes, scores and labels, as in `Proposals`, and the level and cell that they come from, int64 `[P]`."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    level: Tensor
    cell: Tensor

    def __getitem__(self, index: Tensor) -> _Candidates:
        return _Candidates(*(value[index] for value in vars(self).values()))


def _at_places(maps: list[Tensor], index: int, places: _Candidates) -> Tensor:
    """What the maps of image `index` say there, float32 `[P, D]`."""
    found = places.boxes.new_zeros(len(places.cell), maps[0].shape[1])
    for level, values in enumerate(maps):
        there = (places.level == level).nonzero()[:, 0]
        found[there] = values[index].flatten(1)[:, places.cell[there]].T.float()
    return found


def _clip(found: _Candidates, image_size: Size, box_offset: float) -> _Candidates:
    """Boxes inside the image; those that have an area there."""
    height, width = image_size
    limits = found.boxes.new_tensor([width, height, width, height]) - box_offset
    boxes = torch.minimum(found.boxes.clamp(min=0), limits)
    return replace(found, boxes=boxes)[(boxes[:, 2:] > boxes[:, :2]).all(1)]


def class_wise_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Survivors by descending score; boxes of different classes never suppress each other.

    Each class on its own: torchvision's `batched_nms` moves classes apart by adding to their coordinates, which
    costs float32 its last digits and with them some decisions near the threshold.

    Args:
        boxes: `[P, 4]` xyxy.
        scores: `[P]`.
        labels: int64 `[P]`.
        threshold: a box whose IoU with a better one is above this is suppressed.

    Returns:
        int64 `[R]`.
    """
    order = labels.argsort(stable=True)
    counts = labels.bincount().tolist()
    parts = zip(
        *(torch.split(values, counts) for values in (boxes[order], scores[order], order)), strict=True
    )
    survivors = [part if len(part) < 2 else part[nms(box, score, threshold)] for box, score, part in parts]
    kept = torch.cat([order[:0], *survivors]).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _level_candidates(
    predictions: Predictions,
    level: int,
    index: int,
    score_threshold: float,
    pre_nms: int,
    *,
    root: bool,
) -> _Candidates:
    """The best candidates of one level, boxes not yet clipped.

    A location is looked at as a whole first: only where its best class can be among them are all classes.
    """
    logits = predictions.class_logits[level][index].flatten(1)  # [C, K]
    centerness = predictions.centerness_logits[level][index].flatten().sigmoid()
    best = logits.amax(0).sigmoid()
    cells = ((best * centerness if root else best) > score_threshold).nonzero()[:, 0]
    if len(cells) > pre_nms:
        best = best[cells] * centerness[cells]
        cells = cells[best >= best.topk(pre_nms).values[-1]]
    probs = logits[:, cells].sigmoid()
    products = probs * centerness[cells]
    labels, at = ((products if root else probs) > score_threshold).nonzero(as_tuple=True)
    scores = products[labels, at]
    if len(scores) > pre_nms:
        scores, top = scores.topk(pre_nms)
        labels, at = labels[top], at[top]
    cells = cells[at]
    size = predictions.class_logits[level].shape[-2:]
    xy = level_locations((size[0], size[1]), predictions.strides[level], scores.device)[cells]
    return _Candidates(
        boxes=ltrb_to_xyxy(xy, predictions.box_ltrb[level][index].flatten(1)[:, cells].T.float()),
        scores=scores.sqrt() if root else scores,
        labels=labels,
        level=torch.full_like(cells, level),
        cell=cells,
    )
