"""Values of annotation records are compared with the masks or taken from them, and every correction is reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedmask.data.check import check_folder
from embedmask.data.coco import CocoInstances
from embedmask.data.problems import Problem, warning_lines
from embedmask.data.records import as_id
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator

from .conftest import MakeFolder, annotation, polygon, run_lengths
from .folders import SCENES, change_json, write_plain, write_yolo

BIG = 2**60


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the ground truth of an evaluation, for all images."""
    gt = CocoEvaluator(CocoInstances.open(folder, "train").ground_truth).ground_truth
    return [record for own in gt.records.values() for record in own]


def warnings_of(folder: Path) -> list[tuple[str, str]]:
    """Return type and message of each warning of the train split; `data check` must report the same."""
    dataset = CocoInstances.open(folder, "train")
    reported = [problem for problem in check_folder(folder, quick=True).problems if not problem.fatal]
    for problem in dataset.warnings:
        assert problem in reported
    return [(problem.kind, problem.message) for problem in dataset.warnings]


# --- iscrowd --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, None, False, 0.0, "0"])
def test_accepts_values_that_mean_no_crowd(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(iscrowd=value)])
    assert len(CocoInstances.open(folder, "train")[0][1]) == 1
    assert records(folder)[0]["iscrowd"] == 0
    assert warnings_of(folder) == []


@pytest.mark.parametrize("value", [1, True, 1.0, "1"])
def test_crowds_are_not_learned_but_reported(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(1), annotation(12, iscrowd=value, segmentation=[polygon(20, 20, 5, 5)])])
    dataset = CocoInstances.open(folder, "train")
    assert len(dataset[0][1]) == 1
    assert len(dataset.annotations(0)) == 1
    assert [record["iscrowd"] for record in records(folder)] == [0, 1]
    message = dict(warnings_of(folder))["crowd"]
    assert "train.json: 1 of 2 annotations (id 12) are crowds" in message
    assert "CVAT" in message
    assert "set its iscrowd to 0" in message


@pytest.mark.parametrize("value", [2, -1, "no", "true", [], {}, [1], 0.5, math.nan])
def test_raises_on_invalid_iscrowd(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(3, iscrowd=value)])
    with pytest.raises(BadInput, match=r"train\.json: annotation 3 of image 5 has iscrowd .*; write 0 or 1"):
        CocoInstances.open(folder, "train")


@pytest.mark.parametrize("segmentation", [None, [], [[1, 2, 3, 4]], {"size": [4, 5], "counts": [20]}])
def test_drops_and_reports_crowd_without_valid_mask(make_folder: MakeFolder, segmentation: Any) -> None:
    folder = make_folder([annotation(1), annotation(2, iscrowd=1, segmentation=segmentation)])
    assert len(records(folder)) == 1
    [(_, message)] = warnings_of(folder)
    assert "annotation 2 of image 5" in message
    assert message.endswith("this crowd is left out")


# --- area -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "80", 0, -80, math.nan, math.inf, True, [80], 10**400])
def test_replaces_and_reports_unusable_area(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(1, area=value), annotation(2, category_id=90)])
    assert [record["area"] for record in records(folder)] == [80, 80]
    [(kind, message)] = warnings_of(folder)
    assert kind == "bad area"
    assert "1 of 2 annotations (id 1) have an 'area' that is not a number above 0" in message


@pytest.mark.parametrize("value", [1, 800, 0.065, 1e12])
def test_replaces_and_reports_area_that_contradicts_mask(make_folder: MakeFolder, value: float) -> None:
    folder = make_folder([annotation(1, area=value)])
    assert records(folder)[0]["area"] == 80
    [(kind, message)] = warnings_of(folder)
    assert kind == "bad area"
    assert "(id 1) have an 'area' that does not match their masks" in message


@pytest.mark.parametrize("value", [80, 80.0, 77.25, 99])
def test_uses_area_that_matches_mask(make_folder: MakeFolder, value: float) -> None:
    folder = make_folder([annotation(1, area=value)])
    assert records(folder)[0]["area"] == value
    assert warnings_of(folder) == []


def test_missing_area_is_not_reported(make_folder: MakeFolder) -> None:
    entry = annotation(1)
    del entry["area"]
    folder = make_folder([entry])
    assert records(folder)[0]["area"] == 80
    assert warnings_of(folder) == []


def test_self_crossing_outline_is_measured_in_pixels(make_folder: MakeFolder) -> None:
    bow_tie = [[4, 6, 14, 16, 14, 6, 4, 16]]  # 50 px by its two triangles, 0 by the shoelace formula
    pixels = records(make_folder([annotation(1, segmentation=bow_tie, area=None, bbox=[4, 6, 10, 10])]))[0][
        "area"
    ]
    assert 40 < pixels < 60
    folder = make_folder([annotation(1, segmentation=bow_tie, area=50, bbox=[4, 6, 10, 10])])
    assert warnings_of(folder) == []
    assert records(folder)[0]["area"] == 50
    assert check_folder(folder, quick=True).splits["train"].counts["disc"] == (1, 0, 0)


def test_report_uses_the_object_sizes_of_ap(make_folder: MakeFolder) -> None:
    square = {"segmentation": [polygon(0, 0, 40, 40)], "bbox": [0, 0, 40, 40]}
    folder = make_folder([annotation(1, **square, area=None)], {5: (50, 50)})
    assert check_folder(folder, quick=True).splits["train"].counts["disc"] == (0, 1, 0)


# --- bbox -----------------------------------------------------------------------------------------

UNUSABLE = [None, [], [4, 6, 10], ["4", "6", "10", "8"], "4 6 10 8", [4, 6, 0, 8], [4, 6, 10, -8], {"x": 4}]


@pytest.mark.parametrize("value", [*UNUSABLE, [4, math.nan, 10, 8], [4, 6, math.inf, 8], [True, 6, 10, 8]])
def test_replaces_and_reports_unusable_box(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(1, bbox=value)])
    assert records(folder)[0]["bbox"] == [4, 6, 10, 8]
    [(kind, message)] = warnings_of(folder)
    assert kind == "bad box"
    assert "1 of 1 annotations (id 1) have a 'bbox' that is not [x, y, width, height]" in message


def test_recognizes_boxes_of_two_corners(make_folder: MakeFolder) -> None:
    objects = [annotation(n, bbox=[4, 6, 14, 14], image_id=n) for n in range(5)]
    folder = make_folder(objects, dict.fromkeys(range(5), (40, 30)))
    assert [record["bbox"] for record in records(folder)] == [[4, 6, 10, 8]] * 5
    [(kind, message)] = warnings_of(folder)
    assert kind == "bad box"
    assert "5 of 5 annotations (ids 0, 1, 2, ...) have a 'bbox' of two corners" in message


@pytest.mark.parametrize("value", [[9, 10, 10, 8], [0.13, 0.15, 0.33, 0.2], [30, 6, 5, 5], [6, 4, 80, 100]])
def test_replaces_and_reports_box_that_does_not_match_mask(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(1, bbox=value)])
    assert records(folder)[0]["bbox"] == [4, 6, 10, 8]
    [(kind, message)] = warnings_of(folder)
    assert kind == "bad box"
    assert "(id 1) have a 'bbox' that does not match their masks" in message


@pytest.mark.parametrize("value", [[4, 6, 10, 8], [3.37, 5.9, 10.71, 9.04], [2, 4, 14, 11]])
def test_uses_matching_box_exactly(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation(1, bbox=value)])
    assert records(folder)[0]["bbox"] == value
    assert warnings_of(folder) == []


def test_accepts_clipped_box_of_polygon_that_leaves_the_image(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(1, segmentation=[polygon(-20, 6, 30, 8)], bbox=[0, 6, 10, 8], area=80)])
    assert warnings_of(folder) == []


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), (-5, -5), (2**63 + 1, 2**63 + 1), (12.0, 12), (np.int64(7), 7), (-0.0, 0)]
    + [(value, None) for value in (True, None, "5", 2.5, 2.0**60, math.nan, math.inf, [5], {})],
)
def test_as_id(value: Any, expected: int | None) -> None:
    assert as_id(value) == expected


@pytest.mark.parametrize("shift", [0, -100, 2**53, BIG, 2**64])
def test_ids_of_any_size(tmp_path: Path, shift: int) -> None:
    write_plain(tmp_path)

    def change(content: dict[str, Any]) -> None:
        for entry in (*content["images"], *content["annotations"], *content["categories"]):
            entry["id"] += shift
            for key in {"image_id", "category_id"} & entry.keys():
                entry[key] += shift

    for split in SCENES:
        change_json(tmp_path / f"{split}.json", change)
    dataset = CocoInstances.open(tmp_path, "val")
    assert dataset.image_ids == [10 + shift, 11 + shift]
    assert dataset[0][1].image_id == 10 + shift
    assert not check_folder(tmp_path, quick=True).problems
    evaluator = CocoEvaluator(dataset.ground_truth)
    gt_records = [record for own in evaluator.ground_truth.records.values() for record in own]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [{**{key: record[key] for key in keys}, "score": 0.5} for record in gt_records]
    evaluator.add(results)
    assert evaluator.compute()["segm/AP"] == 1
    assert evaluator.results == results
    evaluator.reset()
    other = {10 + shift: 11 + shift, 11 + shift: 10 + shift}
    evaluator.add([{**result, "image_id": other[result["image_id"]]} for result in results])
    assert evaluator.compute()["segm/AP"] == 0


@pytest.mark.parametrize("value", ["5", "five", True, 5.5, 2.0**60, None])
def test_raises_on_ids_that_are_not_integers(make_folder: MakeFolder, value: Any) -> None:
    folder = make_folder([annotation()])
    for key, message in (("images", "image 0 of the list"), ("categories", "category 0 of the list")):
        content = json.loads((folder / "train.json").read_text())
        content[key][0]["id"] = value
        path = folder / f"{key}.json"
        path.write_text(json.dumps(content))
        with pytest.raises(BadInput, match=rf"{key}\.json: {message} needs a whole number 'id'"):
            CocoEvaluator(path)
        path.rename(folder / "train.json")
        with pytest.raises(BadInput, match=rf"train\.json: {message} needs a whole number 'id'"):
            CocoInstances.open(folder, "train")
        make_folder([annotation()])


def test_accepts_integers_written_as_floats(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(1, image_id=5.0, category_id=7.0)])
    change_json(folder / "train.json", lambda c: c["images"][0].update(id=5.0, height=40.0, width=30.0))
    dataset = CocoInstances.open(folder, "train")
    assert (dataset.image_ids, dataset.sizes) == ([5], [(40, 30)])
    assert type(dataset.image_ids[0]) is int
    assert len(dataset[0][1]) == 1


def test_annotation_ids_are_optional(make_folder: MakeFolder) -> None:
    places = [polygon(x, 1, 4, 4) for x in range(0, 24, 6)]
    folder = make_folder(
        [
            annotation(number, segmentation=[place], bbox=None, area=16)
            for number, place in zip((0, 0, "a", None), places, strict=True)  # type: ignore[arg-type]
        ]
    )
    assert len(CocoInstances.open(folder, "train")[0][1]) == 4
    assert [record["id"] for record in records(folder)] == [1, 2, 3, 4]
    kinds = dict(warnings_of(folder))
    assert "1 of 4 annotations (id 0) have the id of another" in kinds["duplicate id"]
    assert "4 of 4 annotations (ids 0, 0, a, ...)" in kinds["bad box"]


# --- repeated objects ----------------------------------------------------------------------------------------


def test_reports_repeated_objects_without_dropping_them(make_folder: MakeFolder) -> None:
    near = polygon(4.2, 6.1, 9.9, 7.9)
    folder = make_folder(
        [
            annotation(1),
            annotation(2, category_id=90),  # another class
            annotation(3, image_id=6),  # another image
            annotation(4, segmentation=[near], bbox=[4.2, 6.1, 9.9, 7.9]),
            annotation(5, segmentation=[polygon(6, 6, 10, 8)], bbox=[6, 6, 10, 8]),  # moved
            annotation(6, segmentation=[[*polygon(4, 6, 10, 8)[2:], 4, 6]]),  # begins at another corner
        ],
        {5: (40, 30), 6: (40, 30)},
    )
    [(kind, message)] = warnings_of(folder)
    assert kind == "object twice"
    assert "2 of 6 annotations (ids 4 like 6, 6 like 1) repeat an object" in message
    assert len(CocoInstances.open(folder, "train")[0][1]) == 5
    assert len(records(folder)) == 6


def test_counts_each_copy_once(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(number) for number in range(30)])
    [(_, message)] = warnings_of(folder)
    assert "29 of 30 annotations (ids 1 like 0, 2 like 1, 3 like 2, ...)" in message


def test_run_lengths_can_repeat_a_polygon(make_folder: MakeFolder) -> None:
    mask = np.zeros((40, 30), dtype=bool)
    mask[6:26, 4:24] = True
    square = annotation(1, segmentation=[polygon(4, 6, 20, 20)], bbox=[4, 6, 20, 20], area=400)
    folder = make_folder([square, {**square, "id": 2, "segmentation": run_lengths(mask)}])
    assert [kind for kind, _ in warnings_of(folder)] == ["object twice"]


def test_different_masks_with_equal_boxes_are_not_repeated(make_folder: MakeFolder) -> None:
    up = [2, 30, 4, 30, 24, 2, 22, 2]
    down = [2, 2, 4, 2, 24, 30, 22, 30]
    folder = make_folder(
        [annotation(n, segmentation=[p], bbox=None, area=56) for n, p in enumerate((up, down))]
    )
    assert [kind for kind, _ in warnings_of(folder)] == ["bad box"]


def test_repeated_yolo_lines_are_reported_by_file_and_line(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    file = tmp_path / "labels/train/a.txt"
    file.write_text(file.read_text() * 2)
    [message] = [problem.message for problem in CocoInstances.open(tmp_path, "train").warnings]
    assert "2 of 4 annotations (" in message
    assert "a.txt: line 3 like " in message
    assert "object twice" in [problem.kind for problem in check_folder(tmp_path, quick=True).problems]


def test_reports_categories_with_the_same_name(make_folder: MakeFolder) -> None:
    names = [{"id": 7, "name": "disc"}, {"id": 90, "name": "disc"}, {"id": 3, "name": "star"}]
    folder = make_folder([annotation(1)], categories=names)
    [(kind, message)] = warnings_of(folder)
    assert kind == "same class name"
    assert "categories 7 and 90 have the same name 'disc'" in message
    evaluator = CocoEvaluator(CocoInstances.open(folder, "train").ground_truth)
    assert evaluator.class_names == ["star", "disc (category 7)", "disc (category 90)"]
    assert len(evaluator.per_class()) == 3
    counts = check_folder(folder, quick=True).splits["train"].counts
    assert counts == {"star": (0, 0, 0), "disc (category 7)": (1, 0, 0), "disc (category 90)": (0, 0, 0)}


# --- parts ----------------------------------------------------------------------------------------


def test_dropping_a_polygon_does_not_drop_the_object(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(1, segmentation=[polygon(4, 6, 10, 8), [3, 3, 5, 5], []])])
    with pytest.raises(BadInput, match=r"annotation 1 .* polygon with 2 points.*leave such polygons out"):
        CocoInstances.open(folder, "train")
    dataset = CocoInstances.open(folder, "train", degenerate="drop")
    assert len(dataset.annotations(0)) == 1
    assert dataset[0][1].boxes.tolist() == [[4, 6, 14, 14]]
    assert dataset.layout.endswith("; 2 degenerate polygons of objects of train left out")
    assert CocoEvaluator(dataset.ground_truth).ground_truth.records[5][0]["area"] == 80


def test_drops_object_with_only_degenerate_polygons(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(1, segmentation=[[3, 3, 5, 5], [1, 1]]), annotation(2)])
    dataset = CocoInstances.open(folder, "train", degenerate="drop")
    assert len(dataset.annotations(0)) == 1
    assert dataset.layout.endswith("; 1 degenerate objects of train left out")


# --- warning lines ------------------------------------------------------------------------------------


def test_warning_lines() -> None:
    problems = [Problem("crowd", f"file {n}", fatal=False) for n in range(3)] + [Problem("bad box", "a box")]
    assert warning_lines(problems) == [
        "warning: file 0 (and 2 more such lines in `embedmask data check`)",
        "warning: a box",
    ]
    assert warning_lines([]) == []
