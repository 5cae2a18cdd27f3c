"""Input of CocoEvaluator: files, results in parts, invalid results."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from evaluation_scenes import (
    Record,
    as_annotation,
    as_result,
    make_truth,
    measured,
    one_object,
    rle,
    scene,
)

from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator


def test_raises_on_id_rounded_to_a_float() -> None:
    """2^60 + 1 as a float is 2^60, the id of another image."""
    content, result = one_object()
    content["images"] = [{**content["images"][0], "id": 2**60 + n} for n in range(2)]
    content["annotations"][0]["image_id"] = 2**60
    with pytest.raises(BadInput, match=r"no image 1\.15"):
        CocoEvaluator(content).add([{**result, "image_id": float(2**60 + 1)}])


def test_missing_fields_are_completed() -> None:
    ground_truth, results = scene(1)
    expected = measured(ground_truth, results)
    for annotation in ground_truth["annotations"]:
        del annotation["bbox"], annotation["area"]
        if not annotation["iscrowd"]:
            del annotation["iscrowd"]
    assert measured(ground_truth, results) == pytest.approx(expected, nan_ok=True)


def test_polygons_and_run_lengths_are_equivalent() -> None:
    mask = np.zeros((40, 50), dtype=bool)
    mask[10:20, 5:25] = True
    mask[30:35, 5:25] = True
    polygons = [[5, 10, 25, 10, 25, 20, 5, 20], [5, 30, 25, 30, 25, 35, 5, 35]]
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size])))
    annotation = as_annotation(1, 1, 2, mask)
    for segmentation in (polygons, {"size": [40, 50], "counts": runs.tolist()}, rle(mask)):
        content = make_truth([{**annotation, "segmentation": segmentation}], {1: (40, 50)}, [2])
        assert measured(content, [as_result(1, 2, mask, 0.5)])["segm/AP"] == 1


def test_inputs_are_not_changed_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    ground_truth, results = scene(2)
    before = copy.deepcopy((ground_truth, results))
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    evaluator.compute()
    evaluator.per_class()
    assert (ground_truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_results_can_be_added_in_parts() -> None:
    ground_truth, results = scene(2)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results[:5])
    part = evaluator.compute()
    evaluator.add(iter(results[5:]))
    assert evaluator.compute() == pytest.approx(measured(ground_truth, results), nan_ok=True)
    assert part["segm/AR"] < evaluator.compute()["segm/AR"]


def test_reset_removes_earlier_results() -> None:
    ground_truth, results = scene(2)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    whole = evaluator.compute()
    evaluator.reset()
    assert not any(value for value in evaluator.compute().values() if not math.isnan(value))
    evaluator.add(results)
    assert evaluator.compute() == pytest.approx(whole, nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "no image 9"),
        ({"category_id": 9}, "no category 9"),
        ({"score": math.nan}, "score nan"),
        ({"segmentation": {"size": [50, 40], "counts": "0"}}, r"size \[40, 50\]"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "must be an RLE"),
        ({"segmentation": {"size": [40, 50]}}, "must be an RLE"),
        ({"segmentation": {"size": [40, 50], "counts": [2000]}}, "must be an RLE"),
        ({"segmentation": {"size": 40, "counts": "0"}}, r"size \[40, 50\]"),
        ({"segmentation": {"size": [40.0, 50.0], "counts": "0"}}, r"size \[40, 50\]"),
        ({"segmentation": {"size": np.ones((2, 2)), "counts": "0"}}, r"size \[40, 50\]"),
        ({"segmentation": {"size": [40, 50], "counts": "0"}}, "do not add up"),
        ({"segmentation": {"size": [40, 50], "counts": b"\xff0"}}, "damaged"),
        ({"segmentation": {"size": [40, 50], "counts": ""}}, "damaged"),
        ({"image_id": True}, "no image True"),
        ({"image_id": "1"}, "no image '1'"),
        ({"image_id": None}, "no image None"),
        ({"category_id": "2"}, "no category '2'"),
        ({"score": None}, "score None"),
        ({"score": "0.5"}, "score 0.5"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": [1, 2, math.nan, 4]}, "bbox"),
        ({"bbox": [1, 2, "3", 4]}, "bbox"),
    ],
)
def test_raises_on_bad_result_without_adding_any(change: Record, message: str) -> None:
    content, result = one_object()
    evaluator = CocoEvaluator(content)
    with pytest.raises(BadInput, match=message) as caught:
        evaluator.add([result, {**result, **change}])
    assert "\n" not in str(caught.value)
    assert "result 1" in str(caught.value)
    assert evaluator.compute()["segm/AP"] == 0


def test_raises_on_result_that_is_no_mapping() -> None:
    content, result = one_object()
    with pytest.raises(BadInput, match="result 1 is not a mapping"):
        CocoEvaluator(content).add([result, [1, 2]])  # type: ignore[list-item]


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox", "score", "segmentation"])
def test_raises_on_missing_field(key: str) -> None:
    content, result = one_object()
    del result[key]
    with pytest.raises(BadInput, match=f"has no {key}"):
        CocoEvaluator(content).add([result])


def test_file_and_content_are_equivalent(tmp_path: Path) -> None:
    ground_truth, results = scene(0)
    path = tmp_path / "val.json"
    path.write_text(json.dumps(ground_truth))
    evaluator = CocoEvaluator(path)
    evaluator.add(results)
    assert evaluator.compute() == pytest.approx(measured(ground_truth, results), nan_ok=True)


def test_raises_on_bad_arguments() -> None:
    content, _ = one_object()
    with pytest.raises(BadInput, match="no images"):
        CocoEvaluator(content).compute(image_ids=[])
    with pytest.raises(BadInput, match="no image 5"):
        CocoEvaluator(content).compute(image_ids=[1, 5])
    with pytest.raises(BadInput, match="max_detections"):
        CocoEvaluator(content, max_detections=0)
