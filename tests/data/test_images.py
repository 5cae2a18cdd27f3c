from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as F

from embedmask.data.images import read_image, read_size, resize_image
from embedmask.errors import BadInput


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack((x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)), -1).astype(
        np.uint8
    )


def save(photo: Image.Image, path: Path, **options: object) -> Path:
    photo.save(path, **options)  # type: ignore[arg-type]
    return path


def test_rgb_is_exact_from_every_source(tmp_path: Path) -> None:
    pixels = noise(7, 5)
    path = save(Image.fromarray(pixels), tmp_path / "a.png")
    with Image.open(path) as opened:
        sources = [path, str(path), path.read_bytes(), Image.fromarray(pixels), opened]
        for source in sources:
            image = read_image(source)
            assert image.dtype == torch.uint8
            assert image.shape == (3, 7, 5)
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)
        assert opened.getpixel((0, 0)) == tuple(pixels[0, 0].tolist())  # the caller's photo stays usable


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK", "RGBA", "YCbCr"])
def test_modes_are_converted_to_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow before 13 cannot read the uncompressed YCbCr TIFF that it writes")
    photo = Image.fromarray(smooth(24, 16)).convert(mode)
    suffix = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    image = read_image(save(photo, tmp_path / f"a.{suffix}"))
    expected = np.asarray(photo.convert("RGB"))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    rgba = np.dstack((noise(6, 4), np.zeros((6, 4), np.uint8)))
    image = read_image(save(Image.fromarray(rgba), tmp_path / "a.png"))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), rgba[..., :3])


def test_palette_with_transparency_keeps_the_palette_colors(tmp_path: Path) -> None:
    photo = Image.fromarray(smooth(20, 20)).convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    path = save(photo, tmp_path / "a.png", transparency=bytes(range(0, 160, 10)))
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), np.asarray(photo.convert("RGB")))


@pytest.mark.parametrize(
    ("top", "full"), [(200, 255), (1000, 1023), (4095, 4095), (9000, 16383), (65535, 65535)]
)
def test_deep_gray_is_scaled_by_camera_depth(tmp_path: Path, top: int, full: int) -> None:
    deep = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
    image = read_image(save(Image.fromarray(deep), tmp_path / "a.png"))
    assert (image[0] == image[1]).all()
    assert (image[0] == image[2]).all()
    np.testing.assert_array_equal(image[0].numpy(), np.rint(deep * (255 / full)).astype(np.uint8))


def test_integers_and_fractions_are_scaled(tmp_path: Path) -> None:
    wide = np.array([[-5, 0], [100_000, 200_000]], dtype=np.int32)
    assert read_image(save(Image.fromarray(wide), tmp_path / "a.tif"))[0].tolist() == [[0, 0], [128, 255]]
    fractions = np.array([[0, 0.5], [1.0, np.nan]], dtype=np.float32)
    assert read_image(save(Image.fromarray(fractions), tmp_path / "b.tif"))[0].tolist() == [
        [0, 128],
        [255, 0],
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    photo = Image.fromarray(smooth(24, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(photo, tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(path) as opened:
        stored, upright = np.asarray(opened), np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), upright)
    np.testing.assert_array_equal(read_image(path, upright=False).permute(1, 2, 0).numpy(), stored)
    assert read_size(path) == upright.shape[:2]
    assert upright.shape[:2] == ((40, 24) if orientation >= 5 else (24, 40))


def test_deep_gray_is_rotated_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    path = save(Image.fromarray(deep), tmp_path / "a.png", exif=exif)
    assert read_image(path).shape == (3, 4, 3)


def cut(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, format=suffix)
    return buffer.getvalue()[:2000]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jpg", cut("jpeg")),
        ("cut.png", cut("png")),
        ("cut.tif", cut("tiff")),
        ("text.png", b"not an image"),
        ("empty.png", b""),
        ("head.png", b"\x89PNG\r\n\x1a\n" + bytes(40)),
    ],
)
def test_raises_on_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput, match=name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="shown as this"):
        read_image(content, name="shown as this")


def test_raises_on_missing_files_and_folders(tmp_path: Path) -> None:
    for read in (read_image, read_size):
        with pytest.raises(BadInput, match=r"none\.png: no such image"):
            read(tmp_path / "none.png")
        with pytest.raises(BadInput, match="cannot be read as an image, since it is a folder"):
            read(tmp_path)


@pytest.mark.parametrize("size", [(53, 71), (20, 90), (160, 31), (1, 1), (64, 48)])
def test_resize_matches_pillow_and_torchvision(size: tuple[int, int]) -> None:
    pixels = noise(64, 48)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    resized = resize_image(image, size)
    expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized.permute(1, 2, 0).numpy(), expected)
    other = F.resize(image, list(size), antialias=True)
    assert (resized.int() - other.int()).abs().max() <= 1


def test_resize_to_same_size_returns_the_image() -> None:
    image = torch.zeros(3, 5, 6, dtype=torch.uint8)
    assert resize_image(image, (5, 6)) is image


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_resized_box_matches_part_of_resized_image(data: st.DataObject) -> None:
    height, width = data.draw(st.tuples(st.integers(4, 40), st.integers(4, 40)))
    new_height, new_width = data.draw(st.tuples(st.integers(4, 80), st.integers(4, 80)))
    top, left = data.draw(st.integers(0, new_height - 1)), data.draw(st.integers(0, new_width - 1))
    bottom, right = data.draw(st.integers(top + 1, new_height)), data.draw(st.integers(left + 1, new_width))
    image = torch.from_numpy(noise(height, width)).permute(2, 0, 1)
    sy, sx = new_height / height, new_width / width
    box = (left / sx, top / sy, min(right / sx, width), min(bottom / sy, height))
    part = resize_image(image, (bottom - top, right - left), box)
    whole = resize_image(image, (new_height, new_width))[:, top:bottom, left:right]
    assert (part.int() - whole.int()).abs().max() <= 1  # Pillow's filter weights are rounded


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_any_size_reads_decompression_bombs(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(Image.fromarray(smooth(30, 40)), tmp_path / f"large.{suffix}")
    expected = read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        BadInput, match=r"large\.\w+: too large to be read at once \(.*1200 pixels.*; predict"
    ):
        read_image(path)
    assert torch.equal(read_image(path, any_size=True), expected)
    assert torch.equal(read_image(path.read_bytes(), any_size=True), expected)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(BadInput, match="no such image"):
        read_image(tmp_path / "none.png", any_size=True)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "I", "F", "I;16"])
def test_strips_do_not_change_the_result(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = np.arange(24 * 16).reshape(24, 16)
    images = {
        "I": Image.fromarray(deep.astype(np.int32)),
        "F": Image.fromarray((deep / 500).astype(np.float32)),
        "I;16": Image.fromarray(deep.astype(np.uint16)),
    }
    photo = images.get(mode) or Image.fromarray(smooth(24, 16)).convert(mode)
    whole = read_image(photo)
    monkeypatch.setattr("embedmask.data.depth.STRIP_VALUES", 5 * 16)
    assert torch.equal(read_image(photo), whole)
