"""visualize: drawn pixels are where they belong, and no others change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedmask._supervision import CompactMask, sv
from embedmask.errors import BadInput, UnsupportedImage
from embedmask.visualize import (
    GAP,
    MASK_OPACITY,
    MAX_LABELS,
    PALETTE,
    contact_sheet,
    draw_detections,
    plot_counts,
    plot_curves,
    side_by_side,
    write_image,
)

NAMES = ["disc", "star"]


def detections(boxes: list[list[int]], size: tuple[int, int], compact: bool = True) -> sv.Detections:
    """Return objects that fill their boxes, of alternating classes."""
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    dense = np.zeros((len(boxes), *size), bool)
    for mask, (x1, y1, x2, y2) in zip(dense, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return sv.Detections(
        xyxy=xyxy,
        mask=CompactMask.from_dense(dense, xyxy - [0, 0, 1, 1], size) if compact else dense,
        confidence=np.linspace(0.9, 0.4, len(boxes), dtype=np.float32),
        class_id=np.arange(len(boxes)) % 2,
    )


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("compact", [True, False])
def test_masks_are_tinted_inside_and_nothing_outside(image: np.ndarray, compact: bool) -> None:
    before = image.copy()
    drawn = draw_detections(image, detections([[40, 50, 80, 100]], (120, 160), compact), NAMES)
    assert np.array_equal(image, before)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    color = np.array(PALETTE.by_idx(0).as_rgb())
    expected = (1 - MASK_OPACITY) * image[55:95, 45:75] + MASK_OPACITY * color
    assert np.abs(drawn[55:95, 45:75] - expected).max() <= 1.5
    outside = np.ones((120, 160), bool)
    outside[30:101, 39:150] = False  # the text stands above the box
    assert np.array_equal(drawn[outside], image[outside])
    assert (drawn[50, 40:80] == color).all()


def test_tensor_and_array_give_the_same(image: np.ndarray) -> None:
    objects = detections([[40, 50, 80, 100]], (120, 160))
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert np.array_equal(draw_detections(tensor, objects, NAMES), draw_detections(image, objects, NAMES))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), image)


def test_touching_objects_of_a_class_differ(image: np.ndarray) -> None:
    objects = detections([[20, 40, 60, 100], [60, 40, 100, 100]], (120, 160))
    objects.class_id = np.zeros(2, int)
    drawn = draw_detections(np.zeros_like(image), objects, NAMES).astype(int)
    assert np.abs(drawn[70, 40] - drawn[70, 80]).max() > 30


def test_nothing_to_draw(image: np.ndarray) -> None:
    drawn = draw_detections(image, detections([], (120, 160)), NAMES)
    assert np.array_equal(drawn, image)
    drawn[:] = 0
    assert image.any()


def test_compact_masks_stay_compact(image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("made dense")

    objects = detections([[40, 50, 80, 100], [0, 0, 30, 30]], (120, 160))
    for name in ("to_dense", "__array__"):
        monkeypatch.setattr(CompactMask, name, refuse)
    draw_detections(image, objects, NAMES)


def test_no_text_on_crowds_and_small_objects(image: np.ndarray) -> None:
    """Outside masks and boxes, only text could change pixels."""
    boxes = [[x, y, x + 6, y + 6] for y in range(20, 80, 10) for x in range(10, 150, 14)]
    assert len(boxes) > MAX_LABELS
    for some in (boxes, boxes[:5]):
        drawn = draw_detections(image, detections(some, (120, 160)), NAMES)
        outside = np.ones((120, 160), bool)
        for x1, y1, x2, y2 in some:
            outside[y1:y2, x1:x2] = False
        assert np.array_equal(drawn[outside], image[outside])
        assert not np.array_equal(drawn, image)


def test_text_follows_class_and_score(image: np.ndarray) -> None:
    objects = detections([[40, 50, 100, 100]], (120, 160))
    drawn = draw_detections(image, objects, NAMES)
    assert not np.array_equal(drawn, draw_detections(image, objects, ["other", "star"]))
    unscored = detections([[40, 50, 100, 100]], (120, 160))
    unscored.confidence = None
    assert not np.array_equal(drawn, draw_detections(image, unscored, NAMES))
    nameless = detections([[40, 50, 100, 100]], (120, 160))
    nameless.class_id = None
    draw_detections(image, nameless, NAMES)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (40, 2), (17, 33)])
def test_objects_that_fill_odd_images(size: tuple[int, int]) -> None:
    objects = detections([[0, 0, size[1], size[0]]], size)
    drawn = draw_detections(np.zeros((*size, 3), np.uint8), objects, NAMES)
    assert drawn.shape == (*size, 3)
    assert drawn[-1, -1].any()


def test_contact_sheet() -> None:
    sizes = [(10, 20), (30, 5), (8, 8), (1, 1), (4, 40)]
    images = [np.full((*size, 3), 10 * n, np.uint8) for n, size in enumerate(sizes)]
    sheet = contact_sheet(images, columns=2)
    assert sheet.shape == (30 + 8 + 4 + 2 * GAP, 40 + 5 + GAP, 3)
    for value, (height, width) in enumerate(sizes):
        assert (sheet == 10 * value).all(-1).sum() == height * width
    assert (sheet[:10, :20] == 0).all()
    assert (sheet[:30, 40 + GAP :] == 10).all()
    assert (sheet[42 + 0 :, :40] == 40).sum() > 0
    assert contact_sheet(images[:1], columns=9).shape == (10, 20, 3)
    assert contact_sheet([], columns=3).shape == (1, 1, 3)


@pytest.mark.parametrize("width", [6, 40, 400])
def test_side_by_side(width: int) -> None:
    left, right = np.full((30, width, 3), 7, np.uint8), np.full((30, width, 3), 9, np.uint8)
    plain = contact_sheet([left, right], columns=2)
    assert plain.shape == (30, 2 * width + GAP, 3)
    titled = side_by_side(left, right, titles=("ground truth", "prediction"))
    extra = titled.shape[0] - 30
    assert extra > 5
    assert np.array_equal(titled[extra:], plain)
    if width >= 40:
        heading = titled[:extra].min(-1)
        assert heading[:, :width].min() < 100
        assert heading[:, -width:].min() < 100
        assert (heading[:, width : width + GAP] == 255).all()


def rows(count: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"epoch": n, "step": 50 * n, "loss/total": 3 / (n + 1), "loss/mask": 1 / (n + 1)}
        for n in range(count)
    ]
    for row in made[1::2]:
        row |= {"segm/AP": 0.1, "segm/AP50": 0.2, "bbox/AP": 0.2, "segm/AP_large": float("nan"), "lr": 0.1}
    return made


@pytest.mark.parametrize("count", [0, 1, 2, 80])
def test_plot_curves(tmp_path: Path, count: int) -> None:
    pytest.importorskip("matplotlib")
    plot_curves(rows(count), tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as figure:
        assert figure.width >= 600
        assert figure.width > 1200 or count < 2
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_plot_curves_accepts_rows_of_a_csv_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    texts = [{name: str(value) for name, value in row.items()} | {"segm/AP75": ""} for row in rows(6)]
    plot_curves(texts, tmp_path / "a.png")
    plot_curves(rows(6), tmp_path / "b.png")
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(tmp_path / "b.png"))
    )


@pytest.mark.parametrize("name", ["a.psd", "a.fits", "a.cur", "a.text", "a"])
def test_raises_on_names_of_other_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="not the name of an image"):
        write_image(np.zeros((4, 4, 3), np.uint8), tmp_path / name)


def test_raises_on_images_that_the_format_cannot_store(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedImage, match=r"a\.jpg: JPEG cannot store an image of 1 x 70000 px"):
        write_image(np.zeros((70_000, 1, 3), np.uint8), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_plot_counts_accepts_any_class_name(tmp_path: Path) -> None:
    """Invalid mathematics, line breaks, emoji, a lone surrogate, and names that are equal once shortened."""
    names = ["cost $x_$ \\frac$", "_a\r\nb\t", "\u7d30\U0001f9a0\ud800", "l" * 300, "l" * 301, "%s{}"]
    plot_counts({"train": {name: (n, 0, 0) for n, name in enumerate(names, 1)}}, tmp_path / "counts.png")
    with Image.open(tmp_path / "counts.png") as image:
        assert image.size == (660, 360)


@pytest.mark.parametrize(("splits", "classes"), [(0, 0), (1, 0), (1, 80), (3, 2)])
def test_plot_counts(tmp_path: Path, splits: int, classes: int) -> None:
    counts = {f"class {number}": (number, 2, 0) for number in range(classes)}
    plot_counts({f"split {number}": counts for number in range(splits)}, tmp_path / "counts.png")
    with Image.open(tmp_path / "counts.png") as image:
        drawn = np.asarray(image.convert("RGB"))
    blue = (abs(drawn.astype(int) - (31, 119, 180)).sum(-1) < 30).sum()  # the first color: small objects
    assert (blue > 2500) == (classes > 0)  # the legend alone has fewer
