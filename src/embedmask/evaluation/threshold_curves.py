"""Precision, recall and F1 against the score threshold, and the threshold with the highest F1."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedmask.config.detector import DEFAULT_SCORE_THRESHOLD
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.error_analysis import ImageErrors, MatchedPrediction, classify_errors

GRID = np.arange(101) / 100
"""Score thresholds that are compared, float64 `[101]`."""


@dataclass(frozen=True)
class ThresholdCurves:
    """Precision, recall and F1 at mask IoU 0.5 of the results that reach each threshold of `GRID`.

    Attributes:
        precision, recall, f1: float64 `[101]`; 0 without results, nan without objects.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @classmethod
    def of(cls, images: Sequence[ImageErrors]) -> ThresholdCurves:
        """Return the curves of classified images, pooled over images and categories."""
        predictions = [prediction for image in images for prediction in image.predictions]
        return cls._of(predictions, sum(len(image.ground_truth) for image in images))

    @classmethod
    def by_category(
        cls, images: Sequence[ImageErrors], categories: Iterable[int]
    ) -> dict[int, ThresholdCurves]:
        """Return the curves of each category, pooled over images."""
        predictions: dict[int, list[MatchedPrediction]] = defaultdict(list)
        objects = Counter(gt["category_id"] for image in images for gt in image.ground_truth)
        for image in images:
            for prediction in image.predictions:
                predictions[prediction.category].append(prediction)
        return {category: cls._of(predictions[category], objects[category]) for category in categories}

    @classmethod
    def _of(cls, predictions: Sequence[MatchedPrediction], objects: int) -> ThresholdCurves:
        hits = _reaching(p.score for p in predictions if p.outcome == "correct")
        results = _reaching(p.score for p in predictions if p.outcome != "ignored")
        if not objects:
            undefined = np.full(len(GRID), np.nan)
            return cls(undefined, undefined, undefined)
        # F1 = 2 TP / ((TP + FP) + (TP + FN))
        return cls(hits / np.maximum(results, 1), hits / objects, 2 * hits / (results + objects))

    @property
    def best(self) -> float | None:
        """Return the middle of the longest range of thresholds with the highest F1; None without a correct result.

        Of ranges of equal length it is the one with the higher thresholds.
        """
        if not self.f1.max() > 0:  # also false for nan
            return None
        highest = np.flatnonzero(self.f1 >= self.f1.max() - 1e-9)
        # between two ranges F1 is lower, so that their common mean may be a bad threshold
        ranges = np.split(highest, np.flatnonzero(np.diff(highest) > 1) + 1)
        return float(GRID[max(reversed(ranges), key=len)].mean().round(2))


def _reaching(scores: Iterable[float]) -> NDArray[np.int64]:
    """Return how many scores reach each threshold of `GRID`, int64 `[101]`."""
    # the results below a threshold are those left of its insertion point
    ascending = np.sort(np.fromiter(scores, np.float64))
    return np.asarray(len(ascending) - np.searchsorted(ascending, GRID), dtype=np.int64)


@dataclass(frozen=True)
class Choice:
    """A score threshold chosen on results.

    Attributes:
        threshold: one for all categories, or one per category by ascending id; None without a correct result.
        f1: F1 at mask IoU 0.5, pooled over categories, with the best common threshold; nan without objects.
        default_f1: the same with `DEFAULT_SCORE_THRESHOLD`.
    """

    threshold: float | tuple[float, ...] | None
    f1: float
    default_f1: float

    def metrics(self) -> dict[str, float]:
        """Return the F1 figures of the common threshold under their metric names."""
        return {"decision/F1": self.f1, f"decision/F1_at_{DEFAULT_SCORE_THRESHOLD:g}": self.default_f1}


def choose_thresholds(evaluator: CocoEvaluator, *, per_class: bool = False) -> Choice:
    """Return the score threshold with the highest F1 at mask IoU 0.5 on the results of an evaluator.

    With `per_class`, it is one per category; a category without a correct result takes the common one.
    """
    images = classify_errors(evaluator, 0.0)
    pooled = ThresholdCurves.of(images)
    common = pooled.best
    threshold: float | tuple[float, ...] | None = common
    if per_class and common is not None:
        curves = ThresholdCurves.by_category(images, evaluator.ground_truth.categories)
        by_class = (own.best for own in curves.values())
        threshold = tuple(common if best is None else best for best in by_class)
    # GRID contains the default threshold
    at_default = int(np.searchsorted(GRID, DEFAULT_SCORE_THRESHOLD))
    return Choice(threshold, float(pooled.f1.max()), float(pooled.f1[at_default]))
