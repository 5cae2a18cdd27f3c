"""F1 against the score threshold, compared with a slow implementation, and the chosen threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.error_analysis import classify_errors
from embedmask.evaluation.threshold_curves import GRID, ThresholdCurves, choose_thresholds
from embedmask.evaluation.thresholds import describe

SIDE = 64
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


def square(x: int, y: int, side: int = 8) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def evaluator_of(
    objects: list[tuple[int, int, int]], results: list[tuple[int, int, int, float]]
) -> CocoEvaluator:
    """Return an evaluator of 8 px squares in one image: objects (x, y, category), results (x, y, category, score)."""
    ground_truth: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE}],
        "categories": CATEGORIES,
        "annotations": [
            {
                "id": number, "image_id": 1, "category_id": category, "iscrowd": 0, "area": 64,
                "bbox": [x, y, 8, 8], "segmentation": square(x, y),
            }
            for number, (x, y, category) in enumerate(objects, start=1)
        ],
    }  # fmt: skip
    from faster_coco_eval.core import mask as mask_api

    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(
        {
            "image_id": 1, "category_id": category, "bbox": [x, y, 8, 8], "score": score,
            "segmentation": mask_api.merge(mask_api.frPyObjects(square(x, y), SIDE, SIDE)),
        }
        for x, y, category, score in results
    )  # fmt: skip
    return evaluator


def slow_f1(objects: list[Any], results: list[Any], threshold: float, category: int | None = None) -> float:
    """Return F1. Squares lie on a grid: a result is correct if it lies on an unmatched object of its class."""
    free = [o for o in objects if category in (None, o[2])]
    count, correct, total = len(free), 0, 0
    for x, y, own, score in sorted(results, key=lambda r: -r[3]):
        if score >= threshold and category in (None, own):
            total += 1
            if (x, y, own) in free:
                free.remove((x, y, own))
                correct += 1
    return 2 * correct / (total + count) if count else math.nan


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("category", [None, 3, 7])
def test_f1_at_every_threshold(seed: int, category: int | None) -> None:
    rng = np.random.default_rng(seed)
    places = [(x, y) for x in range(0, 64, 8) for y in range(0, 64, 8)]
    chosen = rng.permutation(len(places))[:12]
    objects = [(*places[i], int(rng.choice([3, 7]))) for i in chosen]
    results = [
        (*places[i], int(rng.choice([3, 7])), float(rng.integers(1, 100) / 100))
        for i in (*chosen, *rng.integers(0, len(places), 20))
    ]
    images = classify_errors(evaluator_of(objects, results), 0.0)
    by_category = ThresholdCurves.by_category(images, [3, 7])
    assert list(by_category) == [3, 7]
    curves = ThresholdCurves.of(images) if category is None else by_category[category]
    expected = [slow_f1(objects, results, threshold, category) for threshold in GRID]
    np.testing.assert_allclose(curves.f1, expected)
    assert curves.best is not None
    assert slow_f1(objects, results, curves.best, category) == pytest.approx(max(expected), abs=0.05)


def test_chooses_the_middle_of_a_plateau() -> None:
    """Correct results score at least 0.6, wrong ones at most 0.2."""
    evaluator = evaluator_of(
        [(0, 0, 3), (16, 0, 3)], [(0, 0, 3, 0.6), (16, 0, 3, 0.9), (32, 0, 3, 0.2), (40, 0, 7, 0.1)]
    )
    choice = choose_thresholds(evaluator)
    assert choice.threshold == pytest.approx(0.4, abs=0.011)
    assert (choice.f1, choice.default_f1) == (1, 1)


def test_mean_of_two_plateaus_is_not_chosen() -> None:
    """F1 is highest up to 0.2 and from 0.51 to 0.89, and lower between, at the scores of the wrong results."""
    places = [(0, 0, 3), (16, 0, 3), (32, 0, 3), (48, 0, 3)]
    correct = [(*place, score) for place, score in zip(places, (0.9, 0.89, 0.2, 0.2), strict=True)]
    wrong = [(x, 40, 3, 0.5) for x, _, _ in places]
    evaluator = evaluator_of(places, correct + wrong)
    choice = choose_thresholds(evaluator)
    assert choice.threshold == 0.7
    f1 = ThresholdCurves.of(classify_errors(evaluator, 0.0)).f1
    assert f1[70] == f1.max() == choice.f1


@pytest.mark.parametrize(
    ("highest", "chosen"),
    [
        ([(10, 20)], 0.14),
        ([(10, 21), (40, 45)], 0.15),
        ([(10, 21), (40, 51), (70, 71)], 0.45),  # of equal ones the upper
    ],
)
def test_middle_of_the_longest_plateau(highest: list[tuple[int, int]], chosen: float) -> None:
    f1 = np.full(len(GRID), 0.5)
    for start, stop in highest:
        f1[start:stop] = 0.75
    assert ThresholdCurves(f1, f1, f1).best == chosen


def test_one_threshold_per_class() -> None:
    """Dogs score low; a class without objects takes the common threshold."""
    objects = [(0, 0, 3), (16, 0, 7), (24, 0, 7)]
    results = [(0, 0, 3, 0.9), (40, 0, 3, 0.5), (48, 0, 3, 0.45), (16, 0, 7, 0.3), (24, 0, 7, 0.2)]
    cat, dog = choose_thresholds(evaluator_of(objects, results), per_class=True).threshold  # type: ignore[misc]
    assert 0.5 < cat < 0.9
    assert dog <= 0.2
    only_cats = choose_thresholds(evaluator_of(objects[:1], results[:3]), per_class=True)
    assert only_cats.threshold == (cat, cat)


@pytest.mark.parametrize("objects", [[], [(0, 0, 3)]])
def test_no_threshold_without_correct_results(objects: list[tuple[int, int, int]]) -> None:
    choice = choose_thresholds(evaluator_of(objects, [(40, 40, 3, 0.9)]))
    assert choice.threshold is None
    assert math.isnan(choice.f1) or choice.f1 == 0


def test_thresholds_as_text() -> None:
    assert describe(0.3) == describe({1: 0.3, 2: 0.3}) == "at least 0.3"
    assert describe({1: 0.3, 2: 0.4}) == "at least the threshold of their class"
