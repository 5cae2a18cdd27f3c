"""TIFF files: which planes they hold, by page and channel, and the values of those that Pillow cannot read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TIFF, TiffFile, TiffPageSeries

from embedmask.config.reading import ReadOptions
from embedmask.data.pages import Extent
from embedmask.structures import Size

Values = NDArray[Any]
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF files begin, and those beyond 4 GB."""
CONVERTED = tuple(
    PHOTOMETRIC[name] for name in ("PALETTE", "SEPARATED", "YCBCR", "CIELAB", "ICCLAB", "ITULAB")
)
"""Colours that Pillow turns into RGB."""
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
ORIENTATION = 274
TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""
# what it stumbles over is raised here, or read by Pillow
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Plane:
    """One plane of a series, with all its samples."""

    series: TiffPageSeries
    number: int

    @cached_property
    def has_page(self) -> bool:
        """Whether the plane is a page of the file; else the series holds it within larger ones."""
        others = [n for axis, n in zip(self.series.axes, self.series.shape, strict=True) if axis not in "YXS"]
        return len(self.series.pages) == prod(others) and not self.series.is_truncated

    @property
    def key(self) -> Any:  # its attributes are not annotated
        """The page that describes the format."""
        return self.series.keyframe

    @property
    def page(self) -> Any:
        """The page that holds the values, maybe those of other planes too."""
        return self.series.pages[self.number if self.has_page else 0]

    @property
    def index(self) -> int | None:
        """Its place among the pages of the file, or None."""
        return self.page.index if self.has_page and isinstance(self.page.index, int) else None

    @property
    def samples(self) -> int:
        """Number of values of a pixel without alpha."""
        return int(self.key.samplesperpixel) - sum(extra in ALPHA for extra in self.key.extrasamples)

    @property
    def is_rgb(self) -> bool:
        """Whether the file says that its first three samples are R, G and B."""
        return self.key.photometric == PHOTOMETRIC.RGB and self.samples >= 3

    @property
    def channels(self) -> int:
        """Number of channels that can be chosen."""
        return 3 if self.key.photometric in CONVERTED else self.samples

    @property
    def inverted(self) -> bool:
        """Whether 0 is white, where that is left to us."""
        return self.key.photometric == PHOTOMETRIC.MINISWHITE and not self.is_8_bit

    @property
    def is_8_bit(self) -> bool:
        """Whether no value has more bits."""
        return self.key.bitspersample <= 8 and (self.key.dtype is None or self.key.dtype.kind in "ub")

    @property
    def decodable(self) -> bool:
        """Whether tifffile can decode it without further packages."""
        key = self.key
        known = key.compression in TIFF.DECOMPRESSORS and key.predictor in TIFF.UNPREDICTORS
        return known and key.bitspersample % 8 == 0 and key.dtype is not None

    @property
    def for_pillow(self) -> bool:
        """Whether Pillow reads it without a loss, or nothing else does."""
        key = self.key
        if self.index is None or key.photometric in CONVERTED:
            return self.index is not None
        in_pixels = key.planarconfig == PLANARCONFIG.CONTIG and EXTRASAMPLE.ASSOCALPHA not in key.extrasamples
        if not self.decodable:
            return self.samples == 1 or (self.is_rgb and (self.is_8_bit or in_pixels))
        # Pillow stumbles over large files of the other byte order
        if key.parent.is_bigtiff and key.parent.byteorder == ">":
            return False
        wide_rgb = self.is_rgb and in_pixels and key.dtype == np.uint16
        return wide_rgb or (self.is_8_bit and (self.is_rgb or self.samples == 1))

    def size(self, *, upright: bool) -> Size:
        """Return `(height, width)`."""
        height, width = self.key.imagelength, self.key.imagewidth
        return (width, height) if upright and self.orientation in TURNED else (height, width)

    def values(self, *, upright: bool = False) -> Values:
        """Decode the plane.

        Returns:
            `[H, W, S]`, of the file's number format; S includes alpha.

        Raises:
            OSError: compressed in a way that is not read, cut short, or damaged.
        """
        if not self.decodable:
            name = COMPRESSION(self.key.compression).name
            raise OSError(
                f"{self.key.samplesperpixel} values a pixel of {self.key.bitspersample} bits, compressed as {name}, "
                "cannot be decoded: save it uncompressed or with deflate"
            )
        try:
            self._check_length()
            values = self._page_values() if self.has_page else self._series_values()
        except Exception as error:  # a decoder may meet anything in a damaged file
            raise OSError(str(error)) from error
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * np.uint8(255)
        return _turn(values, self.orientation) if upright else values

    @property
    def orientation(self) -> int:
        tag = self.key.tags.get(ORIENTATION)
        return 1 if tag is None else int(tag.value)

    def _check_length(self) -> None:
        """tifffile fills what is missing with zeros."""
        ends = map(sum, zip(self.page.dataoffsets, self.page.databytecounts, strict=True))
        if max(ends, default=0) > self.page.parent.filehandle.size:
            raise OSError("image file is truncated")

    def _page_values(self) -> Values:
        values: Values = self.page.asarray()
        axes = self.key.axes
        values = np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values[..., None]
        if values.ndim != 3:
            raise OSError(f"pages with the axes {axes} are not read")
        return values

    def _series_values(self) -> Values:
        axes = self.series.axes
        values: Values = self.series.asarray()
        if "S" not in axes:
            axes, values = axes + "S", values[..., None]
        order = [axes.index(axis) for axis in (*(a for a in axes if a not in "YXS"), *"YXS")]
        values = values.transpose(order)
        plane: Values = values.reshape(-1, *values.shape[-3:])[self.number]
        return plane


class Stack:
    """The planes of an open TIFF file, by page and channel.

    A page is a plane, or what differs in the channel axis of OME, ImageJ and other metadata alone. Smaller copies of a
    page, as pyramids have them, are no pages.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the directories, no pixels.

        Raises:
            OSError: not a TIFF file that can be understood.
        """
        try:
            self._file = TiffFile(file)
            self.rows = _rows(self._file)
        except Exception as error:
            raise OSError(str(error)) from error
        if not self.rows:
            raise OSError("no image in it")

    def extent(self, page: int = 0) -> Extent:
        """Return what the file holds, with the channels of one of its pages."""
        row = self.rows[page]
        in_colour = len(row) == 1 and (row[0].is_rgb or row[0].key.photometric in CONVERTED)
        return Extent(len(self.rows), len(row) * row[0].channels, in_colour)

    def choose(self, options: ReadOptions) -> list[tuple[Plane, int]]:
        """Return the plane of each channel to read, and the channel's place among its samples.

        Raises:
            BadChoice: there is no such page or channel.
        """
        extent = self.extent()
        if extent.pages_are_channels(options):
            numbers = Extent(1, extent.pages, in_colour=False).channel_numbers(options)
            return [(self.rows[number][0], 0) for number in numbers]
        page = extent.page(options)
        row = self.rows[page]
        numbers = self.extent(page).channel_numbers(options)
        return [(row[number // row[0].channels], number % row[0].channels) for number in numbers]


def is_tiff(start: bytes) -> bool:
    """Return whether a file that starts so is a TIFF file."""
    return start.startswith(MAGIC)


def read_planes(planes: list[tuple[Plane, int]], *, upright: bool) -> Values:
    """Decode channels that need not lie in one plane: `[H, W, C]`."""
    decoded = {plane: plane.values(upright=upright) for plane in dict.fromkeys(plane for plane, _ in planes)}
    if len(decoded) == 1 and [place for _, place in planes] == list(range(len(planes))):
        return decoded[planes[0][0]][..., : len(planes)]
    return np.stack([decoded[plane][..., place] for plane, place in planes], axis=-1)


def _rows(file: tifffile.TiffFile) -> list[list[Plane]]:
    """Planes by page and channel, in the order of the file."""
    rows: list[list[Plane]] = []
    full = [series for series in file.series if not series.keyframe.is_reduced]
    for series in full or file.series:
        axes = [axis for axis in series.axes if axis not in "YXS"]
        sizes = [n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YXS"]
        numbers = np.arange(prod(sizes)).reshape(sizes)
        numbers = np.moveaxis(numbers, axes.index("C"), -1) if "C" in axes else numbers[..., None]
        table = numbers.reshape(-1, numbers.shape[-1]).tolist()
        rows += [[Plane(series, number) for number in row] for row in table]
    return sorted(rows, key=lambda row: row[0].index or 0) if len(full) > 1 else rows


def _turn(values: Values, orientation: int) -> Values:
    """Turn `[H, W, C]` upright, as EXIF's orientation says."""
    if orientation in TURNED:
        values = values.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    mirrored = orientation in (2, 3, 6, 7)
    return values[:: -1 if down else 1, :: -1 if mirrored else 1]
