"""read_ground_truth: checks, completion of missing fields, and equal results from all sources."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_scenes import Record, as_annotation, ellipse, make_truth, one_object
from faster_coco_eval.core import mask as mask_api
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.ground_truth import read_ground_truth


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 9}, "annotation 7 names image 9"),
        ({"category_id": 9}, "annotation 7 of image 1 names category 9"),
        ({"segmentation": [[1, 2, 3, 4]]}, "annotation 7 of image 1 .* has a polygon with 2 points"),
        ({"segmentation": {"size": [4, 5], "counts": [20]}}, "annotation 7 of image 1 .* has a mask of size"),
        ({"segmentation": None}, "annotation 7 of image 1 .* has no segmentation"),
    ],
)
def test_raises_on_bad_annotation(change: Record, message: str) -> None:
    content, _ = one_object()
    content["annotations"][0] |= change
    with pytest.raises(BadInput, match=message) as caught:
        CocoEvaluator(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ("[]", "has no list 'images'"), ('{"images": []}', "has no list 'annotations'")],
)
def test_raises_on_bad_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "val.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=f"val.json.*{message}"):
        CocoEvaluator(path)
    with pytest.raises(BadInput, match=r"other\.json: no such annotation file"):
        CocoEvaluator(tmp_path / "other.json")


def test_file_content_and_data_set_are_equivalent(tmp_path: Path) -> None:
    """A file, its content and the data set give the same ground truth, even with doubtful annotations."""
    mask = ellipse((40, 50), (20, 20), (10, 12))
    polygon = [5.1, 3.7, 30.3, 4.9, 28.7, 33.3]
    entries = [
        {**as_annotation(9, 4, 2, mask), "iscrowd": None, "area": "377"},
        {**as_annotation(9, 4, 2, mask, crowd=True), "iscrowd": True, "bbox": None},
        {"id": None, "image_id": 4.0, "category_id": 2, "segmentation": [polygon], "bbox": [5, 3, 31, 34]},
    ]
    content = make_truth(entries, {4: (40, 50), 1: (10, 10)}, [2])
    (tmp_path / "val.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for number, (height, width) in {4: (40, 50), 1: (10, 10)}.items():
        Image.new("RGB", (width, height)).save(tmp_path / f"images/{number}.png")
    before = copy.deepcopy(content)
    dataset = CocoInstances.open(tmp_path, "val")
    ground_truths = [
        read_ground_truth(source) for source in (content, tmp_path / "val.json", dataset.ground_truth)
    ]
    assert content == before
    assert ground_truths[0].records == ground_truths[1].records == ground_truths[2].records
    assert [list(ground_truth.sizes) for ground_truth in ground_truths] == [[1, 4]] * 3
    first, crowd, last = ground_truths[0].records[4]
    assert (first["area"], first["iscrowd"], crowd["iscrowd"]) == (mask.sum(), 0, 1)
    assert crowd["bbox"] == first["bbox"] == entries[0]["bbox"]
    assert last["bbox"] == [float(v) for v in mask_api.toBbox(last["segmentation"])]
    lines = [line.replace(str(tmp_path / "val.json"), "annotations") for line in ground_truths[1].warnings]
    assert lines == ground_truths[0].warnings
    assert [
        line.replace(str(tmp_path / "val.json"), "annotations") for line in dataset.warning_lines()
    ] == lines
    assert len(lines) == 4


def test_names_of_images_and_classes_are_optional() -> None:
    content, result = one_object()
    del content["images"][0]["file_name"], content["categories"][0]["name"]
    evaluator = CocoEvaluator(content)
    evaluator.add([result])
    assert evaluator.compute()["segm/AP"] == 1
    assert evaluator.class_names == ["2"]


def test_accepts_numpy_numbers() -> None:
    content, result = one_object()
    expected = read_ground_truth(content).records
    entry = content["annotations"][0]
    entry |= {"bbox": np.array(entry["bbox"]), "area": np.float32(entry["area"]), "image_id": np.int64(1)}
    entry |= {"iscrowd": np.int64(0), "category_id": np.int32(2)}
    ground_truth = read_ground_truth(content)
    assert (ground_truth.records, ground_truth.warnings) == (expected, [])
    evaluator = CocoEvaluator(content)
    box = np.array(result["bbox"], dtype=np.float32)
    evaluator.add([{**result, "image_id": np.int64(1), "bbox": box, "score": np.float32(0.5)}])
    assert evaluator.compute()["bbox/AP"] == 1
