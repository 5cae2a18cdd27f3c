"""Compressed pyramids by windows, and the layouts of SVS and NDPI, generated; they need imagecodecs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pyramids import write_ndpi, write_ome_tiff, write_svs

from embedmask.config.reading import ReadOptions
from embedmask.data.images import open_slide, read_extent, read_image
from embedmask.data.slides import Slide
from embedmask.errors import BadInput

pytest.importorskip("zarr")
decodes = pytest.mark.skipif(
    find_spec("imagecodecs") is None, reason="needs imagecodecs: pip install 'embedmask[microscopy]'"
)
ROWS, COLUMNS = np.mgrid[:384, :512]
SMOOTH = np.stack([128 + 100 * np.sin(ROWS / (60 + k) + COLUMNS / 90) for k in range(3)], -1).astype(np.uint8)
"""Pixels that JPEG keeps nearly as they are."""
CODECS: dict[str, tuple[dict[str, Any], int]] = {
    "lzw": ({"compression": "lzw", "predictor": True}, 0),
    "jpeg": ({"compression": "jpeg", "compressionargs": {"level": 95}}, 20),
    "jpeg of separate colors": ({"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}}, 20),
    "jpeg 2000": ({"compression": "jpeg2000", "compressionargs": {"reversible": True}}, 0),
    "jpeg 2000 of aperio": ({"compression": 33005, "compressionargs": {"reversible": True}}, 0),
}
"""Codec -> options of tifffile, and the largest difference to the values that were written."""


def windows_of(path: Path, level: int) -> np.ndarray[Any, Any]:
    """Return a level that is put together from windows across the borders of tiles."""
    slide = open_slide(path, ReadOptions(level=level))
    assert isinstance(slide, Slide)
    rows, columns = slide.shape[1:]
    return np.concatenate(
        [
            np.concatenate(
                [slide[:, y : y + 50, x : x + 90].permute(1, 2, 0).numpy() for x in range(0, columns, 90)], 1
            )
            for y in range(0, rows, 50)
        ]
    )


def largest_difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@decodes
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["ome", "svs"])
def test_windows_of_compressed_pyramids(codec: str, layout: str, tmp_path: Path) -> None:
    options, slack = CODECS[codec]
    path = tmp_path / ("a.ome.tif" if layout == "ome" else "a.svs")
    if layout == "ome":
        write_ome_tiff(path, SMOOTH, "YXS", **options)
    else:
        write_svs(path, SMOOTH, **options)
    with tifffile.TiffFile(path) as file:
        expected = [level.asarray().reshape(-1, level.shape[-2], 3) for level in file.series[0].levels]
    assert read_extent(path).levels == len(expected) == 3
    for level, pixels in enumerate(expected):
        found = windows_of(path, level)
        np.testing.assert_array_equal(found, pixels)
        np.testing.assert_array_equal(
            read_image(path, options=ReadOptions(level=level)).permute(1, 2, 0), found
        )
        assert largest_difference(found, SMOOTH[:: 2**level, :: 2**level]) <= slack


@decodes
def test_windows_of_ndpi(tmp_path: Path) -> None:
    levels = write_ndpi(tmp_path / "a.ndpi", SMOOTH)
    for level, expected in enumerate(levels):
        assert largest_difference(windows_of(tmp_path / "a.ndpi", level), expected) <= 2  # two JPEG decoders
        assert largest_difference(expected, SMOOTH[:: 2**level, :: 2**level]) <= 20


@decodes
def test_label_and_macro_image_are_no_pages(tmp_path: Path) -> None:
    write_svs(tmp_path / "a.svs", SMOOTH, compression="jpeg")
    write_ndpi(tmp_path / "a.ndpi", SMOOTH)
    for path in tmp_path.iterdir():
        notes: list[str] = []
        open_slide(path, ReadOptions(), notes.append)
        assert (notes, read_extent(path).pages) == ([], 1)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
def test_imagecodecs_is_not_installed(tmp_path: Path) -> None:
    write_ndpi(tmp_path / "a.ndpi", SMOOTH)
    line = r"a\.ndpi: compressed as JPEG, .* without imagecodecs: pip install 'embedmask\[microscopy\]'$"
    with pytest.raises(BadInput, match=line):
        open_slide(tmp_path / "a.ndpi")
