"""Rotated or mirrored copies of an image, with objects in the right or in the wrong place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embedmask.data import turned_copies
from embedmask.data.check import Report, check_folder
from embedmask.data.turned_copies import TURNS, find_turned_copies, thumbnail

from .conftest import annotation, polygon

SIZE = (96, 128)
BOXES = [(8, 10, 30, 40), (70, 30, 44, 20), (50, 60, 12, 30)]
Boxes = list[tuple[int, int, int, int]]


def scene(seed: int = 0) -> np.ndarray:
    """Return a smooth asymmetric image, uint8 `[96, 128, 3]`."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8))
    pixels = np.array(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    for x, y, w, h in BOXES:
        pixels[y : y + h, x : x + w] = (220, 60, 50)
    return pixels


def turn(pixels: np.ndarray, number: int) -> np.ndarray:
    mirrored, turns = TURNS[number]
    return np.rot90(pixels[:, ::-1] if mirrored else pixels, turns).copy()


def turn_boxes(boxes: Boxes, number: int, size: tuple[int, int] = SIZE) -> Boxes:
    """Turn boxes by painting them as masks and turning the masks."""
    turned = []
    for x, y, w, h in boxes:
        mask = np.zeros(size, bool)
        mask[y : y + h, x : x + w] = True
        ys, xs = np.nonzero(turn(mask, number))
        turned.append((int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1))
    return turned


def check(folder: Path, images: dict[str, tuple[np.ndarray, Boxes]], val: tuple[str, ...] = ()) -> Report:
    (folder / "images").mkdir(exist_ok=True)
    images = {**images, "other.png": (scene(9), BOXES[:1])}
    for split, names in (
        ("train", [n for n in images if n not in (*val, "other.png")]),
        ("val", [*val, "other.png"]),
    ):
        records, annotations = [], []
        for number, name in enumerate(names, start=1):
            pixels, boxes = images[name]
            Image.fromarray(pixels).save(
                folder / "images" / name, **({"quality": 85} if name.endswith("jpg") else {})
            )
            records.append({"id": number, "file_name": name, "height": len(pixels), "width": pixels.shape[1]})
            for box in boxes:
                place = len(annotations) + 1
                fields = {"bbox": list(box), "segmentation": [polygon(*box)], "area": box[2] * box[3]}
                annotations.append(annotation(place, number, category_id=1, **fields))
        content = {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return check_folder(folder)


def messages(report: Report) -> list[str]:
    return [p.message for p in report.problems if p.kind == "objects of a turned copy"]


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_reports_objects_that_were_not_turned(tmp_path: Path, number: int, suffix: str) -> None:
    copy = turn(scene(), number)
    kept = [box for box in BOXES if box[1] < len(copy) and box[0] < copy.shape[1]]
    report = check(tmp_path, {"a.png": (scene(), BOXES), f"b.{suffix}": (copy, kept)})
    (message,) = messages(report)
    assert f"b.{suffix} of train: shows " in message
    assert "a.png of train" in message
    assert "its objects lie as if it were not turned" in message
    assert [(split, e.image_id) for split, e in report.examples["objects of a turned copy"]] == [("train", 2)]
    assert not report.fatal


@pytest.mark.parametrize("number", range(1, 8))
def test_accepts_turned_objects(tmp_path: Path, number: int) -> None:
    copy = turn(scene(), number), turn_boxes(BOXES, number)
    assert check(tmp_path, {"a.png": (scene(), BOXES), "b.jpg": copy}).problems == []


@pytest.mark.parametrize("number", [1, 3])
def test_reports_exchanged_objects(tmp_path: Path, number: int) -> None:
    """Only objects that overlap the wrong image can be in its annotations."""
    back = [box for box in turn_boxes(BOXES, number) if box[1] + box[3] <= 96 + 20 and box[1] < 96]
    kept = [box for box in BOXES if box[0] < 96]
    assert len(back) >= 2
    report = check(tmp_path, {"a.png": (scene(), back), "b.png": (turn(scene(), number), kept)})
    (message,) = messages(report)
    assert "its objects lie as if it were turned by" in message


def test_reports_objects_that_fit_only_the_empty_copy(tmp_path: Path) -> None:
    report = check(tmp_path, {"a.png": (scene(), []), "b.png": (turn(scene(), 1), BOXES)})
    (message,) = messages(report)
    assert "one has no objects, and those of the other fit the frame of that one alone" in message
    assert messages(check(tmp_path, {"a.png": (scene(), []), "b.png": (turn(scene(), 1), BOXES[:1])})) == []


def test_turned_copies_in_two_splits_are_a_leak(tmp_path: Path) -> None:
    images = {"a.png": (scene(), BOXES), "b.jpg": (turn(scene(), 2), turn_boxes(BOXES, 2))}
    report = check(tmp_path, images, val=("b.jpg",))
    (problem,) = report.problems
    assert problem.kind == "leak"
    assert "b.jpg of val: shows" in problem.message
    assert "a.png of train turned by 180°; remove one" in problem.message


def test_different_and_flat_images_are_not_copies() -> None:
    rng = np.random.default_rng(0)
    flat = [
        np.full((*SIZE, 3), 90, np.uint8) + rng.integers(0, 3, (*SIZE, 3)).astype(np.uint8) for _ in range(5)
    ]
    scenes = [scene(seed) for seed in range(20)]
    half = scene(30)
    half[:, 64:] = half[:, 63::-1]  # symmetric, so the turn of its copy is ambiguous
    images = [*flat, *scenes, half, turn(half, 2), scenes[0]]
    thumbs = [thumbnail(to_tensor(image)) for image in images]
    assert list(find_turned_copies(thumbs, [SIZE] * len(images))) == []
    assert list(find_turned_copies([], [])) == []
    thumbs.append(thumbnail(to_tensor(turn(scenes[3], 2))))
    (found,) = find_turned_copies(thumbs, [SIZE] * len(thumbs))
    assert (found.first, found.second, found.turn) == (5 + 3, len(images), 2)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_dark_images_are_no_copies_of_each_other() -> None:
    """Thumbnails without a distinct turn are left out, before their pairs are compared."""
    rng = np.random.default_rng(0)
    dark = list(rng.integers(7, 10, (300, 16, 16)).astype(np.uint8))
    assert list(find_turned_copies(dark, [SIZE] * 300)) == []


def test_pairs_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (16, 16))
    thumbs = [np.clip(base + rng.integers(-1, 2, (16, 16)), 0, 255).astype(np.uint8) for _ in range(12)]
    thumbs.append(np.rot90(thumbs[0]).copy())
    square = [(64, 64)] * 13
    copies = set(find_turned_copies(thumbs, square))
    assert copies == {(number, 12, 1) for number in range(12)}
    monkeypatch.setattr(turned_copies, "PAIR_CHUNK", 5)
    assert set(find_turned_copies(thumbs, square)) == copies
    # a quarter turn exchanges height and width
    assert not list(find_turned_copies(thumbs, [(64, 32)] * 13))
    assert set(find_turned_copies(thumbs, [*[(64, 32)] * 12, (32, 64)])) == copies
