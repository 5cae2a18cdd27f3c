"""Frame of the annotations of images with an EXIF orientation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from embedmask.data.check import check_folder
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_header, read_image, read_size

from .conftest import annotation, polygon

RED = (220, 60, 50)


def photo(path: Path, orientation: int, size: tuple[int, int] = (40, 60)) -> None:
    """Write a gray image with a red rectangle off its center, as stored; `size` is `(height, width)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size[::-1], (90, 90, 90))
    image.paste(RED, (4, 26, 16, 34))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))


def red_box(path: Path, upright: bool) -> tuple[tuple[int, int], list[int]]:
    """Return the image size and the rectangle xywh as decoded by Pillow."""
    image = Image.open(path)
    image.load()
    image = ImageOps.exif_transpose(image) if upright else image
    red = np.asarray(image)[..., 0].astype(int) - np.asarray(image)[..., 2] > 80
    ys, xs = np.nonzero(red)
    box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
    return image.size[::-1], [int(value) for value in box]


def write(
    folder: Path, photos: dict[str, tuple[int, bool]], split: str = "train", size: tuple[int, int] = (40, 60)
) -> Path:
    """Write a COCO data set; `photos` has the orientation of each image and whether its annotation is upright."""
    images, annotations = [], []
    for number, (name, (orientation, upright)) in enumerate(photos.items(), start=1):
        path = folder / "images" / name
        photo(path, orientation, size)
        (height, width), box = red_box(path, upright)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        annotations.append(annotation(number, number, category_id=1, bbox=box, segmentation=[polygon(*box)]))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def lies_on_red(dataset: CocoInstances, index: int = 0) -> bool:
    image, target = dataset[index]
    x1, y1, x2, y2 = (int(value) for value in target.boxes[0].tolist())
    inside = image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean((1, 2)).tolist()
    return inside[0] > 180 and inside[2] < 100


@pytest.mark.parametrize(
    ("orientation", "upright"), [(n, True) for n in range(1, 9)] + [(n, False) for n in range(5, 9)]
)
def test_image_size_decides_the_frame(tmp_path: Path, orientation: int, upright: bool) -> None:
    decides = orientation >= 5
    write(tmp_path, {"a.png": (orientation, upright)})
    for exif in ("auto", "upright", "stored") if decides else ("auto", "upright"):
        dataset = CocoInstances.open(tmp_path, "train", exif=exif)
        assert lies_on_red(dataset)
        assert (dataset.warnings == []) == (decides or orientation == 1 or exif != "auto")


@pytest.mark.parametrize(
    ("orientation", "size"), [(n, (40, 60)) for n in (2, 3, 4)] + [(n, (60, 60)) for n in (5, 6, 7, 8)]
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_option_decides_if_both_frames_fit(
    tmp_path: Path, orientation: int, size: tuple[int, int], suffix: str
) -> None:
    stored = tmp_path / f"stored.{suffix}"
    photo(stored, orientation, size)
    raw = tmp_path / "raw.png"
    photo(raw, 1, size)  # the same pixels without a mark: the stored frame of every format
    box = red_box(raw, True)[1]
    content = {
        "images": [{"id": 1, "file_name": stored.name, "height": size[0], "width": size[1]}],
        "annotations": [annotation(1, 1, category_id=1, bbox=box, segmentation=[polygon(*box)])],
        "categories": [{"id": 1, "name": "box"}],
    }
    (tmp_path / "images").mkdir()
    stored.rename(tmp_path / "images" / stored.name)
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert lies_on_red(CocoInstances.open(tmp_path, "train", exif="stored"))
    for exif in ("auto", "upright"):
        dataset = CocoInstances.open(tmp_path, "train", exif=exif)
        assert not lies_on_red(dataset)
        assert len(dataset.warnings) == (exif == "auto")
    (warned,) = CocoInstances.open(tmp_path, "train").warning_lines()
    assert warned.startswith("warning: ")
    assert f"EXIF orientation {orientation}, and image 1 fits its size both upright and as stored" in warned


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_headers_agree_with_decoded_images(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    photo(path, orientation)
    upright, stored = read_image(path), read_image(path, upright=False)
    assert read_size(path) == tuple(upright.shape[1:]) == ((60, 40) if orientation > 4 else (40, 60))
    assert read_header(path) == (tuple(stored.shape[1:]), orientation) == ((40, 60), orientation)


def test_reports_ambiguous_images_with_the_unambiguous_counts(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": (3, True), "b.jpg": (4, True), "c.jpg": (6, False), "d.jpg": (1, True)})
    write(tmp_path, {"e.png": (1, True)}, "val")
    report = check_folder(tmp_path)
    ambiguous = [p for p in report.problems if p.kind == "EXIF orientation"]
    assert [Path(p.message.partition(":")[0]).name for p in ambiguous] == ["a.png", "b.jpg"]
    assert all("(images with only one possible frame: 1 stored)" in p.message for p in ambiguous)
    assert all("--data.exif upright or stored" in p.message for p in ambiguous)
    assert not report.fatal
    assert [(split, e.image_id) for split, e in report.examples["EXIF orientation"]] == [
        ("train", 1),
        ("train", 2),
    ]
    for exif in ("upright", "stored"):
        assert "EXIF orientation" not in [p.kind for p in check_folder(tmp_path, exif=exif).problems]


def test_reports_frames_that_differ_between_splits(tmp_path: Path) -> None:
    write(tmp_path, {"a.jpg": (6, True)})
    write(tmp_path, {"b.jpg": (8, False)}, "val")
    mixed = [p for p in check_folder(tmp_path).problems if p.kind == "mixed EXIF frames"]
    assert len(mixed) == 1
    assert "a.jpg" in mixed[0].message
    assert "(train: 1 upright; val: 1 stored)" in mixed[0].message
    assert all(lies_on_red(CocoInstances.open(tmp_path, split)) for split in ("train", "val"))
    write(tmp_path, {"b.jpg": (8, True)}, "val")
    assert [p for p in check_folder(tmp_path).problems if p.kind == "mixed EXIF frames"] == []


@pytest.mark.parametrize("upright", [True, False])
def test_yolo_sizes_never_decide_the_frame(tmp_path: Path, upright: bool) -> None:
    path = tmp_path / "images/train/a.jpg"
    photo(path, 6)
    (height, width), (x, y, w, h) = red_box(path, upright)
    corners = np.array(polygon(x, y, w, h)) / np.tile([width, height], 4)
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text(" ".join(map(str, [0, *corners.tolist()])))
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [box]\n")
    datasets: dict[str, Any] = {
        exif: CocoInstances.open(tmp_path, "train", exif=exif) for exif in ("auto", "upright", "stored")
    }
    assert lies_on_red(datasets["auto"]) == lies_on_red(datasets["upright"]) == upright
    assert lies_on_red(datasets["stored"]) == (not upright)
    assert [len(dataset.warnings) for dataset in datasets.values()] == [1, 0, 0]
    assert datasets["stored"].sizes == [(40, 60)]
