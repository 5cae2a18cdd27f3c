"""Label images as TIFF, read back by tifffile and by the reader of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_polygons import RING, Bools, any_mask, scene

from embedmask.data.images import read_numbers
from embedmask.masks import RunMasks
from embedmask.predict import label_tiff
from embedmask.predict.label_tiff import write_label_tiff
from embedmask.predict.polygons import label_image


@settings(max_examples=20, deadline=None)
@given(masks=st.lists(any_mask, max_size=5), seed=st.integers(0, 99))
def test_tiles_equal_the_label_image(
    masks: list[Bools], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("labels") / "a.tif"
    instances = scene(masks, [0] * len(masks), (35, 40), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_tiff, "TILE", 16)
        assert not write_label_tiff(path, instances.masks)
    read = tifffile.imread(path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, label_image(instances.masks, "a"))
    np.testing.assert_array_equal(read, read_numbers(path))


def test_32_bits_beyond_65535_objects(tmp_path: Path) -> None:
    # one pixel, then many empty masks, then another pixel
    empty = np.zeros((0, 2), np.int32)
    pixels = [np.array([[0, 1]], np.int32), *[empty] * 65_534, np.array([[3, 4]], np.int32)]
    assert write_label_tiff(tmp_path / "a.tif", RunMasks(pixels, (1, 4)))
    read = tifffile.imread(tmp_path / "a.tif")
    assert read.dtype == np.uint32
    assert read.tolist() == [[1, 0, 0, 65_536]]
    assert not write_label_tiff(tmp_path / "a.tif", RunMasks(pixels[:-1], (1, 4)))
    assert tifffile.imread(tmp_path / "a.tif").tolist() == [[1, 0, 0, 0]]


def test_beyond_4_gigabytes(tmp_path: Path) -> None:
    frame = (30_000, 80_000)
    corner = 79_000 * frame[0] + 29_000
    mask = scene([RING], [0], frame).masks
    runs = mask.runs[0] - mask.runs[0][0, 0] + corner
    write_label_tiff(tmp_path / "a.tif", RunMasks([runs], frame))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].shape == frame
    assert (tmp_path / "a.tif").stat().st_size < 2**23
