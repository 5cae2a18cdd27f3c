"""Read image files as uint8 RGB, upright."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import prod
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
from embedmask.data.pillow import EXIF_ORIENTATION, Pixels, decode, num_pages, seek
from embedmask.data.slides import (
    Notice,
    Slide,
    downsample_of,
    is_zarr,
    tiff_slide,
    zarr_extent,
    zarr_slide,
)
from embedmask.data.tiff import MAGIC, TRANSPOSED_ORIENTATIONS, Stack, read_planes
from embedmask.errors import BadInput
from embedmask.structures import Size

Box = tuple[float, float, float, float]
Source = str | Path | bytes | Image.Image

ALL_CHANNELS = (0, 1, 2)
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""Exceptions of Pillow on files that are truncated, damaged, or not images."""
_LIMIT = Lock()


def read_image(
    source: Source,
    *,
    upright: bool = True,
    name: str | None = None,
    any_size: bool = False,
    options: ReadOptions = DEFAULT_READING,
    notice: Notice = lambda line: None,
) -> Tensor:
    """Read an image as 8-bit RGB.

    Palette, gray, CMYK and 1-bit images are converted to RGB; an alpha channel is dropped, so a transparent pixel shows
    the color stored under it. More than 8 bits are reduced as in `embedmask.data.depth`, the same for gray and color
    and for all file formats.

    Args:
        source: path, the bytes of a file, or an open image, which is decoded at its current frame.
        upright: rotate the image by its EXIF orientation; False: as stored.
        name: name of the image in messages; by default its path.
        any_size: also read images of more than `2 * PIL.Image.MAX_IMAGE_PIXELS` pixels, which Pillow rejects as
            decompression bombs: 179 million pixels unless the user has set it. Memory: at most 7 bytes per pixel, 3
            once it is read; if tifffile decodes the file, 3 plus the bytes per pixel of the file.
        options: page and channels of a file, and the reduction of more than 8 bits.
        notice: receives a line about pages and channels that are ignored by default.

    Returns:
        uint8 `[3, H, W]`, RGB. The memory is interleaved (channels last).

    Raises:
        BadInput: the file does not exist, is not an image, damaged, too large, or lacks the page or channel.
    """
    if not name:
        is_path = isinstance(source, (str, Path))
        name = str(source) if is_path else str(getattr(source, "filename", "") or "the image")
    with _reading(name), ExitStack() as stack:
        if isinstance(source, (str, Path)) and is_zarr(source):
            slide = zarr_slide(Path(source), options, notice)
            _check_pixels(slide.shape[1:], any_size)
            return slide[:, :, :]
        if any_size:
            # Pillow's limit is global: lift it for one image at a time, and restore it before the lock is released
            stack.enter_context(_LIMIT)
            stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        if isinstance(source, Image.Image):
            # decode a copy: loading and rotating work in place
            pixels = decode(source.copy, ALL_CHANNELS, options.depth, upright=upright)
        else:
            pixels = _read_file(stack.enter_context(_opened(source)), upright, options, notice)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def open_slide(
    path: str | Path, options: ReadOptions = DEFAULT_READING, notice: Notice = lambda line: None
) -> Slide | None:
    """Open an image file to read it by windows: OME-Zarr, a TIFF pyramid, or a very large tiled TIFF; else None.

    Raises:
        BadInput: the file is damaged, compressed in an unsupported way, or lacks the page, channel or level; or zarr
            is not installed.
    """
    with _reading(str(path)), ExitStack() as closing:
        if is_zarr(path):
            return zarr_slide(Path(path), options, notice)
        stack = _stack(closing.enter_context(_opened(path)))
        slide = None if stack is None else tiff_slide(stack, options, name=str(path))
        if slide is None or stack is None:
            return None
        for ignored in stack.extent().unread(options):
            notice(str(ignored))
        closing.pop_all()  # the file stays open as long as the slide
        return slide


def read_downsample(path: str | Path, options: ReadOptions) -> tuple[float, float]:
    """Return px of level 0 per px of the level to read, of y and x; errors as in `read_header`."""
    if options.level == 0:
        return 1.0, 1.0
    base = ReadOptions(page=options.page, channels=options.channels)
    return downsample_of(read_header(path, base)[0], read_header(path, options)[0])


def read_size(path: str | Path, options: ReadOptions = DEFAULT_READING) -> Size:
    """Return `(height, width)` of the upright image, from the header of the file; errors as in `read_header`."""
    return upright_size(*read_header(path, options))


def upright_size(stored: Size, orientation: int) -> Size:
    """Return the size of an image after the rotation by its EXIF orientation."""
    return stored[::-1] if orientation in TRANSPOSED_ORIENTATIONS else stored


def read_header(path: str | Path, options: ReadOptions = DEFAULT_READING) -> tuple[Size, int]:
    """Return `(height, width)` of the image as stored, and its EXIF orientation: 1 to 8, 1 if it has none.

    Pixels are not decoded.

    Raises:
        BadInput: the file does not exist, is not an image, or lacks the page.
    """
    if is_zarr(path):
        with _reading(str(path)):
            _, height, width = zarr_slide(Path(path), options, lambda line: None).shape
            return (height, width), 1
    with _reading(str(path)), _opened(path) as file:
        stack = _stack(file)
        if stack is not None:
            plane = stack.choose(options)[0][0]
            return plane.size, plane.orientation
        with Image.open(file) as image:
            # the method of the base class: that of PNG decodes the whole file to find a late EXIF chunk
            orientation: Any = Image.Image.getexif(image).get(EXIF_ORIENTATION)
            width, height = image.size
    return (height, width), orientation if orientation in range(1, 9) else 1


def read_extent(path: str | Path) -> Extent | None:
    """Return the pages and channels of an image file, from its header; None if it cannot be read."""
    try:
        if is_zarr(path):
            return zarr_extent(Path(path))
        with _opened(path) as file:
            return _extent(_stack(file) or Image.open(file))
    except READ_ERRORS:  # BadInput is a ValueError
        return None


def hyperstack_position(path: Path, page: int) -> tuple[int, int] | None:
    """Return slice and frame of a page of a TIFF hyperstack, z and t from 0; None for other files."""
    if is_zarr(path):
        return None
    with _reading(str(path)), _opened(path) as file:
        stack = _stack(file)
        return None if stack is None else stack.hyperstack_position(page)


def read_numbers(path: str | Path, page: int | None = None) -> NDArray[Any]:
    """Read the numbers of a label image as stored; for a palette image the indices, not the colors.

    Args:
        page: page of a file with several pages; None: the first.

    Returns:
        `[H, W]`, or `[H, W, C]` if a pixel has several numbers.

    Raises:
        BadInput: the file is not an image, damaged, or lacks the page.
    """
    with _reading(str(path)), _opened(path) as file:
        stack = _stack(file)
        extent = _extent(stack or Image.open(file))
        page = extent.page(ReadOptions(page=page)) if extent.pages > 1 else 0
        if stack is None:
            return np.asarray(seek(Image.open(file), page))
        planes = stack.rows[page]
        if planes[0].index is not None and not planes[0].decodable:
            return np.asarray(seek(Image.open(file), planes[0].index))
        samples = [(plane, sample) for plane in planes for sample in range(plane.samples)]
        values = read_planes(samples, upright=True)
    return values[..., 0] if values.shape[-1] == 1 else values


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Convert the errors of reading an image to `BadInput`."""
    try:
        yield
    except BadInput:
        raise
    except BadChoice as error:
        raise BadInput(f"{name}: {error}") from None
    except FileNotFoundError:
        raise BadInput(f"{name}: no such image; check the path") from None
    except IsADirectoryError:
        raise BadInput(f"{name}: cannot be read as an image, since it is a folder; choose a file") from None
    except Image.DecompressionBombError as error:
        raise BadInput(
            f"{name}: too large to be read at once ({_reason(error)}); predict it in tiles"
        ) from None
    except READ_ERRORS as error:
        fix = advice(Path(name)) or "replace the file"
        raise BadInput(f"{name}: cannot be read as an image ({_reason(error)}); {fix}") from None


def size_of(image: Tensor | Slide) -> Size:
    """Return `(height, width)` of an image `[3, H, W]`."""
    _, height, width = image.shape
    return height, width


def resize_image(image: Tensor, size: Size, box: Box | None = None) -> Tensor:
    """Resize bilinearly with antialiasing, by Pillow like the authors (section 4.1).

    Args:
        image: uint8 `[3, H, W]`.
        size: `(height, width)` of the result, px.
        box: part of `image` to resize, continuous xyxy px inside it; None: all of it. The filter reads pixels outside
            the box, so the result is exactly that part of the whole image resized.

    Returns:
        uint8 `[3, h, w]`; `image` itself if nothing changes.
    """
    height, width = size_of(image)
    if size == (height, width) and box in (None, (0, 0, width, height)):
        return image
    pillow_image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    resized = pillow_image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _opened(source: str | Path | bytes) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # Pillow would read the embedded preview as the image
    if is_camera_raw(Path(source)) and Path(source).exists():
        raise OSError("only the preview in a camera raw file can be read")
    return open(source, "rb")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    return " ".join(str(error).split()) or error.__class__.__name__


def _stack(file: BinaryIO) -> Stack | None:
    """Return the planes of a TIFF file; None for other formats, and for directories that only Pillow may understand."""
    is_tiff = file.read(4) in MAGIC
    file.seek(0)
    try:
        return Stack(file) if is_tiff else None
    except OSError:
        file.seek(0)
        return None


def _read_file(file: BinaryIO, upright: bool, options: ReadOptions, notice: Notice) -> Pixels:
    """Return the image in a file, `[H, W, 3]`, writable."""
    stack = _stack(file)
    opened = [Image.open(file)] if stack is None else []
    extent = _extent(stack or opened[0])
    extent.level(options)
    for ignored in extent.unread(options):
        notice(str(ignored))
    if stack is None:
        page, samples, inverted = extent.page(options), extent.channel_numbers(options), False
    else:
        planes = stack.choose(options)
        first, samples = planes[0][0], tuple(sample for _, sample in planes)
        # Pillow keeps the first three samples of a single page
        if any(plane != first for plane, _ in planes) or max(samples) > 2 or not first.for_pillow:
            _check_pixels(first.size)
            values = read_planes(planes, upright=upright)
            pixels = np.empty((*values.shape[:2], 3), np.uint8)
            reduce_depth(strips_of(values), pixels, options.depth, inverted=first.inverted)
            return pixels
        # Pillow inverts 8 bits itself
        page, inverted = first.index or 0, first.inverted and not first.is_8_bit

    def reopen() -> Image.Image:
        # popped, so that `decode` holds the only reference and can free the image before the next one
        return seek(opened.pop() if opened else Image.open(file), page)

    return decode(reopen, samples, options.depth, upright=upright, inverted=inverted)


def _check_pixels(size: Sequence[int], any_size: bool = False) -> None:
    """Apply Pillow's limit of pixels to images that other libraries decode."""
    limit, count = Image.MAX_IMAGE_PIXELS, prod(size)
    if limit is not None and count > 2 * limit and not any_size:
        raise Image.DecompressionBombError(f"{count} pixels, the limit is {2 * limit}")


def _extent(source: Stack | Image.Image) -> Extent:
    if isinstance(source, Stack):
        return source.extent()
    pages = num_pages(source)
    return Extent(pages, 1, in_color=False) if Image.getmodebase(source.mode) == "L" else Extent(pages)
