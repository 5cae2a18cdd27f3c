"""Matching metrics: equality with stardist, on label images and on results with overlapping masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_scenes import as_annotation, as_result, ellipse, make_truth
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import (
    THRESHOLDS,
    MatchCounts,
    match_labels,
    match_pairs,
    matching_metrics,
)

STARDIST: dict[str, Any] = json.loads(
    (Path(__file__).parent / "matching_stardist.json").read_text(encoding="utf-8")
)
NAMES = {
    "accuracy": "ap",
    "precision": "precision",
    "recall": "recall",
    "f1": "f1",
    "panoptic_quality": "panoptic_quality",
}


def labels_of(case: dict[str, Any], key: str) -> NDArray[np.int32]:
    image = np.zeros(case["size"], dtype=np.int32)
    for label, y1, x1, y2, x2 in case[key]:
        image[y1:y2, x1:x2] = label
    return image


def counts_of(case: dict[str, Any]) -> MatchCounts:
    return match_labels(labels_of(case, "truth"), labels_of(case, "found"), STARDIST["thresholds"])


@pytest.mark.parametrize("case", STARDIST["cases"], ids=lambda case: case["name"])
def test_equals_stardist_on_an_image(case: dict[str, Any]) -> None:
    counts = counts_of(case)
    assert counts.hits.tolist() == [row["tp"] for row in case["expected"]]
    assert (counts.num_pred - counts.hits).tolist() == [row["fp"] for row in case["expected"]]
    assert (counts.num_gt - counts.hits).tolist() == [row["fn"] for row in case["expected"]]
    for key, name in NAMES.items():
        assert getattr(counts, name).tolist() == pytest.approx([row[key] for row in case["expected"]])


def test_equals_stardist_pooled() -> None:
    all_counts = [counts_of(case) for case in STARDIST["cases"]]
    pooled = sum(all_counts[1:], all_counts[0])
    for key, name in NAMES.items():
        assert getattr(pooled, name).tolist() == pytest.approx([row[key] for row in STARDIST["pooled"]])


def test_equals_stardist_by_image() -> None:
    all_counts = [counts_of(case) for case in STARDIST["cases"]]
    for key, name in NAMES.items():
        mean = np.mean([getattr(counts, name) for counts in all_counts], axis=0)
        assert mean.tolist() == pytest.approx([row[key] for row in STARDIST["by_image"]])


def as_dataset(cases: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the label images as ground truth and results, with scores that fall with the label."""
    sizes = {number: tuple(case["size"]) for number, case in enumerate(cases, start=1)}
    annotations, results = [], []
    for number, case in enumerate(cases, start=1):
        ground_truth, found = labels_of(case, "truth"), labels_of(case, "found")
        for label in np.unique(ground_truth[ground_truth > 0]):
            annotations.append(as_annotation(len(annotations) + 1, number, 5, ground_truth == label))
        for label in np.unique(found[found > 0]):
            results.append(as_result(number, 5, found == label, 1 - label / 2000))
    return make_truth(annotations, sizes, [5]), results


def test_metrics_of_an_evaluator_equal_stardist() -> None:
    ground_truth, results = as_dataset(STARDIST["cases"])
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    found = matching_metrics(evaluator, score_threshold=0.3)
    at = {threshold: STARDIST["thresholds"].index(threshold) for threshold in THRESHOLDS}
    for prefix, rows in (("matching", STARDIST["by_image"]), ("matching_pooled", STARDIST["pooled"])):
        expected = {f"AP{round(100 * t)}": rows[at[t]]["accuracy"] for t in THRESHOLDS}
        expected["mAP"] = np.mean(list(expected.values()))
        half = rows[at[0.5]]
        expected |= {"precision50": half["precision"], "recall50": half["recall"], "F1_50": half["f1"]}
        expected["PQ50"] = half["panoptic_quality"]
        assert {name.split("/")[1] for name in found if name.startswith(f"{prefix}/")} == set(expected)
        for name, value in expected.items():
            assert found[f"{prefix}/{name}"] == pytest.approx(value), (prefix, name)


def test_subset_of_images() -> None:
    ground_truth, results = as_dataset(STARDIST["cases"])
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    index = next(i for i, case in enumerate(STARDIST["cases"]) if case["name"] == "random 0")
    expected = STARDIST["cases"][index]["expected"][STARDIST["thresholds"].index(0.5)]["accuracy"]
    assert matching_metrics(evaluator, 0.0, [index + 1])["matching/AP50"] == pytest.approx(expected)


def test_score_threshold_drops_lower_scores() -> None:
    mask, wrong = ellipse((40, 40), (20, 12), (8, 8)), ellipse((40, 40), (20, 32), (5, 5))
    evaluator = CocoEvaluator(make_truth([as_annotation(1, 1, 2, mask)], {1: (40, 40)}, [2]))
    evaluator.add([as_result(1, 2, mask, 0.6), as_result(1, 2, wrong, 0.5)])
    assert matching_metrics(evaluator, 0.5)["matching/AP50"] == 0.5
    assert matching_metrics(evaluator, 0.55)["matching/AP50"] == 1
    assert matching_metrics(evaluator, 0.7)["matching/AP50"] == 0


def test_the_higher_score_keeps_the_pixels() -> None:
    """A duplicate loses all its pixels to the higher score, as in a label image, and is no false positive."""
    mask = ellipse((40, 40), (20, 20), (9, 9))
    inner = ellipse((40, 40), (20, 20), (8, 8))
    evaluator = CocoEvaluator(make_truth([as_annotation(1, 1, 2, mask)], {1: (40, 40)}, [2]))
    evaluator.add([as_result(1, 2, inner, 0.6), as_result(1, 2, mask, 0.9)])
    assert matching_metrics(evaluator, 0.3)["matching/AP90"] == 1
    assert matching_metrics(evaluator, 0.3)["matching_pooled/AP90"] == 1


def test_classes_are_matched_separately_and_crowds_ignored() -> None:
    mask, crowd = ellipse((40, 40), (20, 12), (8, 8)), ellipse((40, 40), (20, 30), (8, 8))
    annotations = [as_annotation(1, 1, 2, mask), as_annotation(2, 1, 3, crowd, crowd=True)]
    evaluator = CocoEvaluator(make_truth(annotations, {1: (40, 40)}, [2, 3]))
    evaluator.add([as_result(1, 3, mask, 0.9)])
    assert matching_metrics(evaluator, 0.3)["matching_pooled/AP50"] == 0
    evaluator.add([as_result(1, 2, mask, 0.9)])
    assert matching_metrics(evaluator, 0.3)["matching_pooled/AP50"] == 0.5  # one hit, one of the other class


def test_raises_on_different_sizes() -> None:
    with pytest.raises(BadInput, match="different sizes"):
        match_labels(np.zeros((3, 4), np.int32), np.zeros((4, 3), np.int32))


labels = st.integers(0, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=60))
def test_counts_add_up_and_fall_with_the_threshold(pixels: list[tuple[int, int]]) -> None:
    ground_truth, found = np.array(pixels, dtype=np.int32).T[:, None]
    counts, swapped = match_labels(ground_truth, found), match_labels(found, ground_truth)
    assert (np.diff(counts.hits) <= 0).all()
    assert counts.hits.max() <= min(counts.num_gt, counts.num_pred)
    assert counts.hits.tolist() == swapped.hits.tolist()
    assert (counts.hit_iou >= counts.hits * np.array(THRESHOLDS) - 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 0.6, 0.7, 0.9]), min_size=12, max_size=12))
def test_assignment_of_overlapping_masks_is_optimal(values: list[float]) -> None:
    """Compare with the best of all pairings of 3 x 4 objects."""
    from itertools import permutations

    ious = np.array(values).reshape(3, 4)
    rows, columns = np.nonzero(ious)
    counts = match_pairs(rows, columns, ious[rows, columns], (3, 4), [0.55])
    options = [
        [ious[r, c] for r, c in enumerate(order) if ious[r, c] >= 0.55] for order in permutations(range(4), 3)
    ]
    best = max((len(option), sum(option)) for option in options)
    assert (counts.hits[0], counts.hit_iou[0]) == (best[0], pytest.approx(best[1]))


def test_results_in_a_crowd_do_not_count() -> None:
    """As in COCO's AP; a result that matches an object counts, even inside a crowd, and so does another class."""
    mask, crowd = ellipse((40, 80), (20, 12), (8, 8)), np.zeros((40, 80), dtype=bool)
    crowd[:, 30:] = True
    inside, half_outside = ellipse((40, 80), (20, 60), (5, 5)), ellipse((40, 80), (20, 27), (4, 4))
    annotations = [as_annotation(1, 1, 2, mask), as_annotation(2, 1, 2, crowd, crowd=True)]
    evaluator = CocoEvaluator(make_truth(annotations, {1: (40, 80)}, [2, 3]))
    evaluator.add([as_result(1, 2, mask, 0.9), as_result(1, 2, inside, 0.8)])
    assert matching_metrics(evaluator, 0.3)["matching/AP50"] == 1
    evaluator.add([as_result(1, 2, half_outside, 0.7)])
    assert matching_metrics(evaluator, 0.3)["matching/AP50"] == 0.5
    evaluator.add([as_result(1, 3, inside, 0.8)])
    assert matching_metrics(evaluator, 0.3)["matching/AP50"] == pytest.approx(1 / 3)
