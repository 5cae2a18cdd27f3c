"""Part of a data set, by what the annotation file says of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator

from .conftest import MakeFolder, annotation

SIZES = {5: (40, 30), 6: (40, 30), 7: (20, 30)}


@pytest.fixture
def folder(make_folder: MakeFolder) -> Path:
    made = make_folder([annotation(1, 5), annotation(2, 6), annotation(3, 6), annotation(4, 7)], SIZES)
    path = made / "train.json"
    content = json.loads(path.read_text())
    for image, kind in zip(content["images"], ("day", "night", "day"), strict=True):
        image["kind"] = kind
    content["images"][1]["number"] = 3
    path.write_text(json.dumps(content))
    return made


def test_only_the_pictures_that_are_so(folder: Path) -> None:
    day = CocoInstances.open(folder, "train", where="kind=day")
    assert day.image_ids == [5, 7]
    assert [len(day[i][1]) for i in range(2)] == [1, 1]
    assert day.class_names == CocoInstances.open(folder, "train").class_names
    night = CocoInstances.open(folder, "train", where="number=3")  # numbers are compared as they are written
    assert night.image_ids == [6]
    assert len(night[0][1]) == 2


def test_the_ground_truth_of_an_evaluation_is_the_same_part(folder: Path) -> None:
    evaluator = CocoEvaluator(CocoInstances.open(folder, "train", where="kind=day").ground_truth)
    assert evaluator.image_ids() == (5, 7)
    assert [len(entries) for entries in evaluator.truths_by_image([5, 7]).values()] == [1, 1]


def test_degenerate_objects_of_the_part_are_left_out(folder: Path) -> None:
    path = folder / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 9, 5, 5]]  # of picture 5, a line
    path.write_text(json.dumps(content))
    day = CocoInstances.open(folder, "train", degenerate="drop", where="kind=day")
    truth = day.ground_truth
    assert isinstance(truth, dict)
    assert [entry["id"] for entry in truth["annotations"]] == [4]
    assert "1 degenerate" in day.layout


@pytest.mark.parametrize("condition", ["kind=dusk", "kind", "colour=day", ""])
def test_no_such_picture_is_refused(folder: Path, condition: str) -> None:
    with pytest.raises(BadInput, match=r"where .*train\.json.*KEY=VALUE \(keys: .*kind.*\), or no condition"):
        CocoInstances.open(folder, "train", where=condition)
