"""The runtime reads and resizes images as `Predictor` does, byte by byte."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedmask import ModelConfig
from embedmask import runtime as images
from embedmask.data.images import read_image
from embedmask.data.transforms import EvalTransform, resized_size
from embedmask.errors import BadInput
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


@pytest.mark.parametrize("ending", ["bmp", "tif"])
def test_8_bits_are_recognized_at_any_width(ending: str, tmp_path: Path) -> None:
    """Pillow's arguments of the decoder also have the bytes of a row and the offset in the file, such as 216 or 16."""
    path = tmp_path / f"image.{ending}"
    for width in (5, 38, 53, 72):
        pixels = np.random.default_rng(width).integers(0, 256, (4, width, 3), np.uint8)
        if ending == "bmp":
            Image.fromarray(pixels).save(path)
        else:
            tifffile.imwrite(path, pixels, photometric="rgb", compression="deflate", bigtiff=width % 2 == 1)
        assert np.array_equal(images.read_image(path, settings_of()), pixels)


def test_channels_and_pages(tmp_path: Path) -> None:
    path = tmp_path / "stack.gif"
    Image.fromarray(PIXELS).save(path, save_all=True, append_images=[Image.fromarray(PIXELS[::-1])])
    config = ModelConfig.preset("paper", num_classes=1, image_page=1, image_channels=(2,))
    found = images.read_image(path, settings_of(image_page=1, image_channels=(2,)))
    assert np.array_equal(found, read_image(path, options=config.reading()).permute(1, 2, 0).numpy())


def read_both(path: Path, page: int | None, channels: tuple[int, ...] | None) -> list[np.ndarray | None]:
    """Read a file with the package and with the runtime; None if it is refused."""
    changes: dict[str, object] = {"image_page": page, "image_channels": channels}
    options = ModelConfig.preset("paper", num_classes=1, **changes).reading()
    found: list[np.ndarray | None] = []
    for read in (
        lambda: read_image(path, options=options).permute(1, 2, 0).numpy(),
        lambda: images.read_image(path, settings_of(**changes)),
    ):
        try:
            found.append(read())
        except (BadInput, images.BadFile):
            found.append(None)
    return found


@pytest.mark.parametrize(
    ("name", "shape", "description"),
    [
        ("gray.png", (20, 30), None),
        ("colors.png", (20, 30, 3), None),
        ("plain.tif", (3, 20, 30), {"metadata": None}),
        ("pages.tif", (3, 20, 30), {}),
        ("named.tif", (3, 20, 30), {"metadata": {"axes": "CYX"}}),
        ("depths.tif", (3, 20, 30), {"imagej": True, "metadata": {"axes": "ZYX"}}),
        ("channels.tif", (3, 20, 30), {"imagej": True, "metadata": {"axes": "CYX"}}),
        ("times.tif", (2, 2, 20, 30), {"imagej": True, "metadata": {"axes": "TCYX"}}),
        ("channels.ome.tif", (3, 20, 30), {"metadata": {"axes": "CYX"}}),
        ("colors.tif", (3, 20, 30, 3), {"photometric": "rgb"}),
    ],
)
def test_pages_and_channels_are_those_of_the_package_or_refused(
    name: str, shape: tuple[int, ...], description: dict[str, object] | None, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    if description is None:
        Image.fromarray(values).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, values, **{"photometric": "minisblack", **description})
    for page, channels in product((None, 0, 1, 2), (None, (0,), (1,), (3,), (2, 1, 0))):
        expected, found = read_both(tmp_path / name, page, channels)
        if name in ("gray.png", "colors.png", "colors.tif") or (channels is None and name[0] in "pd"):
            assert (found is None) == (expected is None), (page, channels)
        assert found is None or np.array_equal(found, expected), (page, channels)


def test_smaller_copies_are_no_pages(tmp_path: Path) -> None:
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        for step, kind in ((1, 0), (2, 1), (1, 0)):
            file.write(PIXELS[::step, ::step, 0], subfiletype=kind, metadata=None)
    for page in (1, 2):
        with pytest.raises(images.BadFile, match=r"pyramid\.tif: its frames may be channels or copies"):
            images.read_image(path, settings_of(image_page=page))


@pytest.mark.parametrize("channels", [(1,), (2, 1, 0)])
def test_channels_that_the_page_lacks_are_refused(channels: tuple[int, ...], tmp_path: Path) -> None:
    gray = [Image.fromarray(PIXELS[..., channel]) for channel in range(3)]
    gray[0].save(tmp_path / "stack.tif", save_all=True, append_images=gray[1:])
    with pytest.raises(images.BadFile, match=r"stack\.tif: its page has no channel [12]; predict stacks"):
        images.read_image(tmp_path / "stack.tif", settings_of(image_channels=channels))


def test_open_images_keep_their_channels(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "colors.png")
    with Image.open(tmp_path / "colors.png") as image:
        found = images.read_image(image, settings_of(image_page=1, image_channels=(1,)))
        options = ModelConfig.preset("paper", num_classes=1, image_channels=(1,)).reading()
        expected = read_image(image, options=options)
    assert np.array_equal(found, PIXELS)
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "values", [np.zeros((4, 5), np.uint16), np.zeros((4, 5, 2), np.uint8), np.zeros(3, np.uint8)]
)
def test_other_arrays_are_refused(values: np.ndarray) -> None:
    with pytest.raises(images.BadFile, match=r"pass uint8 RGB \[H, W, 3\]"):
        images.read_image(values, settings_of())


def test_values_other_than_uint8_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "deep.png")
    # Pillow would read -1 as 255
    tifffile.imwrite(tmp_path / "signed.tif", np.full((4, 5), -1, np.int8))
    for name in ("deep.png", "signed.tif"):
        with pytest.raises(images.BadFile, match=f"{name}: not unsigned 8 bits per value"):
            images.read_image(tmp_path / name, settings_of())


def test_broken_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(images.BadFile, match=r"text\.png: cannot be read as an image"):
        images.read_image(tmp_path / "text.png", settings_of())
    with pytest.raises(images.BadFile, match=r"gone\.png: no such image"):
        images.read_image(tmp_path / "gone.png", settings_of())
