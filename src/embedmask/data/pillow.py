"""Pixels of an image that Pillow opens, as 8-bit RGB; with 16 bits a value no byte is lost."""

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
"""Operation that leads from an upright image back to the stored one, by EXIF orientation."""
ONE_PAGE = ("MPO", "PSD")
"""Formats whose further frames are previews or layers of the image."""
WIDE_COLOURS = ("RGB;16", "RGBA;16", "RGBX;16")
"""Raw modes, without their byte order, of which Pillow keeps the high bytes alone."""
WIDE_GREY_ALPHA = "LA;16B"
OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""The byte order by which Pillow gives the low bytes of a file in this one."""


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
        reopen: gives the image, not loaded yet; called again where it has 16 bits a value in colour.
        channels: one, or those of R, G and B; grey has but one.
        depth: how more than 8 bits become 8.
        upright: turn it as its EXIF orientation says.
        inverted: 0 is white, if it has more than 8 bits; of 8 bits Pillow knows.

    Returns:
        uint8 `[H, W, 3]`, writable.
    """
    image = reopen()
    raw = _raw_mode(image)
    if raw == WIDE_GREY_ALPHA:
        # both bytes of both values, in the place of four colours
        both = _load(_with_raw_mode(image, "RGBA"), upright)
        return _reduced(both, _grey_of_pairs, depth)
    image = _load(image, upright)
    if raw[:-1] in WIDE_COLOURS:
        pixels = _rgb(image, channels)
        del image
        other = _load(_with_raw_mode(reopen(), raw[:-1] + OTHER_BYTES[raw[-1]]), upright)
        return _joined(pixels, other, channels, depth)
    if image.mode.startswith("I") or image.mode == "F":
        return _reduced(image, lambda strip: np.asarray(strip)[..., None], depth, inverted=inverted)
    return _rgb(image, channels)


def num_pages(image: Image.Image) -> int:
    """Return the number of pages or frames; previews and layers are none.

    Raises:
        OSError: one of them is damaged.
    """
    with _directories():
        return 1 if image.format in ONE_PAGE else int(getattr(image, "n_frames", 1))


def seek(image: Image.Image, page: int) -> Image.Image:
    """Return `image` at one of its pages.

    Raises:
        OSError: the page is damaged.
    """
    with _directories():
        if page:
            image.seek(page)
    return image


@contextmanager
def _directories() -> Iterator[None]:
    """Of a damaged directory Pillow says what Python says."""
    try:
        yield
    except (TypeError, KeyError, struct.error) as error:
        raise OSError(str(error)) from error


def _load(image: Image.Image, upright: bool) -> Image.Image:
    # Pillow itself turns TIFF files upright when it loads them
    turned = image.format == "TIFF" and Image.Image.getexif(image).get(EXIF_ORIENTATION)
    image.load()
    if upright:
        ImageOps.exif_transpose(image, in_place=True)
    elif turned in TO_STORED:
        return image.transpose(TO_STORED[turned])
    return image


def _raw_mode(image: Image.Image) -> str:
    """How the file stores values; empty where that is not known, as of an image that is loaded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _with_raw_mode(image: Image.Image, raw: str) -> Image.Image:
    changed: Any = image
    changed.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in changed.tile
    ]
    return image


def _grey_of_pairs(strip: Image.Image) -> NDArray[np.uint16]:
    return np.ascontiguousarray(np.asarray(strip)[..., :2]).view(">u2")


def _reduced(
    image: Image.Image,
    values: Callable[[Image.Image], NDArray[Any]],
    depth: Depth,
    *,
    inverted: bool = False,
) -> Pixels:
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    reduce_depth(
        lambda: ((top, values(strip)) for top, strip in _strips(image)), pixels, depth, inverted=inverted
    )
    return pixels


def _joined(pixels: Pixels, low: Image.Image, channels: tuple[int, ...], depth: Depth) -> Pixels:
    """Reduce colours of 16 bits in place; `pixels` holds the high bytes, `low` the others."""

    def strips() -> Iterator[tuple[int, NDArray[np.uint16]]]:
        for top, strip in _strips(low, channels=3):
            high = pixels[top : top + strip.height].astype(np.uint16)
            yield top, high << 8 | np.asarray(strip.convert("RGB"))[..., list(channels)]

    reduce_depth(strips, pixels, depth)
    return pixels


def _rgb(image: Image.Image, channels: tuple[int, ...]) -> Pixels:
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    every = channels == (0, 1, 2) or Image.getmodebase(image.mode) == "L"
    for top, strip in _strips(image):
        # over RGBA, so that a palette's transparent colours stay what they are
        flat = strip.convert("RGBA") if strip.mode in ("P", "PA") else strip
        rows = np.asarray(flat.convert("RGB"))
        pixels[top : top + strip.height] = rows if every else rows[..., list(channels)]
    return pixels


def _strips(image: Image.Image, channels: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips of whole rows, each with its first row."""
    height = strip_height(image.width, channels)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))
