"""Test label images whose objects have classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedmask.config.reading import ReadOptions
from embedmask.data.coco import CocoInstances, check_same_classes
from embedmask.data.label_classes import read_table
from embedmask.errors import BadInput

from .folders import SCENES, SIZE, write_images, write_label_images

NUMBERS = {
    split: {name: [1 + label for label, *_ in objects] for name, objects in scene.items()}
    for split, scene in SCENES.items()
}
"""Class numbers 1 and 2 of each image's objects, whose labels are 5, 10, 15, ..."""


def open_both(folder: Path) -> tuple[CocoInstances, CocoInstances]:
    train, val = (CocoInstances.open(folder, split) for split in ("train", "val"))  # type: ignore[arg-type]
    check_same_classes(train, val)
    return train, val


def labels(dataset: CocoInstances) -> list[list[int]]:
    return [dataset[i][1].labels.tolist() for i in range(len(dataset))]


EXPECTED = [[label for label, *_ in objects] for objects in SCENES["val"].values()]


def class_image(split: str, name: str) -> Image.Image:
    pixels = np.zeros(SIZE, dtype=np.uint8)
    for label, x, y, w, h in SCENES[split][name]:
        pixels[y : y + h, x : x + w] = label + 1
    return Image.fromarray(pixels)


def write_classes(file: Path, split: str, name: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {5 * place: number for place, number in enumerate(NUMBERS[split][name], start=1)}
    if file.suffix == ".json":
        file.write_text(json.dumps(table))
    elif file.suffix == ".csv":
        file.write_text(
            "label;class\r\n" + "".join(f"{key};{value}\r\n" for key, value in table.items()),
            encoding="utf-16",
        )
    else:
        class_image(split, name).save(file)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".png", ".tif"])
@pytest.mark.parametrize(
    ("place", "split_first"),
    [
        ("{split}/classes/{name}", True),
        ("classes/{split}/{name}", False),
        ("{split}/masks/{name}_classes", True),
    ],
)
def test_class_files(tmp_path: Path, suffix: str, place: str, split_first: bool) -> None:
    write_label_images(tmp_path, split_first=split_first)
    for split, scene in SCENES.items():
        for name in scene:
            write_classes(tmp_path / (place.format(split=split, name=name) + suffix), split, name)
    _, val = open_both(tmp_path)
    assert val.category_ids == [1, 2]
    assert val.class_names == ["class 1", "class 2"]
    assert labels(val) == EXPECTED
    (tmp_path / "classes.json").write_text('{"1": "disc", "2": "star", "3": "rare"}')
    assert open_both(tmp_path)[1].class_names == ["disc", "star", "rare"]


def test_classes_by_name(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    for split, scene in SCENES.items():
        for name, objects in scene.items():
            table = {5 * place: ("star", "disc")[label] for place, (label, *_) in enumerate(objects, start=1)}
            (tmp_path / split / "masks" / f"{name}_classes.json").write_text(json.dumps(table))
    _, val = open_both(tmp_path)
    assert val.class_names == ["disc", "star"]
    assert labels(val) == [[1 - label for label in image] for image in EXPECTED]


@pytest.mark.parametrize("split_first", [True, False])
def test_one_folder_per_class(tmp_path: Path, split_first: bool) -> None:
    for split, scene in SCENES.items():
        parts = (split, "{}") if split_first else ("{}", split)
        write_images(
            tmp_path.joinpath(*parts).with_name(parts[-1].format("images"))
            if split_first
            else tmp_path / "images" / split,
            split,
        )
        masks = tmp_path / split / "masks" if split_first else tmp_path / "masks" / split
        for name, objects in scene.items():
            for number, title in enumerate(("disc", "star")):
                own = [rectangle for label, *rectangle in objects if label == number]
                pixels = np.zeros(SIZE, dtype=np.uint16)
                for place, (x, y, w, h) in enumerate(own, start=1):
                    pixels[y : y + h, x : x + w] = place
                (masks / title).mkdir(parents=True, exist_ok=True)
                if own or title == "disc":  # a class without objects needs no file
                    Image.fromarray(pixels).save(masks / title / f"{name}.png")
    _, val = open_both(tmp_path)
    assert val.class_names == ["disc", "star"]
    assert labels(val) == EXPECTED
    assert val.layout.endswith("one folder for each of 2 classes")
    assert val.ground_truth.class_names == ["disc", "star"]


def spoil(folder: Path, change: str) -> None:
    file = folder / "val/masks/d_classes.json"
    if change == "missing file":
        file.unlink()
    elif change == "missing label":
        file.write_text('{"5": 1, "10": 1}')
    elif change == "no class":
        file.write_text('{"5": 1, "10": 1, "15": null}')
    elif change == "no table":
        file.write_text("[1, 2]")
    else:
        file.unlink()
        pixels = np.asarray(class_image("val", "d")).copy()
        if change == "two classes":
            pixels[2, 1] = 2
        Image.fromarray(pixels if change == "two classes" else pixels[1:]).save(file.with_suffix(".png"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing file", r"d\.tif: has no file of classes, unlike other label images"),
        ("missing label", r"d_classes\.json: has no class for label 15"),
        ("no class", r"d_classes\.json: is not a table of labels and classes"),
        ("no table", r"d_classes\.json: is not a table of labels and classes"),
        ("two classes", r"d_classes\.png: label 5: has the classes \[1, 2\]"),
        ("size", r"d_classes\.png: label 5: the class image does not have the size of the label image"),
    ],
)
def test_raises_on_ambiguous_classes(tmp_path: Path, change: str, message: str) -> None:
    write_label_images(tmp_path)
    for split, scene in SCENES.items():
        for name in scene:
            write_classes(tmp_path / f"{split}/masks/{name}_classes.json", split, name)
    spoil(tmp_path, change)
    with pytest.raises(BadInput, match=message) as caught:
        CocoInstances.open(tmp_path, "val")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '\ufeff{"1": "tumor", "2": 7}', {1: "tumor", 2: 7}),
        ("a.csv", "1,tumor cell\n2,7\n", {1: "tumor cell", 2: 7}),
        ("a.csv", 'id\tclass\n1\t"tumor"\n', {1: "tumor"}),
        ("a.csv", "", {}),
        ("a.csv", '"label","class"\n"1","tumor, left"\n', {1: "tumor, left"}),
        ("a.csv", "1; tumor, left\n\n2; 7\n", {1: "tumor, left", 2: 7}),
    ],
)
def test_tables(tmp_path: Path, name: str, text: str, expected: dict[int, Any]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_table(tmp_path / name) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1\n2\n",
        "label,class\nx,1\n",
        "label,class,area\n1,tumor,225\n",
        "1,tumor\n2,tumor,225\n",
        ",label,class\n0,1,x\n",
    ],
)
def test_raises_on_bad_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(BadInput, match=r"a\.csv: is not a table of labels and classes"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", "1,tumor\n1,tumor\n01,stroma\n"), ("a.json", '{"1": "tumor", "1": "stroma"}')],
)
def test_raises_on_a_label_with_two_classes(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match="label 1 has the classes tumor and stroma"):
        read_table(tmp_path / name)


def write_pages(folder: Path, classes: list[np.ndarray]) -> None:
    """Write an image with a label image of two pages, both with the labels 1 and 2, and a class image."""
    for name in ("images", "masks"):
        (folder / "train" / name).mkdir(parents=True)
    pages = np.zeros((2, *SIZE), np.uint16)
    pages[:, 2:6, 2:6], pages[:, 10:14, 2:6] = 1, 2
    tifffile.imwrite(folder / "train/images/a.tif", (pages * 50).astype(np.uint8), photometric="minisblack")
    tifffile.imwrite(folder / "train/masks/a.tif", pages, photometric="minisblack")
    stack = np.stack([np.choose(page, (0, *values)) for page, values in zip(pages, classes, strict=True)])
    tifffile.imwrite(folder / "train/masks/a_classes.tif", stack.astype(classes[0].dtype))


def test_page_of_class_images(tmp_path: Path) -> None:
    write_pages(tmp_path, [np.array([1, 1], np.uint8), np.array([2, 3], np.uint8)])
    dataset = CocoInstances.open(tmp_path, "train", options=ReadOptions(page=1))
    assert dataset.class_names == ["class 2", "class 3"]
    assert labels(dataset) == [[0, 1]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_whole_numbers_of_any_format_are_classes(tmp_path: Path, dtype: type[np.generic]) -> None:
    write_pages(tmp_path, [np.array([1, 2], dtype), np.array([1, 2], dtype)])
    dataset = CocoInstances.open(tmp_path, "train")
    assert (dataset.class_names, labels(dataset)) == (["class 1", "class 2"], [[0, 1]])


def test_class_image_of_1_bit(tmp_path: Path) -> None:
    write_pages(tmp_path, [np.array([1, 1], np.uint8)] * 2)
    file = tmp_path / "train/masks/a_classes.tif"
    Image.fromarray(tifffile.imread(file)[0] > 0).save(file.with_suffix(".png"))
    file.unlink()
    dataset = CocoInstances.open(tmp_path, "train")
    assert (dataset.class_names, labels(dataset)) == (["class 1"], [[0, 0]])


def test_raises_on_fractions_as_classes(tmp_path: Path) -> None:
    write_pages(tmp_path, [np.array([0.5, 1.5], np.float32)] * 2)
    with pytest.raises(
        BadInput, match=r"a_classes\.tif: is not a label image; write one whole number per pixel"
    ):
        CocoInstances.open(tmp_path, "train")


def test_stardist_folders_without_splits(tmp_path: Path) -> None:
    write_label_images(tmp_path / "set")
    for part in ("images", "masks"):
        (tmp_path / "set/val" / part).rename(tmp_path / part)
    dataset = CocoInstances.open(tmp_path, "train")
    assert dataset.layout == "label images, images/ with masks/"
    assert [len(dataset[i][1]) for i in range(2)] == [1, 3]


def test_one_file_per_object_is_not_a_class_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "val")
    for name in SCENES["val"]:
        (tmp_path / "masks" / name).mkdir(parents=True)
        Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "masks" / name / "1.png")
    with pytest.raises(BadInput, match="has no train split"):
        CocoInstances.open(tmp_path, "train")
