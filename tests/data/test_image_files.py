from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from embedmask.data.coco import CocoInstances
from embedmask.data.image_files import find_image_files
from embedmask.data.layouts import find_split
from embedmask.data.problems import Problem
from embedmask.errors import BadInput

from .folders import write_plain


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def paths(names: list[str], images: Path, *others: Path) -> list[str]:
    result = find_image_files(names, images, others)
    assert not result.missing
    assert not result.uncertain
    root = others[-1] if others else images
    return [(result.folder / name).resolve().relative_to(root.resolve()).as_posix() for name in result.names]


@pytest.mark.parametrize(
    ("written", "existing"),
    [
        ("cam\\000.png", "cam/000.png"),
        (".\\cam\\000.png", "cam/000.png"),
        ("/000.png", "000.png"),
        ("my%20image%231.png", "my image#1.png"),
        ("IMAGE.PNG", "image.png"),
        (unicodedata.normalize("NFD", "Größe é.png"), unicodedata.normalize("NFC", "Größe é.png")),
        (unicodedata.normalize("NFC", "Größe é.png"), unicodedata.normalize("NFD", "größe é.PNG")),
        ("C:\\Users\\me\\data\\cam\\000.png", "cam/000.png"),
        ("/home/me/data/cam/000.png", "cam/000.png"),
        ("/data/upload/3/1a2b3c4d-cell.png", "cell.png"),
        ("/data/upload/3/1a2b3c4d-cell.png", "1a2b3c4d-cell.png"),
        ("/data/local-files/?d=cam%2F000.png", "cam/000.png"),
        ("https://host/bucket/cell.png?token=5", "cell.png"),
    ],
)
def test_spellings_of_a_name(tmp_path: Path, written: str, existing: str) -> None:
    touch(tmp_path, existing, "another.png")
    assert paths([written], tmp_path) == [existing]
    assert find_image_files([written], tmp_path).respelled == [0]


def test_exact_name_takes_precedence(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "A.PNG", "b%20c.png", "b c.png")
    assert paths(["A.PNG", "a.png", "b%20c.png"], tmp_path) == ["A.PNG", "a.png", "b%20c.png"]
    touch(tmp_path, "cam/a.png", "cam/A.PNG")
    assert paths(["cam\\A.PNG", "cam\\a.png"], tmp_path) == ["cam/A.PNG", "cam/a.png"]


def test_two_matching_files_are_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "A.PNG")
    result = find_image_files(["a.PNG"], tmp_path)
    assert sorted(result.uncertain[0]) == [str(tmp_path / "A.PNG"), str(tmp_path / "a.png")]


def test_equal_names_in_two_folders(tmp_path: Path) -> None:
    touch(tmp_path, "s1/a.png", "s2/a.png")
    assert paths(["s2\\a.png", "s1\\a.png"], tmp_path) == ["s2/a.png", "s1/a.png"]
    (tmp_path / "s1/a.png").unlink()
    assert find_image_files(["s1/a.png", "s2/a.png"], tmp_path).missing == [0]
    (tmp_path / "s1").rmdir()
    assert find_image_files(["s1/a.png", "s2/a.png"], tmp_path).missing == [0]


def test_flattened_folders_with_equal_names_are_ambiguous(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    assert paths(["s1/a.png", "s2/b.png"], tmp_path) == ["a.png", "b.png"]
    result = find_image_files(["s1/a.png", "s2/a.png"], tmp_path)
    assert result.uncertain == {0: ["s2/a.png"], 1: ["s1/a.png"]}


def test_several_folders_that_lead_to_the_same_files(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "other").mkdir()
    (tmp_path / "linked").symlink_to(images, target_is_directory=True)
    for names in ([str(images / "a.png")], ["../images/a.png", "../images/b.png"]):
        result = find_image_files(names, images, (images, tmp_path / "other"))
        assert [(result.folder / name).resolve() for name in result.names] == [
            images / Path(name).name for name in names
        ]
    result = find_image_files(["a.png"], images, (images, tmp_path / "linked"))
    assert (result.folder / result.names[0]).resolve() == images / "a.png"
    touch(tmp_path / "other", "a.png")
    with pytest.raises(BadInput, match=r"images/a\.png, .*other/a\.png: all images exist in both folders"):
        find_image_files(["a.png"], images, (images, tmp_path / "linked", tmp_path / "other"))


def test_names_of_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.png")
    assert find_image_files(["a.png", "b.png", "./a.png"], tmp_path).repeated == {2: 0}
    assert find_image_files(["a.png", "A.png"], tmp_path).repeated == {}  # A.png is uncertain


def test_complete_folder_takes_precedence(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "train/a.png", "train/b.png", "a.png")
    train = images / "train"
    assert find_image_files(["a.png", "b.png"], images, [images, train, tmp_path]).folder == train
    assert find_image_files(["train/a.png"], tmp_path, [tmp_path, images]).folder == images
    # a folder that the layout names has precedence, where all names exist in it
    assert find_image_files(["a.png"], images, [train]).folder == images
    with pytest.raises(BadInput, match=r"images/a\.png, .*images/train/a\.png: all images exist in both"):
        find_image_files(["a.png"], images, [images, train])


def test_missing_file_has_nearest_name(tmp_path: Path) -> None:
    touch(tmp_path, "cells_0001.png", "other.png")
    result = find_image_files(["cells_001.png", "zzz.bmp"], tmp_path)
    assert result.missing == [0, 1]
    assert result.nearest == {0: tmp_path / "cells_0001.png"}


def change_names(folder: Path, change: Any) -> None:
    file = folder / "val.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        image["file_name"] = change(image["file_name"])
    file.write_text(json.dumps(content))


def test_respelled_names_are_reported_once(tmp_path: Path) -> None:
    write_plain(tmp_path)
    change_names(tmp_path, lambda name: f"D:\\set\\{name.upper()}")
    dataset = CocoInstances.open(tmp_path, "val")
    assert [dataset.image_path(i).name for i in range(2)] == ["c.png", "d.png"]
    assert [len(dataset[i][1]) for i in range(2)] == [1, 3]
    assert dataset.layout == "val.json beside images/"
    (line,) = dataset.warning_lines()
    assert "2 image names differ from those of the files and were matched to them" in line
    issues: list[Problem] = []
    CocoInstances(find_split(tmp_path, "val"), on_issue=issues.append)
    assert [(problem.kind, problem.fatal) for problem in issues] == [("image name", False)]


def test_raises_on_missing_and_ambiguous_images(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "images/d.png").rename(tmp_path / "images/d_1.png")
    with pytest.raises(
        BadInput, match=r"d\.png: no such file, .* add the file \(the most similar name is .*d_1\.png\)"
    ):
        CocoInstances.open(tmp_path, "val")
    change_names(tmp_path, lambda name: f"{'xy'[name == 'c.png']}/C.png")
    with pytest.raises(
        BadInput, match=r"val\.json: image 10 names 'y/C\.png', which is ambiguous.*'?x/C\.png"
    ):
        CocoInstances.open(tmp_path, "val")
