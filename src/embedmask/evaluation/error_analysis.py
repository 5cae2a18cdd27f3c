"""Why AP is not 1: the kinds of error of TIDE (Bolya et al. 2020), and how good each image is.

Results are judged by mask IoU, the surest first, as AP50 judges them: one that overlaps a free object of its
class by half is right. A wrong result is the first of these that fits:

- localisation: overlaps an object of its class, by at least a tenth but less than half;
- classification: overlaps an object of another class by half;
- duplicate: overlaps an object of its class by half, which a surer result has found already;
- both: overlaps an object of another class, by at least a tenth but less than half;
- background: overlaps no object by a tenth.

An object that no result is right about, nor wrong in class or place alone, is missed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import THRESHOLDS, match_pairs
from embedmask.evaluation.overlap import Overlaps, mask_ious
from embedmask.evaluation.thresholds import Thresholds, is_decided

Record = dict[str, Any]
ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ErrorType = Literal["right", "ignored"] | ErrorKind
ERROR_KINDS: tuple[ErrorKind, ...] = (
    "localisation",
    "classification",
    "duplicate",
    "both",
    "background",
    "missed",
)
"""In the order in which they are tried."""
FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a result is right, and below which it has nothing to do with an object."""


@dataclass(frozen=True)
class MatchedPrediction:
    """What became of one result.

    Attributes:
        target: id of the object that it found, or found wrongly; None for duplicates, both and background.
    """

    category: int
    score: float
    verdict: ErrorType
    target: int | None = None

    def is_decided(self, thresholds: Thresholds) -> bool:
        """Return whether the result scores at least the threshold of its category."""
        return is_decided(self.score, self.category, thresholds)


@dataclass(frozen=True)
class ImageErrors:
    """What became of one image's results, by descending score.

    Attributes:
        truths: its objects, without crowds.
        quality: mean of TP / (TP + FP + FN) over IoU 0.5 to 0.9, of the results that count as decided; nan
            where there is neither an object nor such a result.
        num_decided: results that count as decided.
    """

    image_id: int
    findings: list[MatchedPrediction]
    truths: list[Record]
    quality: float
    num_decided: int

    def missed(self, score_threshold: Thresholds = -math.inf) -> list[Record]:
        """Objects that no result from the threshold on is about."""
        met = {finding.target for finding in self.findings if finding.is_decided(score_threshold)}
        return [truth for truth in self.truths if truth["id"] not in met]


def classify_errors(
    evaluator: CocoEvaluator, score_threshold: Thresholds, image_ids: Sequence[int] | None = None
) -> list[ImageErrors]:
    """What became of every result of each image.

    Args:
        score_threshold: results from here on count as decided; for all categories or by category id.
        image_ids: as in `CocoEvaluator.compute`.

    Raises:
        BadInput: as `CocoEvaluator.compute`.
    """
    ids = evaluator.image_ids(image_ids)
    truths, found = evaluator.truths_by_image(ids), evaluator.results_by_image(ids)
    return [_judge_image(image_id, found[image_id], truths[image_id], score_threshold) for image_id in ids]


def _judge_image(
    image_id: int, found: list[Record], records: list[Record], thresholds: Thresholds
) -> ImageErrors:
    ious = mask_ious(found, records)
    crowd = np.array([bool(record["iscrowd"]) for record in records], dtype=bool)
    # categories by position: an id may be too large for an array
    labels = {
        category: label for label, category in enumerate({r["category_id"] for r in (*records, *found)})
    }
    expected, given = (
        np.array([labels[record["category_id"]] for record in group], dtype=np.int64)
        for group in (records, found)
    )
    own = given[:, None] == expected
    free = ~crowd
    findings = []
    for result, overlaps, same in zip(found, ious, own, strict=True):
        verdict, target = _verdict(overlaps, same, crowd, free)
        if verdict == "right":
            free[target] = False
        object_id = records[target]["id"] if target is not None else None
        findings.append(MatchedPrediction(result["category_id"], result["score"], verdict, object_id))
    decided = np.array([is_decided(r["score"], r["category_id"], thresholds) for r in found], dtype=bool)
    quality = _quality(np.where(own, ious, 0)[decided][:, ~crowd])
    objects = [record for record in records if not record["iscrowd"]]
    return ImageErrors(image_id, findings, objects, quality, int(decided.sum()))


def _verdict(
    ious: Overlaps, same: NDArray[np.bool_], crowd: NDArray[np.bool_], free: NDArray[np.bool_]
) -> tuple[ErrorType, int | None]:
    """Verdict on one result and the place of its object, from its overlaps with all objects of the image."""
    open_iou, target = _best(ious, same & free)
    if open_iou >= FOREGROUND:
        return "right", target
    if _best(ious, same & crowd)[0] >= FOREGROUND:
        return "ignored", None
    own_iou, own = _best(ious, same & ~crowd)
    other_iou, other = _best(ious, ~same & ~crowd)
    if BACKGROUND <= own_iou < FOREGROUND:
        return "localisation", own
    if other_iou >= FOREGROUND:
        return "classification", other
    if own_iou >= FOREGROUND:
        return "duplicate", None
    return ("both" if other_iou >= BACKGROUND else "background"), None


def _best(ious: Overlaps, allowed: NDArray[np.bool_]) -> tuple[float, int | None]:
    if not allowed.any():
        return 0.0, None
    # of equal overlaps the last, as AP takes it
    place = len(ious) - 1 - int(np.where(allowed, ious, -1)[::-1].argmax())
    return float(ious[place]), place


def _quality(ious: Overlaps) -> float:
    """`ious [found, truths]`, 0 between classes."""
    if not sum(ious.shape):
        return float("nan")
    found, truths = np.nonzero(ious >= THRESHOLDS[0])
    return float(match_pairs(truths, found, ious[found, truths], ious.shape[::-1]).ap.mean())


def count_errors(images: Iterable[ImageErrors], score_threshold: Thresholds) -> dict[ErrorKind, int]:
    """How often each error occurs among the results that score at least the threshold, and objects missed.

    An object is missed here when no result from the threshold on is about it.
    """
    counts: Counter[ErrorType] = Counter()
    for image in images:
        counts.update(finding.verdict for finding in image.findings if finding.is_decided(score_threshold))
        counts["missed"] += len(image.missed(score_threshold))
    return {kind: counts[kind] for kind in ERROR_KINDS}


def ap50(images: Iterable[ImageErrors], without: ErrorKind | None = None) -> float:
    """Mask AP50, or what it would be if one kind of error did not occur.

    A wrong class or place is corrected, unless the object is found already; other wrong results are taken
    away; missed objects are no longer asked for. Every result counts, however low its score.

    Args:
        without: the kind of error; None: as it is.

    Returns:
        nan without objects.
    """
    hits: dict[int, list[tuple[float, bool]]] = {}
    wanted: Counter[int] = Counter()
    for image in images:
        truths = {truth["id"]: truth["category_id"] for truth in image.truths}
        wanted.update(truths.values())
        if without == "missed":
            wanted.subtract(truth["category_id"] for truth in image.missed())
        for category, score, right in _repaired(image, truths, without):
            hits.setdefault(category, []).append((score, right))
    values = [_average_precision(hits.get(key, []), count) for key, count in wanted.items() if count > 0]
    return float(np.mean(values)) if values else float("nan")


def _repaired(
    image: ImageErrors, category_of: dict[int, int], without: ErrorKind | None
) -> Iterable[tuple[int, float, bool]]:
    """Category, score and whether it is right, of each result that stays."""
    found = {finding.target for finding in image.findings if finding.verdict == "right"}
    for finding in image.findings:
        if finding.verdict == "ignored":
            continue
        if finding.verdict != without:
            yield finding.category, finding.score, finding.verdict == "right"
        elif finding.target is not None and finding.target not in found:
            found.add(finding.target)
            yield category_of[finding.target], finding.score, True


def _average_precision(hits: list[tuple[float, bool]], count: int) -> float:
    """Mean of the highest precision at or beyond each of 101 recalls, as COCO defines it."""
    scores, right = np.array(hits, dtype=np.float64).reshape(-1, 2).T
    true = np.cumsum(right[np.argsort(-scores, kind="stable")])
    precision = true / np.arange(1, len(true) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    reached = np.searchsorted(true / count, np.linspace(0, 1, 101), side="left")
    return float(best[reached].mean())
