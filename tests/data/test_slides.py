"""Images read by windows: OME-TIFF and OME-Zarr, every level, page and channel, and the whole image as reference."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyramids import textured, write_ome_tiff, write_ome_zarr

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.images import open_slide, read_downsample, read_extent, read_image, read_size
from embedmask.data.slides import Slide, downsample_of
from embedmask.errors import BadInput
from embedmask.inference.image_source import open_image

pytest.importorskip("zarr")
VERSIONS = ("0.4", "0.5")
RGB = ("FF0000", "00FF00", "0000FF")


def opened(path: Path, **options: Any) -> Slide:
    slide = open_slide(path, ReadOptions(**options))
    assert slide is not None
    return slide


def whole(slide: Slide) -> np.ndarray[Any, Any]:
    return slide[:, :, :].permute(1, 2, 0).numpy()


def test_windows_of_a_tiff_pyramid(tmp_path: Path) -> None:
    levels = write_ome_tiff(tmp_path / "a.ome.tif", textured(150, 201), "YXS")
    for level, expected in enumerate(levels):
        slide = opened(tmp_path / "a.ome.tif", level=level)
        assert slide.shape == (3, *expected.shape[:2])
        assert slide.downsample == (2.0**level, 2.0**level)
        np.testing.assert_array_equal(whole(slide), expected)
        np.testing.assert_array_equal(slide[:, 9:30, 5:37].permute(1, 2, 0).numpy(), expected[9:30, 5:37])
        # the whole image, read by the readers of other TIFF files
        options = ReadOptions(level=level)
        assert torch.equal(read_image(tmp_path / "a.ome.tif", options=options), slide[:, :, :])
        assert read_size(tmp_path / "a.ome.tif", options) == expected.shape[:2]


@pytest.mark.parametrize("version", VERSIONS)
def test_windows_of_ome_zarr(version: str, tmp_path: Path) -> None:
    values = textured(150, 201).transpose(2, 0, 1)
    levels = write_ome_zarr(tmp_path / "a.zarr", values, "CYX", version, colors=RGB)
    for level, expected in enumerate(levels):
        slide = opened(tmp_path / "a.zarr", level=level)
        np.testing.assert_array_equal(slide[:, :, :].numpy(), expected)
        np.testing.assert_array_equal(slide[:, 9:30, 5:37].numpy(), expected[:, 9:30, 5:37])
        assert slide.downsample == (2.0**level, 2.0**level)
        options = ReadOptions(level=level)
        assert torch.equal(read_image(tmp_path / "a.zarr", options=options), slide[:, :, :])
        assert read_size(tmp_path / "a.zarr", options) == expected.shape[1:]
        assert read_downsample(tmp_path / "a.zarr", options) == slide.downsample


@pytest.mark.parametrize("kind", ["tiff", *VERSIONS])
def test_pages_and_channels(kind: str, tmp_path: Path) -> None:
    # two times, three planes, two channels
    values = textured(70, 90, 12).transpose(2, 0, 1).reshape(2, 3, 2, 70, 90)
    path = tmp_path / "a"
    if kind == "tiff":
        levels = write_ome_tiff(path, values, "TZCYX", 2)
    else:
        levels = write_ome_zarr(path, values, "TZCYX", kind, levels=2)
    assert read_extent(path) is not None
    for page, channel, level in [(0, 0, 0), (4, 1, 0), (2, 1, 1), (5, 0, 1)]:
        slide = opened(path, page=page, channels=(channel,), level=level)
        expected = levels[level][page // 3, page % 3, channel]
        np.testing.assert_array_equal(whole(slide), np.repeat(expected[..., None], 3, 2))
    slide = opened(path, page=3, channels=(1, 0, 1))
    np.testing.assert_array_equal(whole(slide), values[1, 0][[1, 0, 1]].transpose(1, 2, 0))


def test_pages_are_channels_of_a_stack_without_channels(tmp_path: Path) -> None:
    values = textured(70, 66, 4).transpose(2, 0, 1)
    write_ome_zarr(tmp_path / "z.zarr", values, "ZYX")
    slide = opened(tmp_path / "z.zarr", channels=(3, 1, 0))
    np.testing.assert_array_equal(slide[:, :, :].numpy(), values[[3, 1, 0]])


def test_unread_pages_and_channels_are_reported(tmp_path: Path) -> None:
    write_ome_zarr(tmp_path / "a.zarr", textured(64, 64, 6).transpose(2, 0, 1).reshape(2, 3, 64, 64), "ZCYX")
    lines: list[str] = []
    open_slide(tmp_path / "a.zarr", notice=lines.append)
    assert lines == [
        "2 pages, page 0 is used; choose with page",
        "3 channels, channel 0 is used; choose with channels",
    ]


@settings(max_examples=12, deadline=None)
@given(
    high=st.integers(1, 65535),
    dtype=st.sampled_from([np.uint16, np.int16, np.float32]),
    channels=st.integers(1, 3),
)
def test_depth_is_reduced_as_of_the_whole_image(
    high: int, dtype: type[Any], channels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(high)
    values = rng.integers(0, min(high, 32767) + 1, (channels, 90, 70)).astype(dtype)
    values[0, 0, 0] = 32767  # a hot pixel
    if dtype is np.float32:
        values /= 7
    folder = tmp_path_factory.mktemp("depth")
    chosen = (0, channels - 1, 0)
    tifffile.imwrite(
        folder / "flat.tif", values[list(chosen)], photometric="minisblack", metadata={"axes": "CYX"}
    )
    expected = read_image(folder / "flat.tif", options=ReadOptions(channels=(0, 1, 2)))
    write_ome_zarr(folder / "a.zarr", values, "CYX", levels=1)
    slide = opened(folder / "a.zarr", channels=chosen)
    window = slide[:, 13:64, 7:69]
    assert torch.equal(window, expected[:, 13:64, 7:69])


def test_ordinary_images_are_not_slides(tmp_path: Path) -> None:
    Image.fromarray(textured(80, 90)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", textured(80, 90), photometric="rgb")
    tifffile.imwrite(tmp_path / "tiled.tif", textured(80, 90), photometric="rgb", tile=(64, 64))
    for name in ("a.png", "a.tif", "tiled.tif"):
        assert open_slide(tmp_path / name, DEFAULT_READING) is None


def test_very_large_tiled_images_are_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "tiled.tif", textured(80, 90), photometric="rgb", tile=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    np.testing.assert_array_equal(whole(opened(tmp_path / "tiled.tif")), textured(80, 90))
    planar = {"planarconfig": "separate", "metadata": {"axes": "CYX"}}
    values = textured(80, 90).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "planar.tif", values, photometric="rgb", tile=(64, 64), **planar)
    np.testing.assert_array_equal(whole(opened(tmp_path / "planar.tif")), textured(80, 90))


def test_missing_tiles_are_background(tmp_path: Path) -> None:
    import zarr

    write_ome_zarr(tmp_path / "a.zarr", np.ones((1, 128, 128), np.uint8), "CYX", levels=1)
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    group.create_array("0", shape=(1, 10**5, 10**5), chunks=(1, 64, 64), dtype=np.uint8, overwrite=True)
    slide = opened(tmp_path / "a.zarr")
    assert slide.shape == (3, 10**5, 10**5)
    assert not slide[:, 10**5 - 90 :, 50_000:50_100].any()


BAD = {
    "level": ({"level": 3}, "has 3 levels, level 3 is requested; they count from 0"),
    "page": ({"page": 2}, "has 1 page, page 2 is requested; they count from 0"),
    "channel": ({"channels": (5,)}, "has 3 channels, channel 5 is requested; they count from 0"),
}


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
@pytest.mark.parametrize("case", BAD)
def test_missing_parts(kind: str, case: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if kind == "tiff":
        write_ome_tiff(path, textured(150, 130), "YXS")
    else:
        write_ome_zarr(path, textured(150, 130).transpose(2, 0, 1), "CYX", colors=RGB)
    options, message = BAD[case]
    for read in (open_slide, lambda path, options: read_image(path, options=options)):
        with pytest.raises(BadInput, match=f"^{path}: {message}$"):
            read(path, ReadOptions(**options))


def test_level_of_an_image_without_levels(tmp_path: Path) -> None:
    Image.fromarray(textured(80, 90)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"a\.png: has 1 level, level 1 is requested"):
        read_image(tmp_path / "a.png", options=ReadOptions(level=1))


def test_zarr_without_multiscales(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(tmp_path / "group.zarr", mode="w").create_group("0")
    zarr.save(str(tmp_path / "array.zarr"), np.zeros((3, 3)))
    for name in ("group.zarr", "array.zarr"):
        with pytest.raises(
            BadInput, match=r"zarr: is not an OME-Zarr image: it has no multiscales; pass the group"
        ):
            open_slide(tmp_path / name)
    write_ome_zarr(tmp_path / "old.zarr", textured(64, 64).transpose(2, 0, 1), "CYX")
    group = zarr.open_group(tmp_path / "old.zarr", mode="r+")
    image: Any = group.attrs["multiscales"]
    for damage in ({"axes": None}, {"axes": [{"name": "y"}, {"name": "x"}]}, {"datasets": [{"path": "9"}]}):
        group.attrs["multiscales"] = [{**image[0], **damage}]
        with pytest.raises(
            BadInput, match=r"old\.zarr: its multiscales are damaged or older than OME-Zarr 0\.4"
        ):
            open_slide(tmp_path / "old.zarr")


def test_zarr_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ome_zarr(tmp_path / "a.zarr", textured(64, 64).transpose(2, 0, 1), "CYX")
    write_ome_tiff(tmp_path / "a.tif", textured(150, 130), "YXS")
    real = builtins.__import__

    def without_zarr(name: str, *rest: Any) -> Any:
        if name == "zarr":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_zarr)
    for name in ("a.zarr", "a.tif"):
        with pytest.raises(BadInput, match=r"needs zarr; pip install 'embedmask\[microscopy\]'$"):
            open_slide(tmp_path / name)


def test_truncated_pyramid(tmp_path: Path) -> None:
    write_ome_tiff(tmp_path / "a.tif", textured(512, 512), "YXS", compression=None)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 4])
    with pytest.raises(BadInput, match=r"a\.tif: cannot be read as an image"):
        open_image(tmp_path / "a.tif", "a", tiled=True, options=DEFAULT_READING)


def test_downsample_ignores_rounding() -> None:
    assert downsample_of((100_001, 77), (25_000, 20)) == (4.0, 4.0)
    assert downsample_of((1000, 1000), (1000, 1000)) == (1.0, 1.0)
    assert downsample_of((1000, 1500), (800, 1000)) == (1.25, 1.5)
