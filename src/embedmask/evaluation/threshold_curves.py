"""How precision, recall and F1 depend on the score threshold, and which threshold is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedmask.config.detector import DEFAULT_DECISION
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.error_analysis import ImageErrors, classify_errors

GRID = np.arange(101) / 100
"""Thresholds that are compared."""


@dataclass(frozen=True)
class ThresholdCurves:
    """Precision, recall and F1 at mask IoU 0.5 of the results that score at least each threshold of `GRID`.

    Attributes:
        precision, recall, f1: float64 `[101]`; 0 where nothing is found. nan without objects.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @classmethod
    def of(cls, images: Sequence[ImageErrors], category: int | None = None) -> ThresholdCurves:
        """Return the curves of judged images, pooled over images and categories, or of one category."""
        findings = [f for image in images for f in image.findings if category in (None, f.category)]
        objects = sum(category in (None, truth["category_id"]) for image in images for truth in image.truths)
        hits = _reaching(finding.score for finding in findings if finding.verdict == "right")
        results = _reaching(finding.score for finding in findings if finding.verdict != "ignored")
        if not objects:
            nothing = np.full(len(GRID), np.nan)
            return cls(nothing, nothing, nothing)
        return cls(hits / np.maximum(results, 1), hits / objects, 2 * hits / (results + objects))

    @property
    def best(self) -> float | None:
        """Threshold with the highest F1; of several the middle one. None without a result that is right."""
        if not self.f1.max() > 0:  # nan fails too
            return None
        return float(GRID[np.flatnonzero(self.f1 >= self.f1.max() - 1e-9)].mean().round(2))


def _reaching(scores: Iterable[float]) -> NDArray[np.int64]:
    """Return how many scores reach each threshold of `GRID`, int64 `[101]`."""
    ascending = np.sort(np.fromiter(scores, np.float64))
    return np.asarray(len(ascending) - np.searchsorted(ascending, GRID), dtype=np.int64)


@dataclass(frozen=True)
class Choice:
    """A score threshold chosen on results.

    Attributes:
        threshold: for all categories, or one per category by ascending id; None where no result is right.
        f1: at mask IoU 0.5, pooled over categories, with the best common threshold; nan without objects.
        default_f1: the same with `DEFAULT_DECISION`.
    """

    threshold: float | tuple[float, ...] | None
    f1: float
    default_f1: float

    def metrics(self) -> dict[str, float]:
        """Return the figures of the common threshold, as they stand beside AP."""
        return {"decision/F1": self.f1, f"decision/F1_at_{DEFAULT_DECISION:g}": self.default_f1}


def choose_thresholds(evaluator: CocoEvaluator, *, per_class: bool = False) -> Choice:
    """Return the score threshold with the highest F1 at mask IoU 0.5 on the results of an evaluator.

    Args:
        per_class: one threshold per category; one without a right result takes the common threshold.
    """
    images = classify_errors(evaluator, 0.0)
    pooled = ThresholdCurves.of(images)
    common = pooled.best
    threshold: float | tuple[float, ...] | None = common
    if per_class and common is not None:
        own = (ThresholdCurves.of(images, category).best for category in evaluator.truth.categories)
        threshold = tuple(common if best is None else best for best in own)
    at_default = int(np.searchsorted(GRID, DEFAULT_DECISION))
    return Choice(threshold, float(pooled.f1.max()), float(pooled.f1[at_default]))
