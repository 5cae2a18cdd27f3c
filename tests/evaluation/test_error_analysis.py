"""Error types: classification of constructed errors, and the AP that each one costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_scenes import Mask, Record, as_annotation, as_result, make_truth, scene

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.error_analysis import ERROR_TYPES, ImageErrors, ap50, classify_errors, count_errors

SIZE = (60, 200)


def square(left: int, width: int = 20) -> Mask:
    mask = np.zeros(SIZE, dtype=bool)
    mask[10:30, left : left + width] = True
    return mask


def classified(
    annotations: list[Record], results: list[Record], threshold: float = 0.0, max_detections: int = 100
) -> list[ImageErrors]:
    evaluator = CocoEvaluator(make_truth(annotations, {1: SIZE}, [2, 3]), max_detections)
    evaluator.add(results)
    return classify_errors(evaluator, threshold)


OBJECT = as_annotation(1, 1, 2, square(10))


@pytest.mark.parametrize(
    ("result", "outcome", "target"),
    [
        ((2, square(10)), "correct", 1),
        ((2, square(15)), "correct", 1),  # IoU 0.6
        ((2, square(20)), "localization", 1),  # 1/3
        ((2, square(29)), "background", None),  # 1/39
        ((3, square(10)), "classification", 1),
        ((3, square(20)), "both", None),
        ((3, square(100)), "background", None),
    ],
)
def test_each_error_type(result: tuple[int, Mask], outcome: str, target: int | None) -> None:
    (image,) = classified([OBJECT], [as_result(1, *result, 0.9)])
    (prediction,) = image.predictions
    assert (prediction.outcome, prediction.target) == (outcome, target)
    assert bool(image.missed()) == (target is None)


def test_category_ids_of_any_size() -> None:
    ground_truth = make_truth([{**OBJECT, "category_id": 2**64 + 1}], {1: SIZE}, [2**64 + 1, 2**64])
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add([as_result(1, 2**64, square(10), 0.9), as_result(1, 2**64 + 1, square(10), 0.8)])
    (image,) = classify_errors(evaluator, 0.0)
    assert [prediction.outcome for prediction in image.predictions] == ["classification", "correct"]


def test_lower_scoring_match_is_a_duplicate() -> None:
    (image,) = classified([OBJECT], [as_result(1, 2, square(10), 0.5), as_result(1, 2, square(12), 0.9)])
    assert [(p.score, p.outcome) for p in image.predictions] == [(0.9, "correct"), (0.5, "duplicate")]


def test_results_in_a_crowd_are_ignored() -> None:
    crowd = as_annotation(2, 1, 2, square(60, 80), crowd=True)
    (image,) = classified(
        [OBJECT, crowd], [as_result(1, 2, square(70), 0.9), as_result(1, 3, square(70), 0.9)]
    )
    assert [prediction.outcome for prediction in image.predictions] == ["ignored", "background"]
    assert [ground_truth["id"] for ground_truth in image.missed()] == [1]
    assert image.num_decided == 1
    (perfect,) = classified(
        [OBJECT, crowd],
        [as_result(1, 2, square(10), 0.9), *(as_result(1, 2, square(70), 0.9 - k / 10) for k in range(3))],
    )
    assert (perfect.quality, perfect.num_decided) == (1, 1)


def test_counts_only_decided_results() -> None:
    results = [
        as_result(1, 2, square(10), 0.9),
        as_result(1, 2, square(100), 0.4),
        as_result(1, 2, square(11), 0.2),
    ]
    images = classified([OBJECT], results)
    assert count_errors(images, 0.3) == dict.fromkeys(ERROR_TYPES, 0) | {"background": 1}
    assert count_errors(images, 0.0)["duplicate"] == 1
    assert count_errors(images, 0.95) == dict.fromkeys(ERROR_TYPES, 0) | {"missed": 1}


def test_classifies_only_results_within_max_detections() -> None:
    results = [as_result(1, 2, square(100), 0.9), as_result(1, 2, square(10), 0.5)]
    (image,) = classified([OBJECT], results, max_detections=1)
    assert [prediction.outcome for prediction in image.predictions] == ["background"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_detections", [2, 100])
def test_ap50_without_correction_equals_mask_ap50(seed: int, max_detections: int) -> None:
    ground_truth, results = scene(seed)
    evaluator = CocoEvaluator(ground_truth, max_detections)
    evaluator.add(results)
    assert ap50(classify_errors(evaluator, 0.3)) == pytest.approx(evaluator.compute()["segm/AP50"], abs=1e-12)


@pytest.mark.parametrize("error", ERROR_TYPES)
def test_correction_never_lowers_ap50(error: str) -> None:
    ground_truth, results = scene(3)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    images = classify_errors(evaluator, 0.3)
    assert ap50(images, error) >= ap50(images) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        ("classification", (3, square(100))),
        ("localization", (2, square(110))),
        ("duplicate", (2, square(12))),
        ("background", (2, square(70))),
        ("both", (3, square(110))),
    ],
)
def test_correction_restores_ap50(error: str, result: tuple[int, Mask]) -> None:
    objects = [OBJECT, as_annotation(2, 1, 2, square(100)), as_annotation(3, 1, 3, square(170))]
    correct = [(2, square(10), 0.9), (2, square(100), 0.5), (3, square(170), 0.4)]
    results = [as_result(1, *values) for values in correct]
    assert ap50(classified(objects, results)) == 1
    images = classified(objects, [*results, as_result(1, *result, 0.7)])
    assert [error == other for other in ERROR_TYPES] == [
        count > 0 for count in count_errors(images, 0).values()
    ]
    assert ap50(images) < 1
    assert [other for other in ERROR_TYPES if ap50(images, other) == 1] == [error]


def test_correcting_missed_objects_restores_recall() -> None:
    second = as_annotation(2, 1, 2, square(100))
    images = classified([OBJECT, second], [as_result(1, 2, square(10), 0.9)])
    assert (ap50(images, "missed"), ap50(images)) == (1, pytest.approx(51 / 101))


def test_an_object_is_matched_once_by_correction() -> None:
    results = [as_result(1, 3, square(10), 0.9), as_result(1, 3, square(11), 0.8)]
    assert ap50(classified([OBJECT], results), "classification") == 1
    results.append(as_result(1, 2, square(10), 0.1))
    assert ap50(classified([OBJECT], results), "classification") == 1  # matched already: both are removed


def test_quality_of_decided_results() -> None:
    results = [as_result(1, 2, square(10), 0.9), as_result(1, 3, square(100), 0.4)]
    assert classified([OBJECT], results, 0.5)[0].quality == 1
    assert classified([OBJECT], results, 0.3)[0].quality == 0.5
    assert classified([OBJECT], results, 0.95)[0].quality == 0
    assert math.isnan(classified([], results, 0.95)[0].quality)


def test_no_objects_and_no_results() -> None:
    images = classified([], [])
    assert math.isnan(ap50(images))
    assert count_errors(images, 0.3) == dict.fromkeys(ERROR_TYPES, 0)
    assert ap50(classified([OBJECT], [])) == 0
