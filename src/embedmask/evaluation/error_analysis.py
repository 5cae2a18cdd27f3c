"""Error analysis after TIDE (Bolya et al. 2020): why AP is below 1, and the quality of each image.

Results are matched by mask IoU in descending score, as in AP50: a result is correct if its IoU with an unmatched
object of its class is at least 0.5. Any other result gets the first error type that applies:

- localization: IoU at least 0.1 and below 0.5 with an object of its class;
- classification: IoU at least 0.5 with an object of another class;
- duplicate: IoU at least 0.5 with an object of its class that a higher-scoring result has matched;
- both: IoU at least 0.1 and below 0.5 with an object of another class;
- background: IoU below 0.1 with every object.

An object is missed if no result is correct for it or has it as the target of a localization or classification error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import THRESHOLDS, match_pairs
from embedmask.evaluation.overlap import Overlaps, mask_ious
from embedmask.evaluation.thresholds import Thresholds, is_decided

Record = dict[str, Any]
ErrorType = Literal["classification", "localization", "both", "duplicate", "background", "missed"]
Outcome = Literal["correct", "ignored"] | ErrorType
"""Of a result; "ignored" lies inside a crowd and counts neither for nor against the model."""
ERROR_TYPES: tuple[ErrorType, ...] = (
    "localization",
    "classification",
    "duplicate",
    "both",
    "background",
    "missed",
)
"""In the order in which they are tested."""
FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a result matches an object, and below which it is background."""


@dataclass(frozen=True)
class MatchedPrediction:
    """Outcome of one result.

    Attributes:
        target: id of the object that it matches, correctly or with a localization or classification error; else None.
    """

    category: int
    score: float
    outcome: Outcome
    target: int | None = None

    def is_decided(self, thresholds: Thresholds) -> bool:
        """Return whether the score reaches the threshold of the category."""
        return is_decided(self.score, self.category, thresholds)


@dataclass(frozen=True)
class ImageErrors:
    """Outcomes of the results of one image.

    Attributes:
        predictions: the outcomes, by descending score.
        ground_truth: the objects of the image, without crowds.
        num_decided: number of decided results, without those that a crowd makes ignored.
        pairs: object, decided result and IoU of each pair of one class with an IoU of at least 0.5, P values each.
    """

    image_id: int
    predictions: list[MatchedPrediction]
    ground_truth: list[Record]
    num_decided: int
    pairs: tuple[NDArray[np.int64], NDArray[np.int64], Overlaps]

    @cached_property
    def quality(self) -> float:
        """Return the mean of TP / (TP + FP + FN) over `THRESHOLDS`; nan without objects and decided results."""
        counts = len(self.ground_truth), self.num_decided
        return float(match_pairs(*self.pairs, counts).ap.mean()) if sum(counts) else math.nan

    def missed(self, score_threshold: Thresholds = -math.inf) -> list[Record]:
        """Return the objects that are the target of no result from the threshold on."""
        targets = {p.target for p in self.predictions if p.is_decided(score_threshold)}
        return [gt for gt in self.ground_truth if gt["id"] not in targets]


def classify_errors(evaluator: CocoEvaluator, score_threshold: Thresholds) -> list[ImageErrors]:
    """Match every result of each image and classify the errors.

    Args:
        score_threshold: results from here on count as decided; one for all categories, or by category id.

    Raises:
        BadInput: as `CocoEvaluator.compute`.
    """
    ids = evaluator.image_ids()
    results_of, images = evaluator.results_by_image(ids), []
    # categories by index: an id may exceed int64
    labels = {category: label for label, category in enumerate(evaluator.ground_truth.categories)}
    for image_id in ids:
        gts, results = evaluator.ground_truth.records[image_id], results_of[image_id]
        ious = mask_ious(results, gts)  # [R, G]
        crowd = np.array([bool(gt["iscrowd"]) for gt in gts], dtype=bool)
        gt_labels, result_labels = (
            np.array([labels[r["category_id"]] for r in records], dtype=np.int64)
            for records in (gts, results)
        )
        same_class = result_labels[:, None] == gt_labels  # [R, G]
        # greedy matching by descending score: a correct result takes its object
        unmatched, predictions = ~crowd, []
        for result, overlaps, same in zip(results, ious, same_class, strict=True):
            outcome, target = _classify(overlaps, same, crowd, unmatched)
            if outcome == "correct":
                unmatched[target] = False
            target_id = None if target is None else gts[target]["id"]
            predictions.append(MatchedPrediction(result["category_id"], result["score"], outcome, target_id))
        decided = np.array(
            [
                p.outcome != "ignored" and is_decided(p.score, p.category, score_threshold)
                for p in predictions
            ],
            dtype=bool,
        )
        objects = [gt for gt in gts if not gt["iscrowd"]]
        own_ious = np.where(same_class, ious, 0)[decided][:, ~crowd]
        rows, columns = np.nonzero(own_ious >= THRESHOLDS[0])
        pairs = columns, rows, own_ious[rows, columns]
        images.append(ImageErrors(image_id, predictions, objects, int(decided.sum()), pairs))
    return images


def _classify(
    ious: Overlaps, same: NDArray[np.bool_], crowd: NDArray[np.bool_], unmatched: NDArray[np.bool_]
) -> tuple[Outcome, int | None]:
    """Return the outcome of one result.

    Args:
        ious: mask IoU with each object and crowd of the image, float64 `[G]`.
        same: of the result's class, bool `[G]`.
        crowd: is a crowd, bool `[G]`.
        unmatched: no higher-scoring result has matched it, bool `[G]`.

    Returns:
        The outcome, and the index of the target, if any.
    """
    open_iou, target = _best(ious, same & unmatched)
    if open_iou >= FOREGROUND:
        return "correct", target
    if _best(ious, same & crowd)[0] >= FOREGROUND:
        return "ignored", None
    own_iou, own = _best(ious, same & ~crowd)
    other_iou, other = _best(ious, ~same & ~crowd)
    if BACKGROUND <= own_iou < FOREGROUND:
        return "localization", own
    if other_iou >= FOREGROUND:
        return "classification", other
    if own_iou >= FOREGROUND:
        return "duplicate", None
    return ("both" if other_iou >= BACKGROUND else "background"), None


def _best(ious: Overlaps, allowed: NDArray[np.bool_]) -> tuple[float, int | None]:
    """Return the highest IoU among the allowed objects, and its index."""
    if not allowed.any():
        return 0.0, None
    # argmax takes the first of ties; pycocotools takes the last
    index = len(ious) - 1 - int(np.where(allowed, ious, -1)[::-1].argmax())
    return float(ious[index]), index


def count_errors(images: Iterable[ImageErrors], score_threshold: Thresholds) -> dict[ErrorType, int]:
    """Count the errors of each type among the results from the threshold on, and the missed objects.

    An object counts as missed if it is the target of no result from the threshold on.
    """
    counts: Counter[Outcome] = Counter()
    for image in images:
        counts.update(p.outcome for p in image.predictions if p.is_decided(score_threshold))
        counts["missed"] += len(image.missed(score_threshold))
    return {error: counts[error] for error in ERROR_TYPES}


def ap50(images: Iterable[ImageErrors], without: ErrorType | None = None) -> float:
    """Return mask AP50, optionally with all errors of one type corrected.

    A localization or classification error becomes a correct result, unless its object is matched already. Other
    results with the error are removed. Missed objects are removed from the ground truth. All results count, however
    low their score. Without objects, the result is nan.
    """
    hits: dict[int, list[tuple[float, bool]]] = {}
    counts: Counter[int] = Counter()
    for image in images:
        category_of = {gt["id"]: gt["category_id"] for gt in image.ground_truth}
        counts.update(category_of.values())
        if without == "missed":
            counts.subtract(gt["category_id"] for gt in image.missed())
        matched = {p.target for p in image.predictions if p.outcome == "correct"}
        for p in image.predictions:
            if p.outcome == "ignored":
                continue
            if p.outcome != without:
                hits.setdefault(p.category, []).append((p.score, p.outcome == "correct"))
            elif p.target is not None and p.target not in matched:
                # corrected: counts for the class of the object
                matched.add(p.target)
                hits.setdefault(category_of[p.target], []).append((p.score, True))
    values = [_average_precision(hits.get(key, []), count) for key, count in counts.items() if count > 0]
    return float(np.mean(values)) if values else math.nan


def _average_precision(hits: list[tuple[float, bool]], count: int) -> float:
    """Return COCO's AP of `count` objects and R results: the mean interpolated precision at 101 recalls."""
    scores, correct = np.array(hits, dtype=np.float64).reshape(-1, 2).T
    tp = np.cumsum(correct[np.argsort(-scores, kind="stable")])  # [R]
    precision = tp / np.arange(1, len(tp) + 1)
    # the highest precision at this or any higher recall; 0 beyond the last
    interpolated = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    index = np.searchsorted(tp / count, np.linspace(0, 1, 101), side="left")
    return float(interpolated[index].mean())
