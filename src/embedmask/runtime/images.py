"""Images for an exported graph: files as 8-bit RGB, resized by the rule of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .graph_file import BadFile, Settings

Size = tuple[int, int]


def resized_size(size: Size, settings: Settings) -> Size:
    """Return the size at which an image enters the network: the short side, or the long side, has the given length."""
    if settings.short_side is None:
        return size
    short, long, target, limit = min(size), max(size), settings.short_side, settings.long_side
    if settings.rounding == "nearest":
        scale = min(target / short, limit / long)
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)
    if limit * short < long:
        return (1, limit) if size[0] <= size[1] else (limit, 1)
    if long / short * target > limit:
        target = max(round(limit * short / long), 1)
    if short == target:
        return size
    other = int(target * long / short)
    return (target, other) if size[0] <= size[1] else (other, target)


def read_image(source: str | Path | Image.Image | NDArray[np.uint8], settings: Settings) -> NDArray[np.uint8]:
    """Return an image as uint8 RGB `[H, W, 3]`, upright.

    Args:
        source: a file, a Pillow image, or an array uint8 `[H, W, 3]` RGB, `[H, W, 4]` RGBA or `[H, W]` grey.

    Raises:
        BadFile: no image of 8 bits, or without the page or channel that the model reads.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,), (4,)):
            raise BadFile(f"an array {source.dtype} {list(source.shape)}: pass uint8 RGB [H, W, 3]")
        return np.repeat(source[..., None], 3, 2) if source.ndim == 2 else source[..., :3]
    name = getattr(source, "filename", "") or "the image" if isinstance(source, Image.Image) else str(source)
    try:
        image = source.copy() if isinstance(source, Image.Image) else Image.open(source)
        if settings.page and not isinstance(source, Image.Image):
            image.seek(settings.page)
        # the raw mode of a file that is not loaded yet, as RGB;16B, of which Pillow keeps the high bytes
        wide = any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        image.load()
    except FileNotFoundError:
        raise BadFile(f"{name}: no such image; check the path") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadFile(f"{name}: cannot be read as an image ({' '.join(str(error).split())})") from None
    if wide or image.mode[0] in "IF":
        raise BadFile(f"{name}: more than 8 bits per value; convert it to 8 bits, or predict with embedmask")
    image = ImageOps.exif_transpose(image)
    # via RGBA, so that the transparent colours of a palette are kept
    image = image.convert("RGBA") if image.mode in ("P", "PA") else image
    pixels = np.asarray(image.convert("RGB"))
    if settings.channels is None or Image.getmodebase(image.mode) == "L":
        return pixels
    return pixels[..., settings.channels * (3 // len(settings.channels))]


def resize(image: NDArray[np.uint8], settings: Settings) -> NDArray[np.uint8]:
    """Return an image `[H, W, 3]` at the network's resolution, `[h, w, 3]`."""
    height, width = resized_size((image.shape[0], image.shape[1]), settings)
    if (height, width) == image.shape[:2]:
        return image
    pillow = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pillow.resize((width, height), Image.Resampling.BILINEAR))
