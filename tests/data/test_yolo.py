from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.data.problems import Problem
from embedmask.data.yolo import label_file, read_data_file
from embedmask.errors import BadInput

from .folders import NAMES, write_yolo

LINE = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"


def set_data(folder: Path, **changes: Any) -> None:
    data = {**yaml.safe_load((folder / "data.yaml").read_text()), **changes}
    rest = {key: value for key, value in data.items() if value is not None}
    (folder / "data.yaml").write_text(yaml.safe_dump(rest))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"path": None},
        {"path": "/moved/elsewhere"},
        {"path": "images", "train": "train"},
        {"train": "../images/train"},
        {"train": "./images/train"},
        {"train": "images/train/"},
        {"train": ["images/train", "images/train"]},
        {"train": "train.txt"},
        {"train": ["train.txt"]},
        {"train": "images\\train"},
        {"train": "windows.txt"},
        {"names": NAMES},
    ],
)
def test_forms_of_image_entries(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_yolo(tmp_path)
    (tmp_path / "train.txt").write_text("./images/train/a.png\n\nimages/train/b.png\n")
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfimages\\train\\a.png\r\nimages/train/b.png\r\n")
    lines = (tmp_path / "labels/train/a.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xef\xbb\xbf" + lines)
    set_data(tmp_path, **changes)
    dataset = CocoInstances.open(tmp_path, "train")
    assert dataset.class_names == NAMES
    assert [dataset.image_path(i).stem for i in range(len(dataset))] == ["a", "b"]
    assert [len(dataset.annotations(i)) for i in range(2)] == [2, 0]


def test_absolute_path_to_images(tmp_path: Path) -> None:
    write_yolo(tmp_path / "images")
    (tmp_path / "set").mkdir()
    data = yaml.safe_load((tmp_path / "images/data.yaml").read_text())
    data["path"] = str(tmp_path / "images")
    (tmp_path / "set/data.yaml").write_text(yaml.safe_dump(data))
    assert len(CocoInstances.open(tmp_path / "set", "train")[0][1]) == 2


def test_sparse_class_numbers_and_number_of_classes(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    set_data(tmp_path, names={7: "seven", 0: "disc", 1: "star"})
    assert CocoInstances.open(tmp_path, "train").category_ids == [0, 1, 7]
    set_data(tmp_path, names=None, nc=2)
    assert CocoInstances.open(tmp_path, "train").class_names == ["class 0", "class 1"]


def test_valid_entry_is_read_as_val(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    set_data(tmp_path, val=None, valid="images/val")
    assert len(CocoInstances.open(tmp_path, "val")) == 2


def test_coordinates_refer_to_upright_images(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "images/train/a.png", exif=exif)
    (tmp_path / "labels/train/a.txt").write_text("0 0 0 1 0 1 0.5 0 0.5")
    dataset = CocoInstances.open(tmp_path, "train")
    assert dataset.sizes[0] == (40, 20)
    assert dataset[0][1].boxes.tolist() == [[0, 0, 20, 20]]


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("set/images/train/a.b.jpg", "set/labels/train/a.b.txt"),
        ("images/images/a.jpg", "images/labels/a.txt"),
        ("set/train/a.jpg", "set/train/a.txt"),
        ("set/images", "set/images.txt"),
    ],
)
def test_label_file(image: str, labels: str) -> None:
    assert label_file(Path(image), Path()) == Path(labels)
    assert label_file(Path("/images/data") / image, Path("/images/data")) == Path("/images/data") / labels
    assert label_file(Path("/other") / image, Path("/images/data")) == Path("/other") / labels


def test_raises_if_no_image_has_a_text_file(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train").rename(tmp_path / "labels/training")
    expected = rf"{tmp_path}/labels/train/a\.txt: no such file, and no other image has a text file"
    with pytest.raises(BadInput, match=expected):
        CocoInstances.open(tmp_path, "train")


BAD_LINES = {
    "0 0.5 0.5 0.2 0.2": "line 2 is a box, which has no mask",
    "0 0.1 0.1 0.2": "polygon that is not a flat list",
    "0 0.1 0.1": "polygon with 1 points",
    "0": "polygon with 0 points",
    "0 0.1 0.1 0.2 0.2 0.3 0.3": "polygon without area",
    "0 0.1 0.1 0.1 0.2 0.1 0.3": "polygon without area",
    "0 300 200 400 200 400 300": "far outside",
    "0 1.1 0.1 1.2 0.1 1.2 0.3": "polygons outside its image",
    "0 nan 0.1 0.2 0.1 0.2 0.3": "not finite",
    "2 0.1 0.1 0.5 0.1 0.5 0.5": "names category 2, which",
    "0.5 0.1 0.1 0.5 0.1 0.5 0.5": "names category 0.5, which",
    "disc 0.1 0.1 0.5 0.1 0.5 0.5": "not all numbers",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_raises_on_bad_lines(tmp_path: Path, line: str) -> None:
    write_yolo(tmp_path)
    file = tmp_path / "labels/train/a.txt"
    file.write_text(LINE + line + "\n")
    with pytest.raises(BadInput, match=BAD_LINES[line]) as caught:
        CocoInstances.open(tmp_path, "train")
    assert f"{file}: line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "not valid YAML"),
        ("names:\n  0: cat\n  1: dog\n  1: fox\ntrain: images/train", "'1' is given twice"),
        ("{names: [a], date: 2024-02-30}", "not valid YAML"),
        ("train: images/train", "has no 'names'"),
        ("- a", "has no 'names'"),
        ("{names: [a], train: images/nowhere}", "images/nowhere: no such folder or list"),
        ("{names: [a], train: labels}", "labels contains no images"),
        ("{names: 3, train: images/train}", "has no 'names'"),
        (
            "{names: {cat: 0}, train: images/train}",
            "names: 'cat' is not a class number; write them as 0: name",
        ),
        ("{names: {-1: a, 0.5: b}, train: images/train}", "names: 0.5 is not a class number"),
        ("{names: [a], train: images/train/a.png}", "a.png: is not a list of images"),
    ],
)
def test_raises_on_bad_data_files(tmp_path: Path, text: str, message: str) -> None:
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        CocoInstances.open(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_class_numbers_in_quotes(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    plain = CocoInstances.open(tmp_path, "train")
    set_data(tmp_path, names={str(number): name for number, name in enumerate(plain.class_names)})
    assert "'0'" in (tmp_path / "data.yaml").read_text()
    quoted = CocoInstances.open(tmp_path, "train")
    assert (quoted.category_ids, quoted.class_names) == (plain.category_ids, plain.class_names)


def test_raises_on_text_file_of_two_images(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    with Image.open(tmp_path / "images/train/a.png") as image:
        image.save(tmp_path / "images/train/a.bmp")
    with pytest.raises(
        BadInput, match=r"labels/train/a\.txt: belongs to a\.bmp and a\.png; rename one of them"
    ):
        CocoInstances.open(tmp_path, "train")


def test_raises_on_missing_or_broken_images(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "train.txt").write_text("images/train/a.png\nimages/train/gone.png\n")
    set_data(tmp_path, train="train.txt")
    with pytest.raises(BadInput, match=r"gone\.png: no such image"):
        CocoInstances.open(tmp_path, "train")
    set_data(tmp_path, train="images/train")
    (tmp_path / "images/train/b.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"b\.png: cannot be read"):
        CocoInstances.open(tmp_path, "train")


def test_reports_labels_without_image(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/orphan.txt").write_text(LINE)
    issues: list[Problem] = []
    dataset = CocoInstances.open(tmp_path, "train")
    from embedmask.data.layouts import find_split

    CocoInstances(find_split(tmp_path, "train"), on_issue=issues.append)
    assert [(problem.kind, problem.fatal) for problem in issues] == [("labels without image", False)]
    assert "orphan.txt" in issues[0].message
    assert len(dataset) == 2


@pytest.mark.parametrize("text", ["names: [no, yes, 007, null]", "names: {0: no, 1: yes, 2: 007, 3: null}"])
def test_names_keep_their_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert read_data_file(tmp_path / "data.yaml")["names"] == {0: "no", 1: "yes", 2: "007", 3: "null"}
