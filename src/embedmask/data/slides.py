"""Images on disk that are read by windows: pyramids of TIFF, by tifffile, and OME-Zarr, by zarr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from embedmask.config.reading import Depth, ReadOptions
from embedmask.data.depth import reduce_depth, strip_height, strips_of, white_level
from embedmask.data.pages import BadChoice, Extent
from embedmask.data.tiff import Plane, Stack, axes_of, other_sizes, plane_numbers
from embedmask.errors import needs_extra
from embedmask.structures import Size

Values = NDArray[Any]
Notice = Callable[[str], None]
METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
"""Files of which a folder of zarr contains at least one."""
RGB = ["FF0000", "00FF00", "0000FF"]
"""Colors of the channels of a color image in OME-Zarr."""
STRIP = 256
"""Maximum number of rows to read at once while measuring the white level, unless the image is narrow."""


@dataclass(frozen=True)
class ArrayPlane:
    """One plane of an array on disk, with all its samples.

    Attributes:
        array: zarr array.
        axes: one letter per dimension; Y, X and S (samples) remain in the plane.
        index: position on each of the other axes.
    """

    array: Any
    axes: str
    index: tuple[int, ...]

    def window(self, rows: slice, columns: slice) -> Values:
        """Read a window, `[h, w, S]` in the number format of the file."""
        others = iter(self.index)
        inside = {"Y": rows, "X": columns, "S": slice(None)}
        values = np.asarray(self.array[tuple(inside[a] if a in inside else next(others) for a in self.axes)])
        axes = [axis for axis in self.axes if axis in "YXS"]
        if "S" not in axes:
            values, axes = values[..., None], [*axes, "S"]
        if values.dtype == np.bool_:
            values = values.astype(np.uint8) * np.uint8(255)
        return values.transpose([axes.index(axis) for axis in "YXS"])


class Slide:
    """An image that is read by windows, as uint8 RGB: `slide[:, y1:y2, x1:x2]` is a tensor `[3, h, w]`.

    Attributes:
        shape: `(3, H, W)`.
        downsample: px of level 0 per px of this level, of y and x.
    """

    def __init__(
        self,
        channels: Sequence[tuple[ArrayPlane, int]],
        size: Size,
        depth: Depth,
        downsample: tuple[float, float],
    ) -> None:
        """Set up the reading of one level; no pixels are read.

        Args:
            channels: plane of each channel (one, or three for R, G and B), and its index among the samples.
            size: `(height, width)` of the level.
            depth: reduction of more than 8 bits; `camera` reads the level once, strip by strip, before the first
                window, so that all windows are reduced as the whole image would be.
        """
        self._channels, self._depth = list(channels), depth
        self.shape, self.downsample = (3, *size), downsample

    def __getitem__(self, where: tuple[slice, slice, slice]) -> Tensor:
        rows, columns = (
            slice(*part.indices(length)[:2]) for part, length in zip(where[1:], self.shape[1:], strict=True)
        )
        values = pixels = self._values(rows, columns)
        if values.dtype != np.uint8:
            pixels = np.empty((*values.shape[:2], 3), np.uint8)
            reduce_depth(strips_of(values), pixels, self._white)
        # gray: one channel in memory, seen three times
        return torch.from_numpy(pixels).permute(2, 0, 1).expand(3, -1, -1)[where[0]]

    def _values(self, rows: slice, columns: slice) -> Values:
        """Return the channels of a window, `[h, w, C]`."""
        planes = {id(plane): plane for plane, _ in self._channels}
        decoded = {key: plane.window(rows, columns) for key, plane in planes.items()}
        return np.stack([decoded[id(plane)][..., sample] for plane, sample in self._channels], axis=-1)

    @cached_property
    def _white(self) -> float:
        """Return the value of the level that becomes 255."""
        height, width = self.shape[1:]
        plane = self._channels[0][0]
        chunk = plane.array.chunks[plane.axes.index("Y")]
        # whole rows of chunks if they are few, so that each chunk is decoded once
        step = max(strip_height(width, len(self._channels)), min(chunk, STRIP))

        def strips() -> Iterator[tuple[int, Values]]:
            for top in range(0, height, step):
                yield top, self._values(slice(top, min(top + step, height)), slice(0, width))

        return white_level(strips, height * width, self._depth)


def is_zarr(path: str | Path) -> bool:
    """Return whether a path is a folder of zarr."""
    return any((Path(path) / name).is_file() for name in METADATA)


def tiff_slide(stack: Stack, options: ReadOptions, *, name: str) -> Slide | None:
    """Return an image of a TIFF file that is worth reading by windows; None: it is read as a whole.

    This applies to pyramids, and to tiled images beyond Pillow's limit for decompression bombs.

    Raises:
        BadChoice: the file has no such page, channel or level, or its compression needs a missing package.
        OSError: the file is truncated.
        BadInput: zarr is not installed.
    """
    planes = stack.choose(options)
    first = planes[0][0]
    height, width = first.size
    limit = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else height * width
    is_large = first.key.is_tiled and height * width > limit
    if not (is_large or stack.is_pyramid) or not all(plane.in_windows for plane, _ in planes):
        return None
    with needs_extra("microscopy", f"{name}: reading by windows"):
        import zarr
    opened = {plane: _array_plane(plane, zarr) for plane, _ in planes}
    channels = [(opened[plane], sample) for plane, sample in planes]
    base = stack.choose(ReadOptions(page=options.page, channels=options.channels))[0][0].size
    return Slide(channels, first.size, options.depth, downsample_of(base, first.size))


def _array_plane(plane: Plane, zarr: Any) -> ArrayPlane:
    """Open a plane of a TIFF file as a zarr array."""
    plane.check_complete()
    axes = axes_of(plane.series)
    array = zarr.open_array(plane.series.aszarr(level=0), mode="r")
    place = np.unravel_index(plane.number, other_sizes(axes, array.shape))
    return ArrayPlane(array, axes, tuple(map(int, place)))


def zarr_slide(path: Path, options: ReadOptions, notice: Notice) -> Slide:
    """Return an image of OME-Zarr 0.4 or 0.5.

    Raises:
        BadChoice: the folder has no multiscales, or no such page, channel or level.
        BadInput: zarr is not installed.
    """
    levels, axes, extent = _multiscales(path)
    for ignored in extent.unread(options):
        notice(str(ignored))
    array = levels[extent.level(options)]
    shape = dict(zip(axes, array.shape, strict=True))
    numbers = plane_numbers(axes, array.shape)
    if extent.pages_are_channels(options):
        chosen = [numbers[n][0] for n in Extent(1, extent.pages, in_color=False).channel_numbers(options)]
    else:
        chosen = [numbers[extent.page(options)][n] for n in extent.channel_numbers(options)]
    others = [shape[axis] for axis in axes if axis not in "YX"]
    planes = [ArrayPlane(array, axes, tuple(map(int, np.unravel_index(n, others)))) for n in chosen]
    base = dict(zip(axes, levels[0].shape, strict=True))
    size = shape["Y"], shape["X"]
    downsample = downsample_of((base["Y"], base["X"]), size)
    return Slide([(plane, 0) for plane in planes], size, options.depth, downsample)


def zarr_extent(path: Path) -> Extent:
    """Return the pages, channels and levels of OME-Zarr; errors as in `zarr_slide`."""
    return _multiscales(path)[2]


def _multiscales(path: Path) -> tuple[list[Any], str, Extent]:
    """Return the arrays of the levels of OME-Zarr, their axes and the extent of the image."""
    with needs_extra("microscopy", f"{path}: OME-Zarr"):
        import zarr
    try:
        group = zarr.open_group(path, mode="r")
        attributes: Any = group.attrs.asdict()
        attributes = attributes.get("ome", attributes)  # 0.5 nests them
        (image, *_) = attributes["multiscales"]
    except (OSError, KeyError, TypeError, ValueError):
        raise BadChoice(
            "is not an OME-Zarr image: it has no multiscales; pass the group of one image, such as FILE.zarr/0"
        ) from None
    try:
        axes = "".join(axis["name"] for axis in image["axes"]).upper()
        levels: list[Any] = [group[level["path"]] for level in image["datasets"]]
        fits = levels and sorted(axes) == sorted(set(axes)) and {"Y", "X"} <= set(axes)
        if not fits or any(len(level.shape) != len(axes) for level in levels):
            raise ValueError
        pages, channels = plane_numbers(axes, levels[0].shape).shape
        colors = [channel.get("color") for channel in attributes.get("omero", {}).get("channels", [])]
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        raise BadChoice(
            "its multiscales are damaged or older than OME-Zarr 0.4; write it again with a current tool"
        ) from None
    return levels, axes, Extent(pages, channels, colors == RGB, len(levels))


def downsample_of(base: Size, size: Size) -> tuple[float, float]:
    """Return px of level 0 per px of a level, of y and x: whole if the sizes differ from that by rounding only."""
    factors = [whole / part for whole, part in zip(base, size, strict=True)]
    near = [
        round(factor) if round(factor) * (part - 1) < whole < round(factor) * (part + 1) else factor
        for factor, whole, part in zip(factors, base, size, strict=True)
    ]
    return float(near[0]), float(near[1])
