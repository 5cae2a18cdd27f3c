"""Decoding of predictions to proposals: candidates, boxes, class-wise NMS (section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import nms

from embedmask.config import ModelConfig
from embedmask.locations import level_locations, ltrb_to_xyxy
from embedmask.structures import Predictions, ScoredColumns, Size


@dataclass
class Proposals(ScoredColumns):
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


def decode_proposals(
    predictions: Predictions,
    index: int,
    image_size: Size,
    cfg: ModelConfig,
    *,
    score_threshold: float,
    max_detections: int,
    final_thresholds: Sequence[float] = (),
) -> Proposals:
    """Decode the proposals of image `index` of a batch and apply class-wise NMS.

    A pair of location and class is a candidate if its class score is above the threshold; its final score is the
    product of class score and centerness, which is 1 in a head without it. With the score `root`, the product is
    compared with the threshold and the final score is its square root. Boxes are clipped to the image, and boxes
    without area are dropped: before NMS, or after the best `max_detections` are selected, which may leave fewer.

    Args:
        image_size: `(height, width)` of the image inside the padded frame.
        cfg: all other settings.
        final_thresholds: minimum final score of each class, C values, applied before the limit; empty: none.
    """
    levels = [
        _level_candidates(predictions, level, index, cfg, score_threshold)
        for level in range(len(predictions.strides))
    ]
    candidates = _Candidates(*map(torch.cat, zip(*(vars(part).values() for part in levels), strict=True)))
    if cfg.clip_before_nms:
        candidates = _clip(candidates, image_size, cfg.box_offset)
    ends = candidates.boxes.new_tensor([0, 0, cfg.box_offset, cfg.box_offset])
    keep = class_wise_nms(candidates.boxes + ends, candidates.scores, candidates.labels, cfg.nms_threshold)
    best = candidates.select(keep).best(final_thresholds, max_detections)
    best = best if cfg.clip_before_nms else _clip(best, image_size, cfg.box_offset)
    # q and s at the level and cell of each of the R proposals: maps [D, Hl * Wl] per level -> [R, D]
    embeddings = []
    for maps in (predictions.proposal_embed, predictions.proposal_margin):
        values = best.boxes.new_zeros(len(best.cell), maps[0].shape[1])
        for level, level_map in enumerate(maps):
            rows = (best.level == level).nonzero()[:, 0]
            values[rows] = level_map[index].flatten(1)[:, best.cell[rows]].T.float()
        embeddings.append(values)
    return Proposals(best.boxes, best.scores, best.labels, *embeddings)


@dataclass
class _Candidates(ScoredColumns):
    """P boxes, scores and labels, as in `Proposals`, with the level and cell of each, int64 `[P]`."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    level: Tensor
    cell: Tensor


def _clip(candidates: _Candidates, image_size: Size, box_offset: float) -> _Candidates:
    """Clip boxes to the image and drop those without area."""
    height, width = image_size
    limits = candidates.boxes.new_tensor([width, height, width, height]) - box_offset
    boxes = torch.minimum(candidates.boxes.clamp(min=0), limits)
    return replace(candidates, boxes=boxes).select((boxes[:, 2:] > boxes[:, :2]).all(1))


def class_wise_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the boxes that NMS keeps, by descending score; boxes of different classes never suppress each other.

    Each class is processed separately. torchvision's `batched_nms` adds an offset per class to the coordinates instead,
    and the rounding of float32 then changes some decisions near the threshold.

    Args:
        boxes: `[P, 4]` xyxy.
        threshold: IoU with a better box above which a box is suppressed.

    Returns:
        Indices of the boxes, int64 `[R]`.
    """
    # group boxes by class
    order = labels.argsort(stable=True)
    counts = labels.bincount().tolist()
    parts = zip(
        *(torch.split(values, counts) for values in (boxes[order], scores[order], order)), strict=True
    )
    survivors = [part if len(part) < 2 else part[nms(box, score, threshold)] for box, score, part in parts]
    # sort by index first: boxes of equal score keep their order
    keep = torch.cat([order[:0], *survivors]).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def candidate_scores(
    logits: Tensor, centerness: Tensor, score: Literal["product", "root"]
) -> tuple[Tensor, Tensor]:
    """Return the scores to compare with the threshold of candidates, and the products of class score and centerness.

    Args:
        logits, centerness: class logits and centerness, 0..1, of shapes that broadcast.
        score: compare the class score (`product`) or the product (`root`).
    """
    probs = logits.sigmoid()
    products = probs * centerness
    return products if score == "root" else probs, products


def _level_candidates(
    predictions: Predictions, level: int, index: int, cfg: ModelConfig, score_threshold: float
) -> _Candidates:
    """Select the best candidates of one level; boxes are not clipped yet.

    The best class of each location is checked first, so that all classes are computed only where they can matter.
    """
    topk = cfg.pre_nms_topk
    logits = predictions.class_logits[level][index].flatten(1)  # [C, K]
    centerness = torch.ones_like(logits[0])  # [K]
    if predictions.centerness_logits is not None:
        centerness = predictions.centerness_logits[level][index].flatten().sigmoid()
    tested, products = candidate_scores(logits.amax(0), centerness, cfg.score)  # [K]
    cells = (tested > score_threshold).nonzero()[:, 0]
    if len(cells) > topk:
        # the `topk` best pairs lie in the `topk` best cells, ties included
        best = products[cells]
        cells = cells[best >= best.topk(topk).values[-1]]
    # pairs of class and cell above the threshold: [C, cells] -> [P]
    tested, products = candidate_scores(logits[:, cells], centerness[cells], cfg.score)
    labels, at = (tested > score_threshold).nonzero(as_tuple=True)
    scores = products[labels, at]
    if len(scores) > topk:
        scores, top = scores.topk(topk)
        labels, at = labels[top], at[top]
    cells = cells[at]
    size = predictions.class_logits[level].shape[-2:]
    xy = level_locations((size[0], size[1]), predictions.strides[level], scores.device)[cells]
    return _Candidates(
        boxes=ltrb_to_xyxy(xy, predictions.box_ltrb[level][index].flatten(1)[:, cells].T.float()),
        scores=scores.sqrt() if cfg.score == "root" else scores,
        labels=labels,
        level=torch.full_like(cells, level),
        cell=cells,
    )
