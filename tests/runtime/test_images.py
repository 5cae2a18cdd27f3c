"""The runtime reads and resizes images as `Predictor` does, byte by byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedmask import ModelConfig
from embedmask import runtime as images
from embedmask.data.images import read_image
from embedmask.data.transforms import EvalTransform, resized_size
from embedmask.export.metadata import settings_from

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def settings_of(**changes: object) -> images.Settings:
    return settings_from(ModelConfig.preset("paper", num_classes=1, **changes), ["thing"], dense_masks=False)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 900), st.sampled_from(["down", "nearest"]))
def test_sizes(height: int, width: int, short: int, rounding: str) -> None:
    settings = settings_of(image_short_side=short, image_long_side=1333, image_rounding=rounding)
    expected = resized_size((height, width), short, 1333, rounding)  # type: ignore[arg-type]
    assert settings.resized_size((height, width)) == expected


@pytest.mark.parametrize("short", [20, 37, 64, None])
def test_resized_pixels_are_equal(short: int | None) -> None:
    config = ModelConfig.preset("paper", num_classes=1, image_short_side=short, image_long_side=100)
    expected = EvalTransform.from_config(config).image(torch.from_numpy(PIXELS).permute(2, 0, 1))
    found = images.resize(PIXELS, settings_of(image_short_side=short, image_long_side=100))
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_files_of_each_mode(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image = Image.fromarray(PIXELS).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    found = images.read_image(path, settings_of())
    assert found.shape == (53, 37, 3)
    assert np.array_equal(found, read_image(path).permute(1, 2, 0).numpy())


def test_channels_and_pages(tmp_path: Path) -> None:
    path = tmp_path / "stack.gif"
    Image.fromarray(PIXELS).save(path, save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    config = ModelConfig.preset("paper", num_classes=1, image_page=1, image_channels=(2,))
    found = images.read_image(path, settings_of(image_page=1, image_channels=(2,)))
    assert np.array_equal(found, read_image(path, options=config.reading()).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "values", [np.zeros((4, 5), np.uint16), np.zeros((4, 5, 2), np.uint8), np.zeros(3, np.uint8)]
)
def test_other_arrays_are_refused(values: np.ndarray) -> None:
    with pytest.raises(images.BadFile, match=r"pass uint8 RGB \[H, W, 3\]"):
        images.read_image(values, settings_of())


def test_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(images.BadFile, match="more than 8 bits"):
        images.read_image(tmp_path / "deep.png", settings_of())


def test_broken_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(images.BadFile, match=r"text\.png: cannot be read as an image"):
        images.read_image(tmp_path / "text.png", settings_of())
    with pytest.raises(images.BadFile, match=r"gone\.png: no such image"):
        images.read_image(tmp_path / "gone.png", settings_of())
