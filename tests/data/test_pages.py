"""Test which pages and channels are read, and the report on the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedmask.config import ReadOptions
from embedmask.data.check import check_folder
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_extent, read_image, read_numbers, read_size
from embedmask.data.pages import Extent, report_defaults
from embedmask.errors import BadInput

from .folders import write_label_images

HEIGHT, WIDTH = 20, 30


def planes(*shape: int, dtype: Any = np.uint16) -> np.ndarray:
    """Return planes of constant values 1, 2, 3, ..., with a corner that spans 12 bits."""
    values = np.arange(1, np.prod(shape) + 1).reshape(*shape, 1, 1) * np.ones((HEIGHT, WIDTH))
    values = values * (100 if dtype != np.uint8 else 10)
    values[..., :4, :4] = 4000 if dtype != np.uint8 else 255
    return values.astype(dtype)


def level(path: Path, **options: Any) -> list[int]:
    """Return the plane that each of R, G and B shows."""
    image = read_image(path, options=ReadOptions(**options))
    assert image.shape == (3, HEIGHT, WIDTH)
    scale = 100 * 255 / 4095
    return [round(float(value) / scale) for value in image[:, 10, 10]]


STACKS: dict[str, tuple[tuple[int, ...], dict[str, Any], int, int]] = {
    "ome CYX": ((3,), {"ome": True, "metadata": {"axes": "CYX"}}, 1, 3),
    "ome ZYX": ((3,), {"ome": True, "metadata": {"axes": "ZYX"}}, 3, 1),
    "ome ZCYX": ((2, 3), {"ome": True, "metadata": {"axes": "ZCYX"}}, 2, 3),
    "ome CZYX": ((3, 2), {"ome": True, "metadata": {"axes": "CZYX"}}, 2, 3),
    "ome TZCYX": ((2, 2, 2), {"ome": True, "metadata": {"axes": "TZCYX"}}, 4, 2),
    "imagej CYX": ((4,), {"imagej": True, "metadata": {"axes": "CYX"}}, 1, 4),
    "imagej ZCYX": ((2, 2), {"imagej": True, "metadata": {"axes": "ZCYX"}}, 2, 2),
    "imagej without pages": ((3,), {"imagej": True, "truncate": True, "metadata": {"axes": "ZYX"}}, 3, 1),
    "plain": ((3,), {"photometric": "minisblack", "metadata": None}, 3, 1),
    "samples": ((5,), {"photometric": "minisblack", "planarconfig": "separate"}, 1, 5),
    "samples CYX": (
        (5,),
        {"photometric": "minisblack", "planarconfig": "separate", "metadata": {"axes": "CYX"}},
        1,
        5,
    ),
    "samples ZCYX": (
        (2, 3),
        {"photometric": "minisblack", "planarconfig": "separate", "metadata": {"axes": "ZCYX"}},
        2,
        3,
    ),
    "packed": ((2, 3), {"ome": True, "metadata": {"axes": "ZCYX"}, "compression": "zlib"}, 2, 3),
}


@pytest.mark.parametrize("name", STACKS)
def test_pages_and_channels_of_tiff(tmp_path: Path, name: str) -> None:
    shape, how, num_pages, num_channels = STACKS[name]
    path = tmp_path / "stack.tif"
    values = planes(*shape)
    tifffile.imwrite(path, values, **how)
    assert read_extent(path) == Extent(num_pages, num_channels, in_color=False)
    axes = how.get("metadata") or {}
    order = axes.get("axes", "ZYX" if num_channels == 1 else "CYX")[:-2]
    table = np.arange(1, np.prod(shape) + 1).reshape(shape)
    table = np.moveaxis(table, order.index("C"), -1) if "C" in order else table[..., None]
    table = table.reshape(num_pages, num_channels)
    assert level(path) == [table[0, 0]] * 3
    for page in range(num_pages):
        for channel in range(num_channels):
            assert level(path, page=page, channels=(channel,)) == [table[page, channel]] * 3
    last = num_channels - 1
    assert level(path, page=0, channels=(last, 0, 0)) == [table[0, last], table[0, 0], table[0, 0]]
    assert read_size(path, ReadOptions(page=num_pages - 1)) == (HEIGHT, WIDTH)
    with pytest.raises(BadInput, match=rf"stack\.tif: has {num_pages} pages?, page {num_pages} is requested"):
        read_image(path, options=ReadOptions(page=num_pages))
    with pytest.raises(BadInput, match=rf"stack\.tif: has {num_channels} channels?, channel 9 is requested"):
        read_image(path, options=ReadOptions(page=0, channels=(9,)))


def test_pages_are_channels_of_single_channel_file(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, planes(3), photometric="minisblack", metadata=None)
    assert level(path, channels=(2, 1, 0)) == [3, 2, 1]
    assert level(path, channels=(1,)) == [2, 2, 2]
    assert list(read_extent(path).unread(ReadOptions(channels=(1,)))) == []  # type: ignore[union-attr]


def test_white_is_0_in_each_page(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    values = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), np.uint8)
    tifffile.imwrite(path, values, photometric="miniswhite", metadata=None)
    for page in range(3):
        assert (read_image(path, options=ReadOptions(page=page)).numpy() == 255 - values[page]).all()
    image = read_image(path, options=ReadOptions(channels=(2, 0, 1)))
    np.testing.assert_array_equal(image.numpy(), 255 - values[[2, 0, 1]])


def test_pages_of_several_sizes(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    pages = [
        np.full((HEIGHT, WIDTH), 10, np.uint8),
        np.full((8, 9), 20, np.uint8),
        np.full((HEIGHT, WIDTH), 30, np.uint8),
    ]
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page)
    for number, page in enumerate(pages):
        options = ReadOptions(page=number)
        assert read_image(path, options=options).unique().tolist() == [page[0, 0]]
        assert read_size(path, options) == page.shape
    Image.fromarray(pages[0]).save(path, save_all=True, append_images=[Image.fromarray(p) for p in pages[1:]])
    assert [read_image(path, options=ReadOptions(page=n))[0, 0, 0] for n in range(3)] == [10, 20, 30]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_frames_of_animations(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [Image.new("RGB", (16, 12), color) for color in colors]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=100,
        **({"lossless": True} if suffix == "webp" else {}),
    )
    assert read_extent(path) == Extent(3)
    for page, color in enumerate(colors):
        image = read_image(path, options=ReadOptions(page=page))
        assert image[:, 3, 3].tolist() == list(color)
        assert read_image(path.read_bytes(), options=ReadOptions(page=page))[:, 3, 3].tolist() == list(color)
    assert read_image(path)[:, 3, 3].tolist() == list(colors[0])
    assert read_image(path, options=ReadOptions(channels=(0,)))[:, 3, 3].tolist() == [250] * 3
    with pytest.raises(BadInput, match="has 3 pages, page 3 is requested"):
        read_image(path, options=ReadOptions(page=3))


def test_channels_of_color_and_gray(tmp_path: Path) -> None:
    pixels = np.zeros((6, 7, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", options=ReadOptions(channels=(2, 1, 0)))[:, 0, 0].tolist() == [
        30,
        20,
        10,
    ]
    assert read_image(tmp_path / "a.png", options=ReadOptions(channels=(1,)))[:, 0, 0].tolist() == [20] * 3
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b.png")
    with pytest.raises(BadInput, match=r"b\.png: has 1 channel, channel 2 is requested"):
        read_image(tmp_path / "b.png", options=ReadOptions(channels=(2, 1, 0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_further_channels_are_not_alpha_or_color(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "a.tif"
    for count in (2, 4, 5):
        values = planes(count, dtype=dtype).transpose(1, 2, 0)
        tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
        assert read_extent(path) == Extent(1, count, in_color=False)
        gray = read_image(path)
        assert (gray == gray[:1]).all()
    tifffile.imwrite(path, planes(4, dtype=dtype).transpose(1, 2, 0), photometric="rgb", extrasamples=[0])
    assert read_extent(path) == Extent(1, 4, in_color=True)
    red, near = read_image(path), read_image(path, options=ReadOptions(channels=(3,)))
    assert red[0, 10, 10] < red[2, 10, 10] < near[0, 10, 10]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_is_rotated_upright(tmp_path: Path, orientation: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = (rng.random((HEIGHT, WIDTH)) * (1 if dtype == np.float32 else 250)).astype(dtype)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, extratags=[(274, 3, 1, orientation, True)])
    turned = (
        values, values[:, ::-1], values[::-1, ::-1], values[::-1],
        values.T, np.rot90(values, -1), values[::-1, ::-1].T, np.rot90(values),
    )[orientation - 1]  # fmt: skip
    expected = np.rint(turned * 255) if dtype == np.float32 else turned
    upright = read_image(path)[0].numpy()
    np.testing.assert_array_equal(upright, expected)
    assert read_size(path) == upright.shape


def test_defaults_are_reported_in_one_line(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", planes(2, 3), ome=True, metadata={"axes": "ZCYX"})
    tifffile.imwrite(tmp_path / "b.tif", planes(5), metadata=None)
    Image.new("RGB", (9, 9)).save(tmp_path / "c.png")
    (tmp_path / "d.tif").write_bytes(b"none")
    paths = sorted(tmp_path.iterdir())
    assert report_defaults(paths, ReadOptions(), read_extent) == [
        "2 files with several pages: page 0 is used (a.tif: 2 pages); choose with --page",
        "1 file with several channels: channel 0 is used (a.tif: 3 channels); choose with --channels",
    ]
    assert report_defaults(paths, ReadOptions(page=0, channels=(0,)), read_extent) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.float32])
def test_label_images_of_any_dtype(tmp_path: Path, dtype: Any) -> None:
    labels = np.zeros((2, 9, 8), dtype)
    labels[0, 2:4, 3:5], labels[1, 5:, 1:3] = 7, 200
    path = tmp_path / "a.tif"
    for packed in (None, "zlib"):
        tifffile.imwrite(path, labels, compression=packed, metadata=None)
        np.testing.assert_array_equal(read_numbers(path), labels[0])
        np.testing.assert_array_equal(read_numbers(path, 1), labels[1])
    with pytest.raises(BadInput, match="has 2 pages, page 2 is requested"):
        read_numbers(path, 2)
    tifffile.imwrite(path, labels[1])
    np.testing.assert_array_equal(read_numbers(path, 1), labels[1])  # the only one


def test_data_set_of_stacks(tmp_path: Path) -> None:
    write_label_images(tmp_path, suffix=".tif")
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        values = np.asarray(Image.open(path))
        values = values if "masks" in str(path) else values[..., 0]
        path.unlink()
        other = np.zeros_like(values)
        tifffile.imwrite(path.with_suffix(".tif"), np.stack([other, values]), metadata=None)
    plain = CocoInstances.open(tmp_path, "val")
    assert "2 files with several pages: page 0 is used" in "".join(plain.warning_lines())
    assert sum(len(plain[i][1]) for i in range(2)) == 0
    options = ReadOptions(page=1)
    second = CocoInstances.open(tmp_path, "val", options=options)
    assert second.warnings == []
    assert [len(second[i][1]) for i in range(2)] == [1, 3]
    assert second[0][0].max() > plain[0][0].max() == 0
    kinds = [problem.kind for problem in check_folder(tmp_path).problems if not problem.fatal]
    assert kinds.count("several pages") == 4  # images and label images of two splits
    chosen = check_folder(tmp_path, options=options)
    assert "several pages" not in [problem.kind for problem in chosen.problems]
