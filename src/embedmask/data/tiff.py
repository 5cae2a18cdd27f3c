"""Read TIFF files by page and channel: their planes, and the values of planes that Pillow cannot read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import COMPRESSION_INFO
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TIFF, TiffFile, TiffPageSeries

from embedmask.config.reading import ReadOptions
from embedmask.data.pages import BadChoice, Extent
from embedmask.structures import Size

Values = NDArray[Any]
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files."""
CONVERTED = tuple(
    PHOTOMETRIC[name] for name in ("PALETTE", "SEPARATED", "YCBCR", "CIELAB", "ICCLAB", "ITULAB")
)
"""Color spaces that Pillow converts to RGB."""
SLIDES = ("svs", "ndpi", "bif")
"""tifffile's names of slide formats whose files also hold a label and an overview."""
COMPANIONS = ("Thumbnail", "Label", "Macro", "Map")
"""tifffile's names of the images in them that do not show the tissue at a level of the pyramid."""
ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
ORIENTATION = 274
TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""
# tifffile logs every oddity of a file; errors are raised here, or the file is left to Pillow
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Plane:
    """One plane of a series, with all its samples.

    Attributes:
        series: tifffile's series: pages of one shape and format.
        number: index of the plane over all axes of the series but Y, X and S.
    """

    series: TiffPageSeries
    number: int

    @cached_property
    def has_page(self) -> bool:
        """Return whether the plane is a page of the file; otherwise it is part of the series' larger pages."""
        count = prod(other_sizes(axes_of(self.series), self.series.shape))
        return len(self.series.pages) == count and not self.series.is_truncated

    @property
    def key(self) -> Any:  # its attributes have no types
        """Return the page that describes the format."""
        return self.series.keyframe

    @property
    def page(self) -> Any:
        """Return the page that contains the values, possibly with those of other planes."""
        return self.series.pages[self.number if self.has_page else 0]

    @property
    def index(self) -> int | None:
        """Return the position among the pages of the file; None if the plane is not a page, or is a SubIFD."""
        is_page = self.has_page and isinstance(self.page.index, int) and not self.page.is_subifd
        return self.page.index if is_page else None

    @property
    def samples(self) -> int:
        """Return the number of values of a pixel, without alpha."""
        return int(self.key.samplesperpixel) - sum(extra in ALPHA for extra in self.key.extrasamples)

    @property
    def is_rgb(self) -> bool:
        """Return whether the first three samples are R, G and B, according to the file."""
        return self.key.photometric == PHOTOMETRIC.RGB and self.samples >= 3

    @property
    def channels(self) -> int:
        """Return the number of channels to choose from."""
        return 3 if self.key.photometric in CONVERTED else self.samples

    @property
    def inverted(self) -> bool:
        """Return whether 0 is white."""
        return bool(self.key.photometric == PHOTOMETRIC.MINISWHITE)

    @property
    def is_8_bit(self) -> bool:
        """Return whether values have at most 8 bits."""
        return self.key.bitspersample <= 8 and (self.key.dtype is None or self.key.dtype.kind in "ub")

    @property
    def decodable(self) -> bool:
        """Return whether tifffile can decode the plane without further packages."""
        return self.has_codec and self.key.bitspersample % 8 == 0 and self.key.dtype is not None

    @property
    def has_codec(self) -> bool:
        """Return whether tifffile can decompress the plane without further packages."""
        key = self.key
        return key.compression in TIFF.DECOMPRESSORS and key.predictor in TIFF.UNPREDICTORS

    def missing_codec(self) -> str:
        """Return a line about a compression that tifffile cannot decode."""
        installed = find_spec("imagecodecs") is not None
        fix = "save it uncompressed or with deflate" if installed else "pip install 'embedmask[microscopy]'"
        name = COMPRESSION(self.key.compression).name
        return f"compressed as {name}, which cannot be decoded{'' if installed else ' without imagecodecs'}: {fix}"

    @property
    def for_pillow(self) -> bool:
        """Return whether Pillow is the reader to use: it loses nothing, or no other reader can decode the plane."""
        key = self.key
        if self.index is None or key.compression not in COMPRESSION_INFO:
            return False
        if key.photometric in CONVERTED:
            return True
        # with 16 bits, Pillow needs interleaved samples without premultiplied alpha
        in_pixels = key.planarconfig == PLANARCONFIG.CONTIG and EXTRASAMPLE.ASSOCALPHA not in key.extrasamples
        if not self.decodable:
            return self.samples == 1 or (self.is_rgb and (self.is_8_bit or in_pixels))
        # Pillow cannot read big-endian BigTIFF
        if key.parent.is_bigtiff and key.parent.byteorder == ">":
            return False
        wide_rgb = self.is_rgb and in_pixels and key.dtype == np.uint16
        return wide_rgb or (self.is_8_bit and (self.is_rgb or self.samples == 1))

    @property
    def in_windows(self) -> bool:
        """Return whether windows of the plane are those of the whole image that is read.

        Raises:
            BadChoice: its compression needs a package that is not installed.
        """
        key = self.key
        is_jpeg = key.photometric == PHOTOMETRIC.YCBCR and key.compression != COMPRESSION.NONE
        plain = key.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB)
        if not self.has_codec and key.bitspersample % 8 == 0:
            raise BadChoice(self.missing_codec())
        return self.decodable and self.orientation == 1 and (plain or is_jpeg)

    @property
    def size(self) -> Size:
        """Return `(height, width)` as stored."""
        return self.key.imagelength, self.key.imagewidth

    def values(self, *, upright: bool) -> Values:
        """Decode the plane, `[H, W, S]` in the number format of the file; S includes alpha.

        Args:
            upright: rotate it by its EXIF orientation.

        Raises:
            BadChoice: the compression is not supported, or needs a package that is not installed.
            OSError: the number format is not supported, or the file is truncated or damaged.
        """
        if not self.has_codec:
            raise BadChoice(self.missing_codec())
        if not self.decodable:
            raise OSError(
                f"values of {self.key.bitspersample} bits cannot be decoded: save it with 8 or 16 bits"
            )
        try:
            values = self._decode()
        except Exception as error:  # decoders raise any exception on damaged files
            raise OSError(str(error)) from error
        if not upright:
            return values
        # EXIF: exchange the axes first, then flip them
        if self.orientation in TRANSPOSED_ORIENTATIONS:
            values = values.swapaxes(0, 1)
        flip_y, flip_x = self.orientation in (3, 4, 7, 8), self.orientation in (2, 3, 6, 7)
        return values[:: -1 if flip_y else 1, :: -1 if flip_x else 1]

    @property
    def orientation(self) -> int:
        """Return the EXIF orientation, 1 if the file has none."""
        tag = self.key.tags.get(ORIENTATION)
        return 1 if tag is None else int(tag.value)

    def check_complete(self) -> None:
        """Check that the file contains the whole plane.

        Raises:
            OSError: it is truncated.
        """
        # tifffile fills missing data with zeros: compare the ends of all strips with the length of the file
        ends = map(sum, zip(self.page.dataoffsets, self.page.databytecounts, strict=True))
        if max(ends, default=0) > self.page.parent.filehandle.size:
            raise OSError("image file is truncated")

    def _decode(self) -> Values:
        self.check_complete()
        if self.has_page:
            # [H, W], [H, W, S] or, with separate planes, [S, H, W] -> [H, W, S]
            axes = self.key.axes
            values: Values = self.page.asarray()
            values = np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values[..., None]
            if values.ndim != 3:
                raise OSError(f"pages with the axes {axes} are not supported")
            return values
        # any order of axes, such as [T, Y, X, Z] -> [T, Z, Y, X, S] -> [T * Z, Y, X, S]
        axes, values = axes_of(self.series), self.series.asarray()
        if "S" not in axes:
            axes, values = axes + "S", values[..., None]
        order = [axes.index(axis) for axis in (*(a for a in axes if a not in "YXS"), *"YXS")]
        values = values.transpose(order)
        plane: Values = values.reshape(-1, *values.shape[-3:])[self.number]
        return plane


class Stack:
    """Planes of an open TIFF file, by page and channel.

    A page is one plane, or the planes that differ only in the channel axis of OME, ImageJ or other metadata. Reduced
    copies of a page, as in pyramids, are not pages, nor are the label and the overview of a slide.

    Attributes:
        rows: planes of each page: one per channel, or a single one with all channels as samples.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the directories, but no pixels.

        Raises:
            OSError: the file is not a readable TIFF file.
        """
        self.rows: list[list[Plane]] = []
        try:
            self._file = TiffFile(file)
            full = [series for series in self._file.series if not is_companion(series)]
            for series in full or self._file.series:
                table = plane_numbers(axes_of(series), series.shape).tolist()
                self.rows += [[Plane(series, number) for number in row] for row in table]
            # tifffile groups pages by format: restore the order of the file
            if len(full) > 1:
                self.rows.sort(key=lambda row: row[0].index or 0)
        except Exception as error:
            raise OSError(str(error)) from error
        if not self.rows:
            raise OSError("no image in it")

    def extent(self, page: int = 0) -> Extent:
        """Return the number of pages, and the channels of one of them."""
        row = self.rows[page]
        in_color = len(row) == 1 and (row[0].is_rgb or row[0].key.photometric in CONVERTED)
        levels = len(row[0].series.levels)
        return Extent(len(self.rows), len(row) * row[0].channels, in_color, levels)

    def hyperstack_position(self, page: int) -> tuple[int, int] | None:
        """Return slice and frame of a page, z and t from 0; None unless the file has several channels, or both axes."""
        plane = self.rows[page][0]
        all_axes = axes_of(plane.series)
        axes, sizes = (
            [axis for axis in all_axes if axis not in "YXS"],
            other_sizes(all_axes, plane.series.shape),
        )
        index = dict(zip(axes, np.unravel_index(plane.number, sizes), strict=True)) if axes else {}
        if len(self.rows[page]) == 1 and sum(n > 1 for n in sizes) < 2:
            return None
        return int(index.get("Z", 0)), int(index.get("T", 0))

    @property
    def is_pyramid(self) -> bool:
        """Return whether the first page has several levels."""
        return self.extent().levels > 1

    def choose(self, options: ReadOptions) -> list[tuple[Plane, int]]:
        """Return the plane of each channel to read, and the index of the channel among its samples.

        Raises:
            BadChoice: the file has no such page, channel or level.
        """
        extent = self.extent()
        if extent.pages_are_channels(options):
            numbers = Extent(1, extent.pages, in_color=False).channel_numbers(options)
            chosen = [(self.rows[number][0], 0) for number in numbers]
        else:
            page = extent.page(options)
            row, extent = self.rows[page], self.extent(page)
            numbers = extent.channel_numbers(options)
            chosen = [(row[number // row[0].channels], number % row[0].channels) for number in numbers]
        level = extent.level(options)
        if level == 0:
            return chosen
        return [(replace(plane, series=plane.series.levels[level]), sample) for plane, sample in chosen]


def is_companion(series: TiffPageSeries) -> bool:
    """Return whether a series is a reduced copy of another, or the thumbnail, label or overview of a slide."""
    return bool(series.keyframe.is_reduced) or (series.kind in SLIDES and series.name in COMPANIONS)


def axes_of(series: TiffPageSeries) -> str:
    """Return the axes of a series, with S for the samples of a pixel, for which metadata may have another letter."""
    axes: str = series.axes
    samples = series.keyframe.samplesperpixel
    # [..., S, Y, X] or [..., Y, X, S]
    position = len(axes) - (1 if series.keyframe.planarconfig == PLANARCONFIG.CONTIG else 3)
    if samples == 1 or "S" in axes or position < 0 or series.shape[position] != samples:
        return axes
    return f"{axes[:position]}S{axes[position + 1 :]}"


def other_sizes(axes: str, shape: Sequence[int]) -> list[int]:
    """Return the sizes of all axes but Y, X and S."""
    return [n for axis, n in zip(axes, shape, strict=True) if axis not in "YXS"]


def plane_numbers(axes: str, shape: Sequence[int]) -> NDArray[np.int64]:
    """Return the numbers of the planes of an array, over all axes but Y, X and S: int64 `[pages, channels]`."""
    others = [axis for axis in axes if axis not in "YXS"]
    sizes = other_sizes(axes, shape)
    numbers = np.arange(prod(sizes)).reshape(sizes)
    numbers = np.moveaxis(numbers, others.index("C"), -1) if "C" in others else numbers[..., None]
    return numbers.reshape(-1, numbers.shape[-1])


def read_planes(planes: list[tuple[Plane, int]], *, upright: bool) -> Values:
    """Decode channels that may be in different planes.

    Args:
        planes: plane of each channel, and its index among the samples.
        upright: rotate the planes by their EXIF orientation.

    Returns:
        `[H, W, C]`, in the number format of the file.
    """
    decoded = {plane: plane.values(upright=upright) for plane in dict.fromkeys(plane for plane, _ in planes)}
    # the usual case, the first samples of one plane, is a slice without a copy
    if len(decoded) == 1 and [sample for _, sample in planes] == list(range(len(planes))):
        return decoded[planes[0][0]][..., : len(planes)]
    return np.stack([decoded[plane][..., sample] for plane, sample in planes], axis=-1)
