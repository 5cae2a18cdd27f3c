"""Test the reduction of more than 8 bits to 8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedmask import Predictor
from embedmask.config import ReadOptions
from embedmask.data import depth
from embedmask.data.depth import reduce_depth, strips_of, white_level
from embedmask.data.images import read_image, read_size
from embedmask.weights.released import find_weights

from .containers import containers, scene, write_png

CONTAINERS = containers()


def reduced(values: np.ndarray, **options: object) -> np.ndarray:
    out = np.empty((*values.shape[:2], 3), np.uint8)
    values = values if values.ndim == 3 else values[..., None]
    reduce_depth(strips_of(values), out, options.pop("depth", "camera"), **options)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_yields_the_same_image(tmp_path: Path, name: str) -> None:
    CONTAINERS[name](tmp_path / name)
    image = read_image(tmp_path / name).numpy().astype(int)
    expected = np.rint(scene() * 255)
    assert read_size(tmp_path / name) == expected.shape
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize(
    "name", ["12 gray.png", "12 rgb.png", "16 rgba.png", "12 separate.tif", "12 white.tif", "float to 4.tif"]
)
def test_every_container_yields_the_same_detections(tmp_path: Path, name: str) -> None:
    predictor = Predictor.load(find_weights("nuclei"), device="cpu")
    eight = np.rint(scene() * 255).astype(np.uint8)
    CONTAINERS[name](tmp_path / name)
    detections, expected = predictor(tmp_path / name), predictor(eight)
    assert len(detections) == len(expected) == 6
    np.testing.assert_allclose(detections.xyxy, expected.xyxy, atol=0.5)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.uint32, np.float32])
def test_white_level_is_smallest_camera_depth(bits: int, kind: type) -> None:
    full = 2**bits - 1
    for top in (full, full * 3 // 4, full // 3):
        values = np.linspace(0, top, 400).round().reshape(20, 20).astype(kind)
        assert white_level(strips_of(values[..., None]), 400, "camera") == full
        np.testing.assert_array_equal(reduced(values)[..., 0], np.rint(values * (255 / full)))


@pytest.mark.parametrize(
    ("top", "white"),
    [(0.01, 1), (1.0, 1), (1.2, 4), (3.9, 4), (5.5, 16), (60.5, 64), (64.5, 255), (300.5, 1023)],
)
def test_white_level_of_fractions(top: float, white: float) -> None:
    values = np.linspace(0, top, 400, dtype=np.float64).reshape(20, 20, 1)
    assert white_level(strips_of(values), 400, "camera") == white


def test_whole_floats_are_not_fractions() -> None:
    values = np.arange(400, dtype=np.float32).reshape(20, 20, 1) % 5
    assert white_level(strips_of(values), 400, "camera") == 255


def test_brightest_value_is_white_beyond_16_bits() -> None:
    values = np.array([[-5, 0], [100_000, 200_000]], dtype=np.int32)
    assert reduced(values)[..., 0].tolist() == [[0, 0], [128, 255]]


def test_white_level_of_signed_type_is_its_maximum() -> None:
    values = np.array([[-300, 0], [16384, 32767]], dtype=np.int16)
    assert reduced(values)[..., 0].tolist() == [[0, 0], [128, 255]]


def test_non_finite_values_are_black() -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, 0.5]], dtype=np.float32)
    assert reduced(values)[..., 0].tolist() == [[0, 0], [0, 128]]


@pytest.mark.parametrize("kind", ["u2", "f4", "u4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_hot_pixels_do_not_set_the_range(kind: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    dim = rng.integers(0, 141, (60, 80, channels)).astype(kind)
    hot = dim.copy()
    hot[10, 10] = hot[40, 70] = np.iinfo(np.uint16).max
    hot[50:52, 20] = 5000  # a short trace of one px
    plain, clipped = reduced(dim), reduced(hot)
    same = (hot == dim).all(-1)
    np.testing.assert_array_equal(clipped[same], plain[same])
    assert (clipped[~same] == 255).all()


def test_small_bright_object_is_not_clipped() -> None:
    values = np.full((200, 200), 100, np.uint16)
    values[50:54, 60:64] = np.arange(16).reshape(4, 4) * 100 + 2000
    image = reduced(values)
    np.testing.assert_array_equal(image[..., 0], np.rint(values * (255 / 4095)))


def test_many_bright_pixels_are_not_hot() -> None:
    values = np.full((100, 100, 1), 100, np.uint16)
    values[::5, ::5] = 3000  # 4 % of the image, no two of them side by side
    assert white_level(strips_of(values), 10_000, "camera") == 4095


def test_overshoot_of_fractions_is_clipped() -> None:
    values = scene().astype(np.float32)
    values[5, 5] = 1.7
    assert white_level(strips_of(values[..., None]), values.size, "camera") == 1


def test_depth_option_applies_beyond_8_bits() -> None:
    deep = np.array([[0, 100], [300, 4000]], np.uint16)
    assert reduced(deep, depth=400.0)[..., 0].tolist() == [[0, 64], [191, 255]]
    eight = np.array([[0, 100], [200, 255]], np.uint8)
    assert reduced(eight, depth=400.0)[..., 0].tolist() == eight.tolist()


def test_channels_share_white_level(tmp_path: Path) -> None:
    values = np.zeros((20, 20, 3), np.uint16)
    values[..., 0], values[..., 1], values[..., 2] = 4000, 200, 40
    write_png(tmp_path / "a.png", values)
    image = read_image(tmp_path / "a.png")
    assert image[:, 0, 0].tolist() == np.rint(np.array([4000, 200, 40]) * (255 / 4095)).tolist()


@given(seed=st.integers(0, 99), height=st.integers(1, 12), width=st.integers(1, 12), rows=st.integers(1, 5))
def test_strips_do_not_change_white_level(seed: int, height: int, width: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.random((height, width, 1)) ** 8 * 5000).astype(np.uint16)

    def strips() -> list[tuple[int, np.ndarray]]:
        return [(top, values[top : top + rows]) for top in range(0, height, rows)]

    num = height * width
    assert white_level(strips, num, "camera") == white_level(lambda: [(0, values)], num, "camera")


@pytest.mark.parametrize("name", ["12 rgb.png", "12 gray alpha.png", "12 rgb.tif", "12 separate.tif"])
def test_strips_do_not_change_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    CONTAINERS[name](tmp_path / name)
    whole = read_image(tmp_path / name)
    monkeypatch.setattr(depth, "STRIP_VALUES", 5 * 64)
    assert (read_image(tmp_path / name) == whole).all()


def test_depth_option_applies_to_files(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 100, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", options=ReadOptions(depth=400.0)).unique().tolist() == [64]
