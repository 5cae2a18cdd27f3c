"""TP / (TP + FP + FN): equal to stardist's figures, on label images and on results with overlapping masks."""

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
    label_image,
    match_labels,
    match_pairs,
    matching_metrics,
)
from embedmask.evaluation.overlap import Crop

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


def painted(case: dict[str, Any], key: str) -> NDArray[np.int32]:
    image = np.zeros(case["size"], dtype=np.int32)
    for label, y1, x1, y2, x2 in case[key]:
        image[y1:y2, x1:x2] = label
    return image


def tally_of(case: dict[str, Any]) -> MatchCounts:
    return match_labels(painted(case, "truth"), painted(case, "found"), STARDIST["thresholds"])


@pytest.mark.parametrize("case", STARDIST["cases"], ids=lambda case: case["name"])
def test_equals_stardist_on_an_image(case: dict[str, Any]) -> None:
    tally = tally_of(case)
    assert tally.hits.tolist() == [row["tp"] for row in case["expected"]]
    assert (tally.num_pred - tally.hits).tolist() == [row["fp"] for row in case["expected"]]
    assert (tally.num_gt - tally.hits).tolist() == [row["fn"] for row in case["expected"]]
    for theirs, ours in NAMES.items():
        assert getattr(tally, ours).tolist() == pytest.approx([row[theirs] for row in case["expected"]])


def test_equals_stardist_pooled() -> None:
    tallies = [tally_of(case) for case in STARDIST["cases"]]
    pooled = sum(tallies[1:], tallies[0])
    for theirs, ours in NAMES.items():
        assert getattr(pooled, ours).tolist() == pytest.approx([row[theirs] for row in STARDIST["pooled"]])


def test_equals_stardist_by_image() -> None:
    tallies = [tally_of(case) for case in STARDIST["cases"]]
    for theirs, ours in NAMES.items():
        mean = np.mean([getattr(tally, ours) for tally in tallies], axis=0)
        assert mean.tolist() == pytest.approx([row[theirs] for row in STARDIST["by_image"]])


def as_dataset(cases: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The label images as ground truth and results, scores falling with the label."""
    sizes = {number: tuple(case["size"]) for number, case in enumerate(cases, start=1)}
    annotations, results = [], []
    for number, case in enumerate(cases, start=1):
        truth, found = painted(case, "truth"), painted(case, "found")
        for label in np.unique(truth[truth > 0]):
            annotations.append(as_annotation(len(annotations) + 1, number, 5, truth == label))
        for label in np.unique(found[found > 0]):
            results.append(as_result(number, 5, found == label, 1 - label / 2000))
    return make_truth(annotations, sizes, [5]), results


def test_an_evaluator_gives_both_averages() -> None:
    truth, results = as_dataset(STARDIST["cases"])
    evaluator = CocoEvaluator(truth)
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


def test_only_the_images_asked_for_count() -> None:
    truth, results = as_dataset(STARDIST["cases"])
    evaluator = CocoEvaluator(truth)
    evaluator.add(results)
    index = next(i for i, case in enumerate(STARDIST["cases"]) if case["name"] == "random 0")
    expected = STARDIST["cases"][index]["expected"][STARDIST["thresholds"].index(0.5)]["accuracy"]
    assert matching_metrics(evaluator, 0.0, [index + 1])["matching/AP50"] == pytest.approx(expected)


def test_score_threshold_leaves_out_what_is_less_sure() -> None:
    mask, wrong = ellipse((40, 40), (20, 12), (8, 8)), ellipse((40, 40), (20, 32), (5, 5))
    evaluator = CocoEvaluator(make_truth([as_annotation(1, 1, 2, mask)], {1: (40, 40)}, [2]))
    evaluator.add([as_result(1, 2, mask, 0.6), as_result(1, 2, wrong, 0.5)])
    assert matching_metrics(evaluator, 0.5)["matching/AP50"] == 0.5
    assert matching_metrics(evaluator, 0.55)["matching/AP50"] == 1
    assert matching_metrics(evaluator, 0.7)["matching/AP50"] == 0


def test_the_higher_score_keeps_the_pixels() -> None:
    """A duplicate loses all its pixels to the surer result, as in a label image: it is no false positive."""
    mask = ellipse((40, 40), (20, 20), (9, 9))
    inner = ellipse((40, 40), (20, 20), (8, 8))
    evaluator = CocoEvaluator(make_truth([as_annotation(1, 1, 2, mask)], {1: (40, 40)}, [2]))
    evaluator.add([as_result(1, 2, inner, 0.6), as_result(1, 2, mask, 0.9)])
    assert matching_metrics(evaluator, 0.3)["matching/AP90"] == 1
    assert matching_metrics(evaluator, 0.3)["matching_pooled/AP90"] == 1


def test_classes_do_not_match_each_other_and_crowds_are_left_out() -> None:
    mask, crowd = ellipse((40, 40), (20, 12), (8, 8)), ellipse((40, 40), (20, 30), (8, 8))
    annotations = [as_annotation(1, 1, 2, mask), as_annotation(2, 1, 3, crowd, crowd=True)]
    evaluator = CocoEvaluator(make_truth(annotations, {1: (40, 40)}, [2, 3]))
    evaluator.add([as_result(1, 3, mask, 0.9)])
    assert matching_metrics(evaluator, 0.3)["matching_pooled/AP50"] == 0
    evaluator.add([as_result(1, 2, mask, 0.9)])
    assert matching_metrics(evaluator, 0.3)["matching_pooled/AP50"] == 0.5  # one hit, one of the other class


def test_first_mask_keeps_the_pixels_of_a_label_image() -> None:
    square = np.ones((2, 2), dtype=bool)
    image = label_image([Crop(square, (0, 0)), Crop(square, (1, 1)), Crop(square[:0], (0, 0))], (3, 4))
    assert image.tolist() == [[1, 1, 0, 0], [1, 1, 2, 0], [0, 2, 2, 0]]


def test_sizes_must_agree() -> None:
    with pytest.raises(BadInput, match="different sizes"):
        match_labels(np.zeros((3, 4), np.int32), np.zeros((4, 3), np.int32))


labels = st.integers(0, 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=60))
def test_counts_add_up_and_fall_with_the_threshold(pixels: list[tuple[int, int]]) -> None:
    truth, found = np.array(pixels, dtype=np.int32).T[:, None]
    tally, swapped = match_labels(truth, found), match_labels(found, truth)
    assert (np.diff(tally.hits) <= 0).all()
    assert tally.hits.max() <= min(tally.num_gt, tally.num_pred)
    assert tally.hits.tolist() == swapped.hits.tolist()
    assert (tally.hit_iou >= tally.hits * np.array(THRESHOLDS) - 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 0.6, 0.7, 0.9]), min_size=12, max_size=12))
def test_overlapping_masks_are_paired_as_well_as_any_pairing(values: list[float]) -> None:
    """Against all pairings of 3 x 4 objects, tried one by one."""
    from itertools import permutations

    ious = np.array(values).reshape(3, 4)
    rows, columns = np.nonzero(ious)
    tally = match_pairs(rows, columns, ious[rows, columns], (3, 4), [0.55])
    options = [
        [ious[r, c] for r, c in enumerate(order) if ious[r, c] >= 0.55] for order in permutations(range(4), 3)
    ]
    best = max((len(option), sum(option)) for option in options)
    assert (tally.hits[0], tally.hit_iou[0]) == (best[0], pytest.approx(best[1]))
