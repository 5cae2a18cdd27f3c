"""Masks in the formats of other programs: reading them restores the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from embedmask.data.label_images import label_objects
from embedmask.data.yolo import read_yolo
from embedmask.errors import BadInput
from embedmask.masks import MaskCrop, RunMasks
from embedmask.predict import polygons
from embedmask.predict.polygons import label_image, labelme, outline, pieces, rings, yolo_lines
from embedmask.structures import Instances

Bools = NDArray[np.bool_]
any_mask = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)).filter(np.any)
RING = np.pad(np.zeros((3, 4), bool), 2, constant_values=True)


def fill(paths: list[NDArray[np.float64]], size: tuple[int, int]) -> Bools:
    """Fill polygons with COCO's own code."""
    runs = mask_api.frPyObjects([path.ravel().tolist() for path in paths], *size)
    return mask_api.decode(mask_api.merge(runs)).astype(bool)


def slow_edges(mask: Bools) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """Return every edge between a pixel of the mask and one outside, as its two ends."""
    padded = np.pad(mask, 1)
    edges = set()
    for y, x in np.ndindex(*padded.shape):
        if x + 1 < padded.shape[1] and padded[y, x] != padded[y, x + 1]:
            edges.add(((x, y - 1), (x, y)))
        if y + 1 < padded.shape[0] and padded[y, x] != padded[y + 1, x]:
            edges.add(((x - 1, y), (x, y)))
    return edges


def unit_edges(ring: NDArray[np.int64]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Split the edges of a ring into edges of one pixel."""
    edges = []
    for a, b in zip(ring, np.roll(ring, -1, 0), strict=True):
        step = np.sign(b - a)
        for k in range(int(np.abs(b - a).sum())):
            ends = sorted((tuple((a + k * step).tolist()), tuple((a + (k + 1) * step).tolist())))
            edges.append((ends[0], ends[1]))
    return edges


def scene(masks: list[Bools], labels: list[int], size: tuple[int, int], seed: int = 0) -> Instances:
    """Create instances at random positions, by descending score."""
    rng = np.random.default_rng(seed)
    crops = [MaskCrop(mask, *rng.integers(0, np.array(size) - mask.shape + 1).tolist()) for mask in masks]
    count = len(masks)
    return Instances(
        torch.zeros(count, 4),
        torch.linspace(0.9, 0.5, count),
        torch.tensor(labels, dtype=torch.int64),
        RunMasks.from_crops(crops, size),
    )


@given(any_mask)
def test_rings_equal_mask_edges(mask: Bools) -> None:
    edges = [edge for ring in rings(mask) for edge in unit_edges(ring)]
    assert len(edges) == len(set(edges))
    assert set(edges) == slow_edges(mask)


@given(any_mask, st.integers(0, 5), st.integers(0, 5))
def test_outline_restores_mask(mask: Bools, y: int, x: int) -> None:
    size = (mask.shape[0] + y, mask.shape[1] + x)
    expected = np.pad(mask, ((y, 0), (x, 0)))
    np.testing.assert_array_equal(fill([outline(mask) + (x, y)], size), expected)  # noqa: RUF005


@given(any_mask)
def test_pieces_restore_mask(mask: Bools) -> None:
    whole = np.zeros_like(mask)
    for piece, (top, left) in pieces(mask):
        window = whole[top : top + piece.shape[0], left : left + piece.shape[1]]
        assert not (window & piece).any()
        window |= piece
    np.testing.assert_array_equal(whole, mask)


def test_outline_has_corners_only() -> None:
    assert outline(np.ones((40, 70), bool)).tolist() == [[0, 0], [70, 0], [70, 40], [0, 40]]
    assert len(outline(RING)) == 4 + 1 + 4 + 1


@given(st.lists(any_mask, min_size=1, max_size=4), st.integers(0, 99))
def test_yolo_restores_masks(masks: list[Bools], seed: int) -> None:
    instances = scene(masks, [seed % 3] * len(masks), (17, 23), seed)
    for line, mask in zip(yolo_lines(instances), instances.masks.to_dense().numpy(), strict=True):
        label, *values = line.split()
        assert label == str(seed % 3)
        points = np.array(values, float).reshape(-1, 2) * (23, 17)
        np.testing.assert_array_equal(fill([points.astype(np.float32)], (17, 23)), mask)


def test_yolo_round_trip_of_wide_image(tmp_path: Path) -> None:
    size = (60, 20_000)
    instances = scene([RING, np.eye(5, dtype=bool), np.zeros((0, 0), bool)], [1, 0, 1], size)
    Image.new("L", size[::-1]).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n".join(yolo_lines(instances)))
    problems: list[object] = []
    content = read_yolo([tmp_path / "a.png"], {0: "x", 1: "y"}, tmp_path / "data.yaml", problems.append)
    assert problems == []
    assert [entry["category_id"] for entry in content["annotations"]] == [1, 0]  # the empty one has no line
    for index, entry in enumerate(content["annotations"]):
        read = fill(entry["segmentation"], size)
        np.testing.assert_array_equal(read, instances.masks.to_dense()[index])


@given(st.lists(any_mask, max_size=5), st.integers(0, 99))
def test_label_image_resolves_overlaps_by_score(masks: list[Bools], seed: int) -> None:
    instances = scene(masks, [0] * len(masks), (15, 14), seed)
    labels = label_image(instances.masks, "a.png")
    assert labels.dtype == np.uint16
    expected = np.zeros((15, 14), np.uint16)
    for number, mask in enumerate(instances.masks.to_dense().numpy(), start=1):
        expected[mask & (expected == 0)] = number
    np.testing.assert_array_equal(labels, expected)


def test_label_image_restores_masks() -> None:
    instances = scene([RING], [0], (30, 20))
    ((number, read),) = label_objects(label_image(instances.masks, "a.png"))
    assert number == 1
    np.testing.assert_array_equal(read.pixels(0, 0, 20, 30), instances.masks.to_dense()[0])


def test_label_image_raises_on_too_many_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    pixel = np.ones((1, 1), bool)
    many = scene([pixel] * 3, [0] * 3, (4, 4)).masks
    monkeypatch.setattr(polygons, "MAX_LABELS", 2)
    with pytest.raises(BadInput, match=r"a\.png: 3 objects, but a label image holds at most 2"):
        label_image(many, "a.png")
    monkeypatch.undo()
    empty = RunMasks([np.zeros((0, 2), np.int32)] * 65536, (4, 4))
    with pytest.raises(BadInput, match="65536 objects"):
        label_image(empty, "a.png")
    assert label_image(empty.select(range(65535)), "a.png").max() == 0


def test_labelme_has_one_polygon_per_piece() -> None:
    two = np.zeros((6, 9), bool)
    two[:2, :3] = two[4:, 5:] = True
    instances = scene([two, RING], [1, 0], (40, 50))
    written = labelme(instances, ["cat", "dog"], "../a b.jpg")
    assert (written["imagePath"], written["imageHeight"], written["imageWidth"]) == ("../a b.jpg", 40, 50)
    shapes = written["shapes"]
    assert [(shape["label"], shape["group_id"]) for shape in shapes] == [("dog", 1), ("dog", 1), ("cat", 2)]
    assert shapes[2]["description"] == "score 0.5000"
    for number in (1, 2):
        parts = [np.array(shape["points"]) for shape in shapes if shape["group_id"] == number]
        np.testing.assert_array_equal(fill(parts, (40, 50)), instances.masks.to_dense()[number - 1])


def test_outline_filled_by_pillow() -> None:
    """Check Pillow, which also fills the pixels under a polygon's edge: one more row and column only."""
    canvas = Image.new("1", (20, 12))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in outline(np.ones((5, 7), bool))], fill=1)
    painted = np.asarray(canvas)
    assert painted[:5, :7].all()
    assert painted.sum() <= 6 * 8
