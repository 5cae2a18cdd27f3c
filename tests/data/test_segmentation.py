from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from pycocotools import mask as reference

from embedmask.data.segmentation import (
    Polygons,
    RunLengths,
    Window,
    parse_segmentation,
)
from embedmask.errors import BadInput
from embedmask.masks import MaskCrop

from .conftest import polygon, run_lengths

masks = npst.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.booleans())
filled_masks = masks.filter(lambda mask: mask.any())


def spread(crop: MaskCrop | None, window: Window) -> np.ndarray:
    """Return a crop placed in its window."""
    full = np.zeros((window[3] - window[1], window[2] - window[0]), dtype=bool)
    if crop is not None:
        pixels, row, column = crop
        full[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
    return full


def sample_window(data: st.DataObject, height: int, width: int) -> Window:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    return left, top, data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))


@settings(max_examples=300)
@given(text=st.text(st.characters(min_codepoint=32, max_codepoint=127), max_size=12) | st.text(max_size=5))
def test_damaged_text_raises_or_adds_up(text: str) -> None:
    try:
        parsed = parse_segmentation({"size": [4, 5], "counts": text}, (4, 5))
    except BadInput:
        return
    assert isinstance(parsed, RunLengths)
    assert parsed.counts.sum() == 20
    assert parsed.counts.min() >= 0


@given(mask=filled_masks, compressed=st.booleans(), data=st.data())
def test_run_lengths_equal_the_mask(mask: np.ndarray, compressed: bool, data: st.DataObject) -> None:
    runs = parse_segmentation(run_lengths(mask, compressed), mask.shape)
    assert isinstance(runs, RunLengths)
    window = sample_window(data, *mask.shape)
    left, top, right, bottom = window
    np.testing.assert_array_equal(runs.pixels(*window), mask[top:bottom, left:right])
    np.testing.assert_array_equal(
        spread(runs.paint((1.0, 1.0), window), window), mask[top:bottom, left:right]
    )
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    assert runs.bounds() == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@settings(deadline=None)
@given(mask=filled_masks, factor=st.floats(0.3, 3), data=st.data())
def test_resized_run_lengths_equal_the_whole_mask_resized(
    mask: np.ndarray, factor: float, data: st.DataObject
) -> None:
    height, width = (max(round(side * factor), 1) for side in mask.shape)
    window = sample_window(data, height, width)
    left, top, right, bottom = window
    runs = parse_segmentation(run_lengths(mask), mask.shape)
    painted = spread(runs.paint((height / mask.shape[0], width / mask.shape[1]), window), window)
    whole = Image.fromarray(mask * np.uint8(255)).resize((width, height), Image.Resampling.BILINEAR)
    levels = np.asarray(whole)[top:bottom, left:right].astype(int)
    clear = abs(levels - 127.5) > 2  # Pillow's filter weights are rounded
    np.testing.assert_array_equal(painted[clear], levels[clear] >= 128)


def star(rng: np.random.Generator, center: tuple[float, float], radius: float) -> list[float]:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
    radii = radius * rng.uniform(0.3, 1, len(angles))
    return (
        np.stack((center[0] + radii * np.cos(angles), center[1] + radii * np.sin(angles)), -1)
        .ravel()
        .tolist()
    )


@pytest.mark.parametrize("seed", range(40))
def test_polygons_in_a_window_equal_a_crop_of_the_whole_image(seed: int) -> None:
    """Compare with pycocotools, which paints the whole resized image before it is cropped."""
    rng = np.random.default_rng(seed)
    size, (height, width) = (60, 80), (int(rng.integers(20, 160)), int(rng.integers(20, 200)))
    sy, sx = height / size[0], width / size[1]
    parts = [star(rng, (rng.uniform(0, 80), rng.uniform(0, 60)), 25) for _ in range(seed % 3 + 1)]
    left, top = int(rng.integers(0, width // 2)), int(rng.integers(0, height // 2))
    window = (left, top, int(rng.integers(left + 5, width)), int(rng.integers(top + 5, height)))
    polygons = Polygons([np.array(part, dtype=np.float32).reshape(-1, 2) for part in parts])
    stored = [part * np.array((sx, sy)) for part in polygons.parts]
    runs = reference.frPyObjects([part.ravel().tolist() for part in stored], height, width)
    whole = reference.decode(reference.merge(runs))
    expected = whole[top : window[3], left : window[2]].astype(bool)
    painted = spread(polygons.paint((sy, sx), window), window)
    assert (painted != expected).sum() == 0


def test_polygon_parts_are_united() -> None:
    parts = [polygon(2, 2, 6, 4), polygon(5, 3, 6, 4), polygon(15, 15, 2, 2)]
    painted = spread(parse_segmentation(parts, (20, 20)).paint((1, 1), (0, 0, 20, 20)), (0, 0, 20, 20))
    expected = np.zeros((20, 20), dtype=bool)
    for x, y, w, h in ((2, 2, 6, 4), (5, 3, 6, 4), (15, 15, 2, 2)):
        expected[y : y + h, x : x + w] = True
    np.testing.assert_array_equal(painted, expected)


def test_objects_outside_the_window_are_not_painted() -> None:
    square = parse_segmentation([polygon(2, 2, 4, 4)], (20, 20))
    assert square.paint((1, 1), (10, 10, 20, 20)) is None
    mask = np.zeros((20, 20), dtype=bool)
    mask[2:6, 2:6] = True
    assert parse_segmentation(run_lengths(mask), (20, 20)).paint((1, 1), (10, 0, 20, 20)) is None


def test_a_single_pixel_survives() -> None:
    mask = np.zeros((9, 7), dtype=bool)
    mask[8, 6] = True
    runs = parse_segmentation(run_lengths(mask), (9, 7))
    assert runs.bounds() == (6, 8, 7, 9)
    np.testing.assert_array_equal(spread(runs.paint((1, 1), (0, 0, 7, 9)), (0, 0, 7, 9)), mask)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no segmentation"),
        ([], "no segmentation"),
        ("abc", "no segmentation"),
        ([[1, 2, 3, 4]], "2 points"),
        ([polygon(1, 1, 3, 3), []], "0 points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x, y pairs"),
        ([[[1, 2], [3, 4], [5, 6]]], "x, y pairs"),
        ([1, 2, 3, 4, 5, 6], "x, y pairs"),
        ([["a", 2, 3, 4, 5, 6]], "not a list of numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, float("inf")]], "not finite"),
        ([polygon(500, 1, 5, 5)], "far outside"),
        ({"size": [5, 4], "counts": [20]}, "size"),
        ({"counts": [20]}, "size"),
        ({"size": [4, 5], "counts": [3, 4]}, "add up"),
        ({"size": [4, 5], "counts": [3, -4, 21]}, "add up"),
        ({"size": [4, 5], "counts": [20]}, "empty mask"),
        ({"size": [4, 5], "counts": [1.5, 18.5]}, "counts"),
        ({"size": [4, 5], "counts": None}, "counts"),
        ({"size": [4, 5], "counts": ""}, "damaged"),
        ({"size": [4, 5], "counts": "o"}, "damaged"),
    ],
)
def test_raises_on_invalid_segmentation(value: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse_segmentation(value, (4, 5))
