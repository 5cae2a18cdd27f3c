from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedmask.data.check import Report, check_folder
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput

from .conftest import annotation, polygon, run_lengths
from .folders import SIZE, WRITERS, change_json, write_label_images, write_plain, write_yolo


def kinds(report: Report) -> list[str]:
    return [problem.kind for problem in report.problems]


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("quick", [False, True])
def test_valid_data_sets_have_no_problems(tmp_path: Path, layout: str, quick: bool) -> None:
    WRITERS[layout](tmp_path)
    calls: list[tuple[int, int]] = []
    report = check_folder(tmp_path, quick=quick, progress=lambda done, total: calls.append((done, total)))
    assert report.problems == []
    assert not report.fatal
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    train, val = report.splits["train"], report.splits["val"]
    assert (train.num_images, train.num_empty, train.most) == (2, 1, 2)
    assert (val.num_images, val.num_empty, val.most) == (2, 0, 3)
    names = ["object"] if layout == "label images" else ["disc", "star"]
    counts = [(3, 1, 0)] if layout == "label images" else [(2, 0, 0), (1, 1, 0)]
    assert val.counts == dict(zip(names, counts, strict=True))


def test_object_sizes_are_those_of_coco(tmp_path: Path) -> None:
    """Objects are small below 32 x 32 px and large from 96 x 96 px."""
    write_plain(tmp_path)
    sides = [31, 32, 95, 96]

    def grow(content: dict[str, Any]) -> None:
        content["images"][0].update(height=100, width=100)
        content["annotations"] = [
            annotation(
                i, 10, category_id=3, segmentation=[polygon(0, 0, side, side)], bbox=[0, 0, side, side]
            )
            for i, side in enumerate(sides)
        ]

    change_json(tmp_path / "train.json", grow)
    Image.new("RGB", (100, 100)).save(tmp_path / "images/a.png")
    assert check_folder(tmp_path).splits["train"].counts["disc"] == (1, 2, 1)


def spoil_everything(folder: Path) -> None:
    """Write a train split with one problem of each type."""
    write_plain(folder)

    def change(content: dict[str, Any]) -> None:
        images, categories = content["images"], content["categories"]
        images += [
            {"id": number, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
            for number, name in ((20, "gone"), (21, "cut"), (22, "large"), (23, "a"), (10, "e"))
        ]
        categories += [{"id": 4, "name": "ghost"}, {"id": 4, "name": "double"}]
        content["annotations"] += [
            annotation(100, 10, category_id=3, bbox=[4, 6, 0, 8], segmentation=[polygon(20, 20, 9, 9)]),
            annotation(101, 10, category_id=3, segmentation=[[4, 6, 8, 9]]),
            annotation(102, 10, category_id=3, segmentation=run_lengths(np.zeros(SIZE, dtype=bool))),
            annotation(103, 99, category_id=3),
            annotation(104, 10, category_id=99),
            annotation(105, 10, category_id=3),
            annotation(105, 10, category_id=3),
            annotation(106, 10, category_id=3, segmentation=[polygon(4, 6, 0.5, 0.5)], bbox=[4, 6, 0.5, 0.5]),
        ]

    change_json(folder / "train.json", change)
    whole = (folder / "images/c.png").read_bytes()
    (folder / "images/cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (31, 40)).save(folder / "images/large.png")
    Image.open(folder / "images/d.png").save(folder / "images/b.png", compress_level=0)


EVERYTHING = {
    "duplicate id": 4,
    "degenerate polygon": 1,
    "empty mask": 1,
    "unknown image": 1,
    "unknown category": 1,
    "missing image": 1,
    "different classes": 1,
    "broken image": 1,
    "wrong size": 1,
    "unused category": 1,
    "crowded image": 1,
    "tiny object": 1,
    "object twice": 1,
    "bad box": 1,
    "bad area": 1,
    "same image twice": 1,
    "leak": 1,
}


def test_reports_all_problems(tmp_path: Path) -> None:
    spoil_everything(tmp_path)
    report = check_folder(tmp_path, max_detections=3)
    found = kinds(report)
    assert {kind: found.count(kind) for kind in found} == EVERYTHING
    assert report.fatal
    messages = {problem.kind: problem.message for problem in report.problems}
    assert all("\n" not in message for message in messages.values())
    assert "gone.png" in messages["missing image"]
    assert "cut.png" in messages["broken image"]
    assert "large.png: is (40, 31)" in messages["wrong size"]
    assert "d.png of val: is the same image as" in messages["leak"]
    assert "b.png of train; remove one" in messages["leak"]
    assert "category 4 (ghost)" in messages["unused category"]
    assert "a.png: has 6 objects, but at most 3 detections" in messages["crowded image"]
    by_kind = [kind for kind, _ in report.by_kind()]
    assert set(by_kind) == set(EVERYTHING)
    fatal = {problem.kind for problem in report.problems if problem.fatal}
    assert set(by_kind[: len(fatal)]) == fatal
    assert {"leak", "same image twice", "unused category", "crowded image", "tiny object"} <= set(
        by_kind
    ) - fatal
    assert json.loads(json.dumps(report.to_dict()))["problems"][0].keys() == {"kind", "message", "fatal"}


def test_quick_check_misses_problems_that_need_decoding(tmp_path: Path) -> None:
    spoil_everything(tmp_path)
    found = kinds(check_folder(tmp_path, max_detections=3, quick=True))
    assert set(EVERYTHING) - set(found) == {"broken image", "leak"}
    (tmp_path / "images/b.png").write_bytes((tmp_path / "images/d.png").read_bytes())
    (tmp_path / "images/cut.png").write_bytes(b"no image")
    assert set(EVERYTHING) == set(kinds(check_folder(tmp_path, max_detections=3, quick=True)))


FATAL: dict[str, Callable[[Path], Any]] = {
    "two points": lambda f: change_json(
        f / "train.json", lambda c: c["annotations"][0].update(segmentation=[[4, 6, 3, 0]])
    ),
    "image gone": lambda f: (f / "images/b.png").unlink(),
    "other classes": lambda f: change_json(f / "val.json", lambda c: c["categories"][0].update(name="x")),
    "no val": lambda f: (f / "val.json").unlink(),
    "no json": lambda f: (f / "train.json").write_text("{"),
    "no categories": lambda f: change_json(f / "train.json", lambda c: c.update(categories=[])),
}


@pytest.mark.parametrize("case", FATAL)
def test_training_raises_the_first_fatal_problem(tmp_path: Path, case: str) -> None:
    from embedmask.config import Recipe
    from embedmask.training.data_module import TrainValDataModule

    write_plain(tmp_path)
    FATAL[case](tmp_path)
    report = check_folder(tmp_path)
    assert report.fatal
    with pytest.raises(BadInput) as caught:
        TrainValDataModule(tmp_path, Recipe())
    assert str(caught.value) == next(problem.message for problem in report.problems if problem.fatal)


@pytest.mark.parametrize("spoil", ["broken image", "wrong size"])
def test_item_raises_the_reported_problem(tmp_path: Path, spoil: str) -> None:
    write_plain(tmp_path)
    file = tmp_path / "images/a.png"
    if spoil == "broken image":
        file.write_bytes(file.read_bytes()[:300])
    else:
        Image.new("RGB", (40, 40)).save(file)
    report = check_folder(tmp_path)
    assert kinds(report) == [spoil]
    with pytest.raises(BadInput) as caught:
        CocoInstances.open(tmp_path, "train")[0]
    assert str(caught.value) == report.problems[0].message


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("part", [0, 0.4, 0.95])
def test_reports_truncated_images(tmp_path: Path, suffix: str, part: float) -> None:
    write_plain(tmp_path)
    path = tmp_path / f"images/a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    change_json(tmp_path / "train.json", lambda c: c["images"][0].update(file_name=path.name))
    (problem,) = check_folder(tmp_path).problems
    assert (problem.kind, problem.fatal) == ("broken image", True)
    assert problem.message.startswith(f"{path}: cannot be read as an image")
    with pytest.raises(BadInput) as caught:
        CocoInstances.open(tmp_path, "train")[0]
    assert str(caught.value) == problem.message


def test_reports_thin_images(tmp_path: Path) -> None:
    write_plain(tmp_path)

    def change(content: dict[str, Any]) -> None:
        content["images"][1].update(height=1, width=5000)
        content["images"].append({"id": 50, "file_name": "e.png", "height": 100, "width": 3000})

    change_json(tmp_path / "train.json", change)
    Image.new("RGB", (5000, 1)).save(tmp_path / "images/b.png")
    Image.new("RGB", (3000, 100)).save(tmp_path / "images/e.png")
    (problem,) = check_folder(tmp_path).problems
    assert (problem.kind, problem.fatal) == ("thin image", False)
    assert "b.png: is 1 px high and 5000 px wide" in problem.message


def test_dropped_objects_are_warnings(tmp_path: Path) -> None:
    write_plain(tmp_path)
    FATAL["two points"](tmp_path)
    report = check_folder(tmp_path, degenerate="drop")
    assert [(problem.kind, problem.fatal) for problem in report.problems] == [
        ("degenerate polygon", False),
        ("unused category", False),
    ]


def test_problems_of_the_test_split_are_not_fatal(tmp_path: Path) -> None:
    write_plain(tmp_path)
    (tmp_path / "test.json").write_bytes((tmp_path / "val.json").read_bytes())
    change_json(tmp_path / "test.json", lambda c: c["annotations"][0].update(image_id=77))
    report = check_folder(tmp_path)
    assert not report.fatal
    assert kinds(report) == ["unknown image", "leak", "leak"]
    (tmp_path / "test.json").write_text("[")
    assert [(p.kind, p.fatal) for p in check_folder(tmp_path).problems] == [("unreadable annotations", False)]


def test_images_annotated_as_stored_are_valid(tmp_path: Path) -> None:
    write_plain(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO((tmp_path / "images/a.png").read_bytes()))
    image.save(tmp_path / "images/a.png", exif=exif)
    for quick in (False, True):
        assert check_folder(tmp_path, quick=quick).problems == []


def test_empty_and_missing_splits(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    for file in (tmp_path / "train/masks").iterdir():
        Image.new("L", SIZE[::-1]).save(file)
    for file in (tmp_path / "val/masks").iterdir():
        file.unlink()
    report = check_folder(tmp_path)
    assert kinds(report) == ["no objects", "missing split"]
    assert report.splits.keys() == {"train"}
    with pytest.raises(BadInput, match="no such data folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="--workers"):
        check_folder(tmp_path, workers=0)


def test_reports_problems_of_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(
        "0 0.5 0.5 0.1 0.1\n1 0.1 0.1 0.2 0.2 0.3 0.3\n5 0 0 1 0 1 1\n"
    )
    (tmp_path / "images/val/c.png").write_bytes(b"")
    (tmp_path / "images/train/b.png").unlink()
    (tmp_path / "labels/train/b.txt").write_text("0 0 0 1 0 1 1\n")
    report = check_folder(tmp_path)
    assert sorted(kinds(report)) == sorted(
        [
            "bad mask",
            "degenerate polygon",
            "unknown category",
            "no objects",
            "labels without image",
            "broken image",
        ]
    )
