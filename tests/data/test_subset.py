"""Selection of images by a condition on their annotation records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedmask.config import Recipe
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.training.data_module import TrainValDataModule

from .conftest import MakeFolder, annotation

SIZES = {5: (40, 30), 6: (40, 30), 7: (20, 30)}


@pytest.fixture
def folder(make_folder: MakeFolder) -> Path:
    made = make_folder([annotation(1, 5), annotation(2, 6), annotation(3, 6), annotation(4, 7)], SIZES)
    path = made / "train.json"
    content = json.loads(path.read_text())
    for image, kind in zip(content["images"], ("day", "night", "day"), strict=True):
        image["kind"] = kind
    content["images"][1] |= {"number": 3, "checked": True, "note": None}
    path.write_text(json.dumps(content))
    return made


def test_selects_matching_images(folder: Path) -> None:
    day = CocoInstances.open(folder, "train", image_filter="kind=day")
    assert day.image_ids == [5, 7]
    assert [len(day[i][1]) for i in range(2)] == [1, 1]
    assert day.class_names == CocoInstances.open(folder, "train").class_names


@pytest.mark.parametrize("condition", ["number=3", "checked=true", "note=null", "kind=night"])
def test_values_are_compared_as_written(folder: Path, condition: str) -> None:
    night = CocoInstances.open(folder, "train", image_filter=condition)
    assert night.image_ids == [6]
    assert len(night[0][1]) == 2


def test_raises_on_broken_records_of_the_selection(folder: Path) -> None:
    path = folder / "train.json"
    content = json.loads(path.read_text())
    content["images"][0]["id"] = [5]
    content["annotations"][1]["image_id"] = [6]
    path.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="id"):
        CocoInstances.open(folder, "train", image_filter="kind=day")


def test_recipe_trains_and_evaluates_on_the_selection(folder: Path) -> None:
    (folder / "val.json").write_text((folder / "train.json").read_text())
    splits = TrainValDataModule(
        folder, Recipe.from_mapping({"data": {"image_filter": "kind=day"}}, where="test")
    )
    assert splits.train_set.image_ids == splits.val_set.image_ids == [5, 7]


def test_evaluation_uses_the_same_selection(folder: Path) -> None:
    evaluator = CocoEvaluator(CocoInstances.open(folder, "train", image_filter="kind=day").ground_truth)
    assert evaluator.image_ids() == (5, 7)
    assert {key: len(entries) for key, entries in evaluator.ground_truth.records.items()} == {5: 1, 7: 1}


def test_drops_degenerate_objects_of_the_selection(folder: Path) -> None:
    path = folder / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 9, 5, 5]]  # of image 5, a line
    path.write_text(json.dumps(content))
    day = CocoInstances.open(folder, "train", degenerate="drop", image_filter="kind=day")
    assert [len(day.annotations(index)) for index in range(2)] == [0, 1]
    records = CocoEvaluator(day.ground_truth).ground_truth.records
    assert {key: len(own) for key, own in records.items()} == {5: 0, 7: 1}
    assert "1 degenerate" in day.layout


@pytest.mark.parametrize("condition", ["kind=dusk", "kind", "color=day", ""])
def test_raises_on_condition_without_match(folder: Path, condition: str) -> None:
    with pytest.raises(
        BadInput, match=r"image filter .*train\.json.*KEY=VALUE \(keys: .*kind.*\), or no condition"
    ):
        CocoInstances.open(folder, "train", image_filter=condition)
