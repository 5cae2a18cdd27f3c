"""Test COCO files in the layouts of annotation tools."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedmask.data.coco import CocoInstances, check_same_classes
from embedmask.data.layouts import find_split
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator

from .folders import SCENES, coco_content, write_images, write_plain, write_yolo


def write_export(
    folder: Path, split: str, images: str, annotations: str, *, prefix: str = "", encoding: str = "utf-8"
) -> None:
    write_images(folder / images, split)
    content = coco_content(split, (1, 2))
    for image in content["images"]:
        image["file_name"] = prefix + image["file_name"]
    file = folder / annotations
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding=encoding)


@pytest.mark.parametrize(
    "images", ["images/{}", "{}", "images", "{}/images", "{}/data", "data/{}", "Images/{}"]
)
@pytest.mark.parametrize(
    "annotations",
    [
        "annotations/instances_{}.json",
        "annotations/{}.json",
        "{}/annotations.json",
        "{}/labels.json",
        "labels/{}_coco.json",
    ],
)
def test_splits_of_annotation_tools(tmp_path: Path, images: str, annotations: str) -> None:
    for split in SCENES:
        write_export(tmp_path, split, images.format(split), annotations.format(split))
    for split, scene in SCENES.items():
        dataset = CocoInstances.open(tmp_path, split)  # type: ignore[arg-type]
        assert annotations.format(split) in dataset.layout
        assert dataset.layout.endswith(f" with images in {images.format(split)}/")
        assert [len(dataset[i][1]) for i in range(2)] == [len(objects) for objects in scene.values()]


@pytest.mark.parametrize(
    ("images", "annotations", "prefix", "layout"),
    [
        ("images/default", "annotations/instances_default.json", "", "CVAT/Datumaro COCO export, "),
        ("images", "annotations/instances_default.json", "", "CVAT/Datumaro COCO export, "),
        ("images", "annotations/instances_Train.json", "", "CVAT/Datumaro COCO export, "),
        ("images", "result.json", "images/", "Label Studio COCO export, "),
        ("images", "result.json", "images\\", "Label Studio COCO export, "),
        ("data", "labels.json", "", "FiftyOne COCO export, "),
        (".", "via_export_coco.json", "", "VIA COCO export, "),
        (".", "_annotations.coco.json", "", "COCO export, "),
        ("images", "my project.json", "", "COCO export, "),
        ("images", "training.json", "", "COCO export, "),
    ],
)
def test_folder_without_splits_is_train(
    tmp_path: Path, images: str, annotations: str, prefix: str, layout: str
) -> None:
    write_export(tmp_path, "val", images, annotations, prefix=prefix)
    dataset = CocoInstances.open(tmp_path, "train")
    assert dataset.layout.startswith(f"{layout}{annotations} with images in {images}/")
    assert [len(dataset[i][1]) for i in range(2)] == [1, 3]
    with pytest.raises(
        BadInput, match=r"has no val split, only train; .*--val-fraction 0\.2, .*embedmask data split"
    ):
        CocoInstances.open(tmp_path, "val")


def test_ignores_other_json_files(tmp_path: Path) -> None:
    write_export(tmp_path, "train", "images/train", "annotations/instances_train.json")
    captions = coco_content("train", (1, 2))
    (tmp_path / "annotations/captions_train.json").write_text(json.dumps(captions))
    (tmp_path / "annotations/notes_train.json").write_text('{"images": []}')
    (tmp_path / "info.json").write_text("{}")
    assert find_split(tmp_path, "train").annotations.name == "instances_train.json"


def test_raises_on_two_files_for_one_split(tmp_path: Path) -> None:
    write_export(tmp_path, "train", "images/train", "annotations/train.json")
    write_export(tmp_path, "train", "images/train", "train/labels.json")
    with pytest.raises(BadInput, match=r"annotations/train\.json, .*train/labels\.json: both are COCO files"):
        find_split(tmp_path, "train")


def test_val_split_alone_has_no_train(tmp_path: Path) -> None:
    """A file of the whole set would include val in train."""
    write_export(tmp_path, "val", "images", "val.json")
    write_export(tmp_path, "train", "images", "all.json")
    with pytest.raises(BadInput, match="has no train split, only val"):
        find_split(tmp_path, "train")


def test_file_of_train_and_val_is_neither(tmp_path: Path) -> None:
    write_export(tmp_path, "val", "images", "annotations/instances_train_val.json")
    with pytest.raises(BadInput, match="has no train split; looked for"):
        find_split(tmp_path, "train")


def test_raises_on_parent_of_data_set(tmp_path: Path) -> None:
    write_plain(tmp_path / "set")
    with pytest.raises(BadInput, match=r"has no train split, but .*set is a data set; pass that folder"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize("images", ["images/val", "val", "."])
def test_plain_layout_with_images_elsewhere(tmp_path: Path, images: str) -> None:
    write_export(tmp_path, "val", images, "val.json")
    dataset = CocoInstances.open(tmp_path, "val")
    assert [len(dataset[i][1]) for i in range(2)] == [1, 3]
    inside = images.startswith("images")
    assert dataset.layout == "val.json beside images/" + ("" if inside else f" with images in {images}/")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write_export(tmp_path, "val", "images", "val.json", encoding=encoding)
    write_export(tmp_path / "tool", "val", "images", "annotations/instances_val.json", encoding=encoding)
    for folder in (tmp_path, tmp_path / "tool") if encoding != "utf-32" else (tmp_path,):
        dataset = CocoInstances.open(folder, "val")
        assert [len(dataset[i][1]) for i in range(2)] == [1, 3]
        assert CocoEvaluator(dataset.ground_truth).class_names == ["disc", "star"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_of_yolo(tmp_path: Path, encoding: str) -> None:
    write_yolo(tmp_path)
    for file in [tmp_path / "data.yaml", *tmp_path.rglob("*.txt")]:
        file.write_text(file.read_text(), encoding=encoding)
    train, val = (CocoInstances.open(tmp_path, split) for split in ("train", "val"))  # type: ignore[arg-type]
    assert [len(val[i][1]) for i in range(2)] == [1, 3]
    check_same_classes(train, val)


def test_skips_folder_of_many_json_files(tmp_path: Path) -> None:
    write_export(tmp_path, "train", "images", "labels/instances_train.json")
    for number in range(30):
        (tmp_path / f"labels/{number}.json").write_text(json.dumps(coco_content("val", (1, 2))))
    assert find_split(tmp_path, "train").annotations.name == "instances_train.json"


def test_json_beside_image_is_not_an_export(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(coco_content("val", (1, 2))))
    with pytest.raises(BadInput, match="has no train split; looked for"):
        find_split(tmp_path, "train")
