"""Image files in: whatever Pillow or tifffile reads becomes uint8 RGB, upright."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.depth import reduce_depth, strips_of
from embedmask.data.formats import advice, is_camera_raw
from embedmask.data.pages import BadChoice, Extent
from embedmask.data.pillow import EXIF_ORIENTATION, decode, num_pages, seek
from embedmask.data.tiff import TURNED, Plane, Stack, is_tiff, read_planes
from embedmask.errors import BadInput
from embedmask.structures import Size

Box = tuple[float, float, float, float]
Source = str | Path | bytes | Image.Image
Pixels = NDArray[np.uint8]

ALL_CHANNELS = (0, 1, 2)
# What Pillow raises on files that are cut, damaged, or no images at all.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_LIMIT = Lock()


def read_image(
    source: Source,
    *,
    upright: bool = True,
    name: str | None = None,
    any_size: bool = False,
    options: ReadOptions = DEFAULT_READING,
    notice: Callable[[str], None] = lambda line: None,
) -> Tensor:
    """Read an image as 8-bit RGB.

    Palettes, grey, CMYK and 1-bit images become RGB; an alpha channel is dropped, so a transparent pixel shows the
    colour stored under it. More than 8 bits are reduced by the rule of `embedmask.data.depth`, the same for grey and
    colour and for all file formats.

    Args:
        source: path, the bytes of a file, or an open image, which is taken as Pillow decodes it, at its frame.
        upright: turn the image as its EXIF orientation says; False: as stored.
        name: what messages call the image; by default its path.
        any_size: also what Pillow takes for a decompression bomb: more than `2 * PIL.Image.MAX_IMAGE_PIXELS`,
            179 million pixels unless the user has set it. Memory: at most 7 bytes a pixel, 3 once it is read; of what
            tifffile decodes, the file's own bytes a pixel and 3.
        options: page and channels of a file, and how more than 8 bits become 8.
        notice: is told of pages and channels that are left out without a choice.

    Returns:
        uint8 `[3, H, W]`, RGB. The memory is interleaved (channels last).

    Raises:
        BadInput: no such file, not an image, a damaged one, too large, or without the page or channel; names it.
    """
    limit = _unlimited() if any_size else nullcontext()
    with _reading(name or _name(source)), limit:
        if isinstance(source, Image.Image):
            # a copy: the caller's stays open and unturned
            pixels = decode(source.copy, ALL_CHANNELS, options.depth, upright=upright)
        else:
            with _opened(source) as file:
                pixels = _read_file(file, upright, options, notice)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_size(path: str | Path, options: ReadOptions = DEFAULT_READING) -> Size:
    """Return `(height, width)` of an image file, upright, from its header: pixels are not decoded.

    Raises:
        BadInput: no such file, not an image, or without the page; names it.
    """
    stored, orientation = read_header(path, options)
    return stored[::-1] if orientation in TURNED else stored


def read_header(path: str | Path, options: ReadOptions = DEFAULT_READING) -> tuple[Size, int]:
    """Return `(height, width)` of an image as stored, and its EXIF orientation: 1 to 8, 1 where it has none.

    Raises:
        BadInput: no such file, not an image, or without the page; names it.
    """
    with _reading(str(path)), _opened(path) as file:
        stack = _stack(file)
        if stack is not None:
            plane = stack.choose(options)[0][0]
            return plane.size(upright=False), plane.orientation
        with Image.open(file) as image:
            # The base class's reader: PNG's own would decode the whole file in search of a late EXIF chunk.
            orientation: Any = Image.Image.getexif(image).get(EXIF_ORIENTATION)
            width, height = image.size
    return (height, width), orientation if orientation in range(1, 9) else 1


def read_extent(path: str | Path) -> Extent | None:
    """Return the pages and channels of an image file, from its header; None where it cannot be read."""
    try:
        with _opened(path) as file:
            stack = _stack(file)
            if stack is not None:
                return stack.extent()
            with Image.open(file) as image:
                return _extent(image)
    except READ_ERRORS:
        return None


def read_numbers(path: str | Path, page: int | None = None) -> NDArray[Any]:
    """Read the numbers of a label image as they are stored; of a palette the numbers, not the colours.

    Args:
        page: page of a file that has several; None: the first.

    Returns:
        `[H, W]`, or `[H, W, C]` where a pixel has several.

    Raises:
        BadInput: not an image, a damaged one, or without the page; names it.
    """
    with _reading(str(path)), _opened(path) as file:
        stack = _stack(file)
        extent = _extent(Image.open(file)) if stack is None else stack.extent()
        page = extent.page(ReadOptions(page=page)) if extent.pages > 1 else 0
        if stack is None:
            return np.asarray(seek(Image.open(file), page))
        planes = stack.rows[page]
        if planes[0].index is not None and not planes[0].decodable:
            return np.asarray(seek(Image.open(file), planes[0].index))
        values = read_planes(
            [(plane, place) for plane in planes for place in range(plane.samples)], upright=True
        )
    return values[..., 0] if values.shape[-1] == 1 else values


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except BadChoice as error:
        raise BadInput(f"{name}: {error}") from None
    except FileNotFoundError:
        raise BadInput(f"{name}: no such image; check the path") from None
    except Image.DecompressionBombError as error:
        raise BadInput(
            f"{name}: too large to be read at once ({_reason(error)}); predict it in tiles"
        ) from None
    except READ_ERRORS as error:
        fix = advice(Path(name)) or "replace the file"
        raise BadInput(f"{name}: cannot be read as an image ({_reason(error)}); {fix}") from None


@contextmanager
def _unlimited() -> Iterator[None]:
    """Pillow reads images of any size, and one at a time, for its limit is that of all threads."""
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def size_of(image: Tensor) -> Size:
    """`(height, width)` of an image `[3, H, W]`."""
    height, width = image.shape[-2:]
    return height, width


def resize_image(image: Tensor, size: Size, box: Box | None = None) -> Tensor:
    """Bilinear resize with antialiasing, Pillow's own, as the authors' (section 4.1).

    Args:
        image: uint8 `[3, H, W]`.
        size: `(height, width)` of the result, px.
        box: the part of `image` to show, continuous xyxy px inside it; the filter looks beyond its sides,
            so the result is exactly that part of the whole image resized. None: all of it.

    Returns:
        uint8 `[3, h, w]`; `image` itself when nothing changes.
    """
    height, width = size_of(image)
    if size == (height, width) and box in (None, (0, 0, width, height)):
        return image
    pillow_image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    resized = pillow_image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "filename", "") or "the image")


def _opened(source: str | Path | bytes) -> AbstractContextManager[BinaryIO]:
    if not isinstance(source, bytes) and is_camera_raw(Path(source)) and Path(source).exists():
        raise OSError("of a camera's raw file only the preview could be read")
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    return " ".join(str(error).split()) or error.__class__.__name__


def _stack(file: BinaryIO) -> Stack | None:
    """The planes of a TIFF file; None for other formats, and where the directories are for Pillow to make sense of."""
    start = file.read(4)
    file.seek(0)
    if not is_tiff(start):
        return None
    try:
        return Stack(file)
    except OSError:
        file.seek(0)
        return None


def _read_file(file: BinaryIO, upright: bool, options: ReadOptions, notice: Callable[[str], None]) -> Pixels:
    """`[H, W, 3]`, writable."""
    stack = _stack(file)
    opened = [Image.open(file)] if stack is None else []
    extent = _extent(opened[0]) if stack is None else stack.extent()
    for left_out in extent.unread(options):
        notice(str(left_out))
    if stack is None:
        page, places, inverted = extent.page(options), extent.channel_numbers(options), False
    else:
        planes = stack.choose(options)
        first, places = planes[0][0], tuple(place for _, place in planes)
        if any(plane != first for plane, _ in planes) or max(places) > 2 or not first.for_pillow:
            return _decode_planes(planes, upright, options)
        page, inverted = first.index or 0, first.inverted

    def reopen() -> Image.Image:
        return seek(opened.pop() if opened else Image.open(file), page)  # held by the caller alone

    return decode(reopen, places, options.depth, upright=upright, inverted=inverted)


def _extent(image: Image.Image) -> Extent:
    pages = num_pages(image)
    return Extent(pages, 1, in_colour=False) if Image.getmodebase(image.mode) == "L" else Extent(pages)


def _decode_planes(planes: list[tuple[Plane, int]], upright: bool, options: ReadOptions) -> Pixels:
    height, width = planes[0][0].size(upright=upright)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:
        raise Image.DecompressionBombError(f"{height * width} pixels, the limit is {2 * limit}")
    values = read_planes(planes, upright=upright)
    pixels = np.empty((height, width, 3), np.uint8)
    reduce_depth(strips_of(values), pixels, options.depth, inverted=planes[0][0].inverted)
    return pixels
