"""Reduce values of any bit depth to 8 bits; docs/data.md states the rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.config.reading import Depth

Values = NDArray[Any]
Strips = Callable[[], Iterable[tuple[int, Values]]]
"""Function that returns the image in strips of whole rows, `[h, W, C]` of any number format, with their first rows."""

CAMERA_BITS = (8, 10, 12, 14, 16)
"""Bits per pixel of cameras; files store all but the first in 16."""
FRACTION_LEVELS = (1.0, 4.0, 16.0, 64.0)
"""White levels of fractional values below the range of 8 bits: scaled to 1, or somewhat beyond."""
HOT_SHARE = 1000
"""Number of pixels of which one may be hot."""
SMALLEST_WITH_HOT = 64
"""Minimum number of pixels of an image that may have a hot one."""
BLOCK = 3
"""Side of the smallest bright block, px, that is not a group of hot pixels."""


STRIP_VALUES = 2**22
"""Number of values to convert at a time, which limits the memory for a large image."""


def strip_height(width: int, channels: int = 1) -> int:
    """Return the number of rows of a strip."""
    return max(1, STRIP_VALUES // (width * channels))


def strips_of(values: Values) -> Strips:
    """Return the strips of an array `[H, W, C]`."""
    rows = strip_height(*values.shape[1:])
    return lambda: ((top, values[top : top + rows]) for top in range(0, len(values), rows))


def reduce_depth(strips: Strips, out: NDArray[np.uint8], depth: Depth, *, inverted: bool = False) -> None:
    """Convert an image of any depth to 8 bits.

    Args:
        strips: the image, called up to three times.
        out: `[H, W, 3]`, the result. A strip may be computed from the rows of `out` that it is written to.
        depth: rule, or the value that becomes 255; images of 8 bits keep their levels.
        inverted: 0 is white.
    """
    num_pixels = out.shape[0] * out.shape[1]
    source = strips
    if inverted:
        # the white level of the stored values becomes 0, with 8 bits it is 255
        black = white_level(source, num_pixels, depth)

        def strips() -> Iterator[tuple[int, Values]]:
            for top, rows in source():
                if rows.dtype == np.uint8:
                    yield top, 255 - rows
                    continue
                # int64: the difference of unsigned values would wrap around
                values = _finite(rows) if rows.dtype.kind == "f" else rows.astype(np.int64)
                yield top, (np.asarray(black).astype(values.dtype) - values).clip(min=0)

    white = white_level(strips, num_pixels, depth)
    for top, rows in strips():
        is_8_bit = rows.dtype == np.uint8
        # [h, W, 1] broadcasts to gray
        out[top : top + len(rows)] = (
            rows if is_8_bit else np.rint(_finite(rows).clip(0, white) * (255.0 / white))
        )


def white_level(strips: Strips, num_pixels: int, depth: Depth) -> float:
    """Return the value that becomes 255: by the rule, the smallest level that covers all but hot pixels.

    At most a thousandth of the pixels (at least one) are hot, and only if no block of 3 x 3 pixels is as bright.

    Args:
        strips: the image.
        num_pixels: number of its pixels.
        depth: rule, or the level itself.
    """
    block_max, dtype, whole = 0.0, np.dtype(np.uint8), True
    num_hot = max(num_pixels // HOT_SHARE, 1) if num_pixels >= SMALLEST_WITH_HOT else 0
    brightest, above = np.zeros(0), np.zeros(0)
    for _, rows in strips():
        dtype = rows.dtype
        if dtype == np.uint8:
            return 255.0
        if depth != "camera":
            return float(depth)
        values = _finite(rows)
        whole = whole and (dtype.kind != "f" or bool((values == np.rint(values)).all()))
        # the largest values so far, one more than may be hot: the smallest of them is not hot
        num_kept = num_hot * rows.shape[2] + 1
        brightest = _largest(np.concatenate((brightest, _largest(values.ravel(), num_kept))), num_kept)
        # the last two rows of the strip above: blocks may cross the border
        band = np.concatenate((above, values)) if above.size else values
        if min(band.shape[:2]) >= BLOCK:
            # minimum of each block, down and then across: [h, W, C] -> [h - 2, W, C] -> [h - 2, W - 2, C]
            low = np.minimum(np.minimum(band[:-2], band[1:-1]), band[2:])
            low = np.minimum(np.minimum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
            block_max = max(block_max, float(low.max()))
        above = band[1 - BLOCK :]
    top = max(block_max, float(brightest.min()))
    # fractions, or whole floats of at most 1, may be scaled to 1
    is_fractional = dtype.kind == "f" and (not whole or top <= 1)
    levels = [*(FRACTION_LEVELS if is_fractional else ()), *(2.0**bits - 1 for bits in CAMERA_BITS)]
    level = next((level for level in levels if top <= level), top)
    # a signed type ends below the level: 32767, not 65535
    return min(level, float(np.iinfo(dtype).max)) if dtype.kind in "iu" else level


def _largest(values: Values, count: int) -> Values:
    return np.partition(values, -count)[-count:] if len(values) > count else values


def _finite(values: Values) -> Values:
    if values.dtype.kind != "f":
        return values
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
