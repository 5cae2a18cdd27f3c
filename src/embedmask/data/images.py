"""Pictures in: any file that Pillow reads becomes uint8 RGB, upright."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from embedmask.errors import BadInput
from embedmask.structures import Size

Box = tuple[float, float, float, float]
Source = str | Path | bytes | Image.Image

GREY_DEPTHS = (8, 10, 12, 14, 16)
"""Bits a pixel that cameras deliver; files store all but the first in 16."""
EXIF_ORIENTATION = 0x0112
TURNED_ORIENTATIONS = (5, 6, 7, 8)
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
UNREADABLE = ("BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")
"""Formats whose endings Pillow knows, though it cannot read them."""
STRIP_PIXELS = 2**22
"""Pixels that are converted at a time, so that a large picture is not held several times over."""
# What Pillow raises on files that are cut, damaged, or no pictures at all.
READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_LIMIT = Lock()


def read_image(
    source: Source, *, upright: bool = True, name: str | None = None, any_size: bool = False
) -> Tensor:
    """Decode a picture.

    Palettes, grey, CMYK and 1-bit pictures become RGB; of several frames the first is taken; an alpha
    channel is dropped, so a transparent pixel shows the colour stored under it. Grey of more than 8 bits is
    scaled by the smallest camera depth (8, 10, 12, 14 or 16 bits) that holds its maximum, so that 12-bit
    microscopy stored in 16 bits is not black; fractional grey up to 1 is scaled by 1. Negative values
    become 0.

    Args:
        source: path, the bytes of a file, or an open picture.
        upright: turn the picture as its EXIF orientation says; False: as stored.
        name: what messages call the picture; by default its path.
        any_size: also what Pillow takes for a decompression bomb: more than `2 * PIL.Image.MAX_IMAGE_PIXELS`,
            179 million pixels unless the user has set it. Memory: at most 7 bytes a pixel, 3 once it is read.

    Returns:
        uint8 `[3, H, W]`, RGB. The memory is interleaved (channels last).

    Raises:
        BadInput: no such file, not a picture, a damaged one, or too large; names it.
    """
    limit = _unlimited() if any_size else nullcontext()
    with _reading(name or _name(source)), limit, _open(source) as picture:
        orientation = 1 if upright else _orientation(picture)  # before loading: Pillow turns TIFF files then
        picture.load()
        if upright:
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.format == "TIFF" and orientation in TO_STORED:
            pixels = _rgb(picture.transpose(TO_STORED[orientation]))
        else:
            pixels = _rgb(picture)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_size(path: str | Path) -> Size:
    """`(height, width)` of a picture file, upright, from its header: pixels are not decoded.

    Raises:
        BadInput: no such file, or not a picture; names it.
    """
    stored, orientation = read_header(path)
    return stored[::-1] if orientation in TURNED_ORIENTATIONS else stored


def read_header(path: str | Path) -> tuple[Size, int]:
    """Return `(height, width)` of an image as stored, and its EXIF orientation: 1 to 8, 1 where it has none.

    Raises:
        BadInput: no such file, or not an image; names it.
    """
    with _reading(str(path)), Image.open(path) as picture:
        orientation = _orientation(picture)
        width, height = picture.size
        # Pillow gives the upright size of a TIFF
        swapped = picture.format == "TIFF" and orientation in TURNED_ORIENTATIONS
    return ((width, height) if swapped else (height, width)), orientation


def _orientation(picture: Image.Image) -> int:
    # The base class's reader: PNG's own would decode the whole file in search of a late EXIF chunk.
    orientation = Image.Image.getexif(picture).get(EXIF_ORIENTATION)
    return orientation if orientation in TO_STORED else 1


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise BadInput(f"{name}: no such picture; check the path") from None
    except Image.DecompressionBombError as error:
        raise BadInput(
            f"{name}: too large to be read at once ({_reason(error)}); predict it in tiles"
        ) from None
    except READ_ERRORS as error:
        raise BadInput(f"{name}: cannot be read as a picture ({_reason(error)}); replace the file") from None


@contextmanager
def _unlimited() -> Iterator[None]:
    """Pillow reads pictures of any size, and one at a time, for its limit is that of all threads."""
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def size_of(image: Tensor) -> Size:
    """`(height, width)` of a picture `[3, H, W]`."""
    height, width = image.shape[-2:]
    return height, width


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture file, and not of a hidden one."""
    form = Image.registered_extensions().get(path.suffix.lower())
    return form not in (None, *UNREADABLE) and not path.name.startswith(".")


def resize_image(image: Tensor, size: Size, box: Box | None = None) -> Tensor:
    """Bilinear resize with antialiasing, Pillow's own, as the authors' (section 4.1).

    Args:
        image: uint8 `[3, H, W]`.
        size: `(height, width)` of the result, px.
        box: the part of `image` to show, continuous xyxy px inside it; the filter looks beyond its sides,
            so the result is exactly that part of the whole picture resized. None: all of it.

    Returns:
        uint8 `[3, h, w]`; `image` itself when nothing changes.
    """
    height, width = size_of(image)
    if size == (height, width) and box in (None, (0, 0, width, height)):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return str(getattr(source, "filename", "") or "the picture")


def _open(source: Source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()  # the caller's stays open and unturned
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    return " ".join(str(error).split()) or error.__class__.__name__


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """`[H, W, 3]`, writable."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    deep = picture.mode.startswith("I") or picture.mode == "F"
    full = _full_grey(picture) if deep else 0.0
    for top, strip in _strips(picture):
        if deep:
            rows: NDArray[np.generic] = np.rint(_grey(strip) * (255.0 / full))[..., None]
        else:
            # over RGBA, so that a palette's transparent colours stay what they are
            flat = strip.convert("RGBA") if strip.mode in ("P", "PA") else strip
            rows = np.asarray(flat.convert("RGB"))
        pixels[top : top + strip.height] = rows
    return pixels


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in strips of whole rows, each with its first row."""
    height = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, height):
        yield top, picture.crop((0, top, picture.width, min(top + height, picture.height)))


def _grey(picture: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0.0)


def _full_grey(picture: Image.Image) -> float:
    """The deep grey that becomes 255."""
    top = max(float(_grey(strip).max()) for _, strip in _strips(picture))
    depths = [2.0**bits - 1 for bits in GREY_DEPTHS]
    fractional = picture.mode == "F" and top <= 1
    return 1.0 if fractional else next((depth for depth in depths if top <= depth), top)
