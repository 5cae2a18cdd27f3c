from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from embedmask.data.near_duplicates import near_duplicates, split_by_content
from embedmask.errors import BadInput
from embedmask.synthetic.renderer import make_scene


def write_images(folder: Path, count: int, size: int = 96) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(make_scene(size, np.random.default_rng(number)).image).save(path)
    return paths


def groups(paths: list[Path]) -> list[list[str]]:
    found = near_duplicates(paths, [path.read_bytes() for path in paths])
    return [[paths[i].name for i in group] for group in found]


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "same": lambda image: image,
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned": lambda image: image.rotate(90, expand=True),
    "turned and mirrored": lambda image: ImageOps.mirror(image.rotate(270, expand=True)),
    "smaller": lambda image: image.resize((64, 64)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
}


@pytest.mark.parametrize("suffix", [".bmp", ".jpg"])
@pytest.mark.parametrize("change", CHANGES)
def test_detects_copies(tmp_path: Path, change: str, suffix: str) -> None:
    paths = write_images(tmp_path, 12)
    copy = tmp_path / f"copy{suffix}"
    CHANGES[change](Image.open(paths[7])).save(copy)
    assert [group for group in groups([*paths, copy]) if len(group) > 1] == [["007.png", copy.name]]


def test_copies_of_copies_are_one_group(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    for number in range(8):
        copy = tmp_path / f"copy{number}.png"
        ImageEnhance.Brightness(Image.open(paths[0])).enhance(0.94).save(copy)
        paths.insert(0, copy)
    assert sorted(map(len, groups(paths))) == [1, 1, 9]


def test_images_of_a_fixed_camera_differ(tmp_path: Path) -> None:
    """Images with one background and an object in different places are nearly equal but not duplicates."""
    background = make_scene(128, np.random.default_rng(0)).image
    paths = []
    for number in range(6):
        image = background.copy()
        image[8 + 16 * number : 20 + 16 * number, 50:62] = 255
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    assert len(groups(paths)) == 6


def test_flat_images_differ_by_color(tmp_path: Path) -> None:
    paths = []
    for number, color in enumerate(((0, 0, 0), (0, 0, 1), (90, 90, 90), (200, 0, 0), (0, 102, 0))):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (20, 20), color).save(paths[-1])
    assert groups(paths) == [["0.png", "1.png"], ["2.png"], ["3.png"], ["4.png"]]


def test_groups_roboflow_copies_by_name(tmp_path: Path) -> None:
    names = [
        "a_jpg.rf.0123abc.png",
        "b_jpg.rf.0123abc.png",
        "a_jpg.rf.ffff.png",
        "a_jpg.png",
        "c.png",
        "d.png",
    ]
    paths = [
        path.rename(tmp_path / name) for path, name in zip(write_images(tmp_path, 6), names, strict=True)
    ]
    assert groups(paths)[0] == ["a_jpg.rf.0123abc.png", "a_jpg.rf.ffff.png"]
    assert len(groups(paths)) == 5


def test_many_empty_images_are_one_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(60)]
    for path in paths:
        Image.fromarray(rng.integers(0, 3, (64, 64), dtype=np.uint8)).save(path)
    assert len(groups(paths)) == 1


def contents(paths: list[Path], places: list[int]) -> set[bytes]:
    return {paths[i].read_bytes() for i in places}


def test_split_depends_only_on_content(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "a", 20)
    copy = tmp_path / "a/copy.png"
    ImageOps.mirror(Image.open(paths[3])).save(copy)
    paths.append(copy)
    first = split_by_content(paths, {"val": 0.2, "test": 0.1})
    assert {split: len(places) for split, places in first.items()} == {"train": 15, "val": 4, "test": 2}
    assert sorted(i for places in first.values() for i in places) == list(range(21))
    assert any({3, 20} <= set(places) for places in first.values())
    others = [
        Path(shutil.copy(path, tmp_path / f"{number:02}.png")) for number, path in enumerate(paths[::-1])
    ]
    random.Random(0).shuffle(others)
    second = split_by_content(others, {"val": 0.2, "test": 0.1})
    for split, places in first.items():
        assert contents(paths, places) == contents(others, second[split])
    # val is the same with and without test
    assert split_by_content(paths, {"val": 0.2})["val"] == first["val"]


def test_added_images_move_few_others(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 60, size=48)
    before, after = split_by_content(paths[:50], {"val": 0.2}), split_by_content(paths, {"val": 0.2})
    assert len(before["val"]), len(after["val"]) == (10, 12)
    moved = set(before["val"]) ^ {i for i in after["val"] if i < 50}
    assert len(moved) <= 3


@pytest.mark.parametrize(
    ("count", "fractions", "sizes"),
    [
        (2, {"val": 0.01}, (1, 1)),
        (2, {"val": 0.2}, (1, 1)),
        (2, {"val": 0.99}, (1, 1)),
        (3, {"val": 0.5, "test": 0.4}, (1, 1, 1)),
        (5, {"val": 0.9}, (1, 4)),
        (10, {"val": 0.2}, (8, 2)),
        (10, {"val": 0.2, "test": 0.1}, (7, 2, 1)),
    ],
)
def test_small_data_sets(
    tmp_path: Path, count: int, fractions: dict[str, float], sizes: tuple[int, ...]
) -> None:
    paths = write_images(tmp_path, count, size=48)
    assert tuple(map(len, split_by_content(paths, fractions).values())) == sizes


def test_a_large_group_does_not_fill_a_small_split(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 4, size=48)
    paths += [Path(shutil.copy(paths[0], tmp_path / f"copy{number}.png")) for number in range(15)]
    found = split_by_content(paths, {"val": 0.1})
    assert len(found["val"]) == 2
    assert 0 in found["train"]


def test_raises_on_sets_that_cannot_be_divided(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 1, size=48)
    paths.append(Path(shutil.copy(paths[0], tmp_path / "copy.png")))
    with pytest.raises(
        BadInput, match="2 images in 1 groups of near-duplicates cannot be divided into train, val"
    ):
        split_by_content(paths, {"val": 0.5})
    with pytest.raises(BadInput, match="0 images in 0 groups"):
        split_by_content([], {"val": 0.5})
    for fractions in (
        {"val": 0.0},
        {"val": -0.1},
        {"val": 1.0},
        {"val": 0.5, "test": 0.5},
        {"val": float("nan")},
    ):
        with pytest.raises(BadInput, match="fractions must be above 0 and below 1 together"):
            split_by_content(paths, fractions)
    with pytest.raises(BadInput, match=r"gone\.png: cannot be read"):
        split_by_content([*paths, tmp_path / "gone.png"], {"val": 0.5})
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(BadInput, match=r"broken\.png: cannot be read as an image"):
        split_by_content([*paths, tmp_path / "broken.png"], {"val": 0.5})
