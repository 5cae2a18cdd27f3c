from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco_mask

from embedmask.data.coco import CocoInstances
from embedmask.data.layouts import find_split
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator

from .conftest import MakeFolder, annotation
from .folders import (
    CATEGORY_IDS,
    NAMES,
    SCENES,
    WRITERS,
    coco_content,
    write_coco,
    write_images,
    write_roboflow,
)

each_layout = pytest.mark.parametrize("layout", WRITERS)


@each_layout
@pytest.mark.parametrize("split", SCENES)
def test_every_layout_yields_the_same_items(tmp_path: Path, layout: str, split: str) -> None:
    WRITERS[layout](tmp_path)
    dataset = CocoInstances.open(tmp_path, split)  # type: ignore[arg-type]
    labeled = layout == "label images"
    assert dataset.class_names == (["object"] if labeled else NAMES)
    assert dataset.category_ids == CATEGORY_IDS[layout]
    assert [dataset.image_path(i).stem for i in range(len(dataset))] == list(SCENES[split])
    for index, objects in enumerate(SCENES[split].values()):
        image, target = dataset[index]
        assert image.shape == (3, 40, 30)
        assert target.labels.tolist() == [0 if labeled else label for label, *_ in objects]
        assert target.dense_masks().shape == (len(objects), 40, 30)
        for mask, (_, x, y, w, h) in zip(target.dense_masks(), objects, strict=True):
            expected = torch.zeros(40, 30, dtype=torch.bool)
            expected[y : y + h, x : x + w] = True
            assert torch.equal(mask, expected)


@each_layout
def test_layout_is_described_in_one_line(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path)
    line = CocoInstances.open(tmp_path, "val").layout
    assert "\n" not in line
    assert {"plain": "val.json beside images/"}.get(layout, layout) in line


@each_layout
def test_ground_truth_as_prediction_scores_one(tmp_path: Path, layout: str) -> None:
    """Evaluate the ground truth as the prediction, with the image and category ids of the data set."""
    WRITERS[layout](tmp_path)
    dataset = CocoInstances.open(tmp_path, "val")
    results = []
    for index in range(len(dataset)):
        _, target = dataset[index]
        for label, mask, (x1, y1, x2, y2) in zip(
            target.labels, target.dense_masks(), target.boxes.tolist(), strict=True
        ):
            rle = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            results.append(
                {
                    "image_id": dataset.image_ids[index],
                    "category_id": dataset.category_ids[int(label)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": 0.9,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    evaluator = CocoEvaluator(dataset.ground_truth)
    assert evaluator.class_names == dataset.class_names  # no class without a label
    evaluator.add(results)
    metrics = evaluator.compute()
    assert metrics["segm/AP"] == pytest.approx(1)
    assert metrics["bbox/AP"] == pytest.approx(1)
    evaluator = CocoEvaluator(dataset.ground_truth)
    evaluator.add(results[1:])
    assert evaluator.compute()["segm/AP"] < 1


@each_layout
def test_raises_on_missing_split(tmp_path: Path, layout: str) -> None:
    WRITERS[layout](tmp_path)
    with pytest.raises(BadInput, match=r"has no test split, only train and val; move some"):
        find_split(tmp_path, "test")


def test_newest_year_is_used(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation()], split="val")
    files = find_split(folder, "val")
    assert files.annotations == folder / "val.json"
    assert files.images == folder / "images"
    for year in (2014, 2017):
        (folder / f"coco/train{year}").mkdir(parents=True)
        (folder / "coco/annotations").mkdir(exist_ok=True)
        (folder / f"coco/annotations/instances_train{year}.json").write_text("{}")
    files = find_split(str(folder / "coco"), "train")
    assert files.annotations.name == "instances_train2017.json"
    assert files.images == folder / "coco/train2017"


def test_images_without_annotations(tmp_path: Path) -> None:
    """COCO's test-dev is a part of the images of test, without annotations."""
    write_coco(tmp_path)
    write_images(tmp_path / "test2017", "val")
    for name in ("test2017", "test-dev2017"):
        content = coco_content("val", (1, 90), annotated=False)
        if name == "test-dev2017":
            content["images"].pop()
        (tmp_path / f"annotations/image_info_{name}.json").write_text(json.dumps(content))
    dataset = CocoInstances.open(tmp_path, "test-dev")
    assert "image_info_test-dev2017.json with test2017/" in dataset.layout
    assert len(dataset) == 1
    assert dataset.category_ids == [1, 90]
    assert len(dataset[0][1]) == 0
    assert len(CocoInstances.open(tmp_path, "test")) == 2


def test_annotations_take_precedence_over_image_info(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations/image_info_val2017.json").write_text("{}")
    assert find_split(tmp_path, "val").annotations.name == "instances_val2017.json"


@pytest.mark.parametrize("change", ["used", "no parent", "own supercategory"])
def test_only_roboflow_placeholder_category_is_removed(tmp_path: Path, change: str) -> None:
    write_roboflow(tmp_path)
    file = tmp_path / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    if change == "used":
        content["annotations"][0]["category_id"] = 0
    elif change == "no parent":
        content["categories"][1]["supercategory"] = content["categories"][2]["supercategory"] = "things"
    else:
        content["categories"][0]["supercategory"] = "world"
    file.write_text(json.dumps(content))
    assert CocoInstances.open(tmp_path, "train").category_ids == [0, 1, 2]


def test_raises_on_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere: no such data folder"):
        find_split(tmp_path / "nowhere", "train")
    with pytest.raises(
        BadInput, match=r"looked for train\.json beside images/, .*train2017\.json .*data\.yaml"
    ):
        find_split(tmp_path, "train")
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(BadInput, match=r"images: no such folder, but .*train\.json"):
        find_split(tmp_path, "train")
