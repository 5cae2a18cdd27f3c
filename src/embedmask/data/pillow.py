"""Decode images with Pillow as 8-bit RGB, without losing a byte of 16-bit values."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from embedmask.config.reading import Depth
from embedmask.data.depth import reduce_depth, strip_height

Pixels = NDArray[np.uint8]

EXIF_ORIENTATION = 0x0112
TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Operation from the upright image back to the stored one, by EXIF orientation."""
ONE_PAGE = ("MPO", "PSD")
"""Formats whose further frames are previews or layers of the image."""
WIDE_COLORS = ("RGB;16", "RGBA;16", "RGBX;16")
"""Raw modes, without byte order, of which Pillow keeps only the high bytes."""
WIDE_GRAY_ALPHA = "LA;16B"
OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order of a file -> the opposite one, with which Pillow reads its low bytes as high bytes."""


def decode(
    reopen: Callable[[], Image.Image],
    channels: tuple[int, ...],
    depth: Depth,
    *,
    upright: bool,
    inverted: bool = False,
) -> Pixels:
    """Decode an image.

    Args:
        reopen: returns the image, not loaded yet; called twice for 16-bit color.
        channels: one, or those of R, G and B; ignored for gray, which has only one.
        depth: reduction of more than 8 bits.
        upright: rotate the image by its EXIF orientation.
        inverted: 0 is white, in an image of more than 8 bits; Pillow inverts 8 bits itself.

    Returns:
        uint8 `[H, W, 3]`, writable.
    """
    image = reopen()
    # the file's number format: the first decoder argument of a tile; an image that is loaded has no tiles
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    raw = str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
    if raw == WIDE_GRAY_ALPHA:
        # 2 values of 2 bytes, decoded as 4 values of 1 byte
        both = _load(_with_raw_mode(image, "RGBA"), upright)
        return _reduced(
            both, lambda strip: np.ascontiguousarray(np.asarray(strip)[..., :2]).view(">u2"), depth
        )
    image = _load(image, upright)
    if raw[:-1] in WIDE_COLORS:
        # first pass: high bytes; second pass, with the byte order swapped: low bytes
        pixels = _rgb(image, channels)
        del image
        low = _load(_with_raw_mode(reopen(), raw[:-1] + OTHER_BYTES[raw[-1]]), upright)

        def strips() -> Iterator[tuple[int, NDArray[np.uint16]]]:
            for top, strip in _strips(low, channels=3):
                high = pixels[top : top + strip.height].astype(np.uint16)
                yield top, high << 8 | np.asarray(strip.convert("RGB"))[..., list(channels)]

        # in place: each strip of high bytes is read before it is overwritten
        reduce_depth(strips, pixels, depth)
        return pixels
    if image.mode.startswith("I") or image.mode == "F":
        return _reduced(image, lambda strip: np.asarray(strip)[..., None], depth, inverted=inverted)
    return _rgb(image, channels)


def num_pages(image: Image.Image) -> int:
    """Return the number of pages or frames, without previews and layers; `OSError` if one of them is damaged."""
    with _directories():
        return 1 if image.format in ONE_PAGE else int(getattr(image, "n_frames", 1))


def seek(image: Image.Image, page: int) -> Image.Image:
    """Return `image` at one of its pages; `OSError` if the page is damaged."""
    with _directories():
        if page:
            image.seek(page)
    return image


@contextmanager
def _directories() -> Iterator[None]:
    """Convert the errors that Pillow lets through on a damaged directory to `OSError`."""
    try:
        yield
    except (TypeError, KeyError, struct.error) as error:
        raise OSError(str(error)) from error


def _load(image: Image.Image, upright: bool) -> Image.Image:
    # Pillow rotates TIFF files on loading, and removes the tag: read it before, to undo the rotation
    turned = image.format == "TIFF" and Image.Image.getexif(image).get(EXIF_ORIENTATION)
    image.load()
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    elif turned in TO_STORED:
        return image.transpose(TO_STORED[turned])
    return image


def _with_raw_mode(image: Image.Image, raw: str) -> Image.Image:
    """Set the number format in which the tiles are decoded."""
    changed: Any = image
    changed.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in changed.tile
    ]
    return image


def _reduced(
    image: Image.Image,
    values: Callable[[Image.Image], NDArray[Any]],
    depth: Depth,
    *,
    inverted: bool = False,
) -> Pixels:
    """Return an image of more than 8 bits as `[H, W, 3]`; `values` converts a strip to `[h, W, 1]`."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    reduce_depth(
        lambda: ((top, values(strip)) for top, strip in _strips(image)), pixels, depth, inverted=inverted
    )
    return pixels


def _rgb(image: Image.Image, channels: tuple[int, ...]) -> Pixels:
    """Return an image of 8 bits as `[H, W, 3]`."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    every = channels == (0, 1, 2) or Image.getmodebase(image.mode) == "L"
    for top, strip in _strips(image):
        # via RGBA, so that the transparent colors of a palette are kept
        flat = strip.convert("RGBA") if strip.mode in ("P", "PA") else strip
        rows = np.asarray(flat.convert("RGB"))
        pixels[top : top + strip.height] = rows if every else rows[..., list(channels)]
    return pixels


def _strips(image: Image.Image, channels: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield the image in strips of whole rows, each with the index of its first row."""
    height = strip_height(image.width, channels)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))
