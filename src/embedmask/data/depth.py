"""From any depth to 8 bits; the rule is told in docs/data.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.config.reading import Depth

Values = NDArray[Any]
Strips = Callable[[], Iterable[tuple[int, Values]]]
"""Gives the image in strips of whole rows, `[h, W, C]` of any number format, each with the number of its first row."""

CAMERA_BITS = (8, 10, 12, 14, 16)
"""Bits a pixel that cameras deliver; files store all but the first in 16."""
FRACTION_LEVELS = (1.0, 4.0, 16.0, 64.0)
"""White of values with fractions that are too small for 8 bits: scaled to 1, or somewhat beyond."""
HOT_SHARE = 1000
"""One pixel in so many may be hot."""
SMALLEST_WITH_HOT = 64
"""Pixels from which on an image may have a hot one."""
BLOCK = 3
"""Side of the smallest bright block, px, that is no group of hot pixels."""


STRIP_VALUES = 2**22
"""Values that are converted at a time, so that a large image is not held several times over."""


def strip_height(width: int, channels: int = 1) -> int:
    """Return the number of rows of a strip."""
    return max(1, STRIP_VALUES // (width * channels))


def strips_of(values: Values) -> Strips:
    """Return the strips of an array `[H, W, C]`."""
    rows = strip_height(*values.shape[1:])
    return lambda: ((top, values[top : top + rows]) for top in range(0, len(values), rows))


def reduce_depth(strips: Strips, out: NDArray[np.uint8], depth: Depth, *, inverted: bool = False) -> None:
    """Write an image of any depth as 8 bits.

    Args:
        strips: the image; is asked for three times at most.
        out: `[H, W, 3]`, filled. Strips may read from it what is not yet written.
        depth: rule, or the value that becomes 255; images of 8 bits stay as they are.
        inverted: 0 is white.
    """
    num_pixels = out.shape[0] * out.shape[1]
    if inverted:
        strips = _turned(strips, white_level(strips, num_pixels, depth))
    white = white_level(strips, num_pixels, depth)
    for top, rows in strips():
        is_8_bit = rows.dtype == np.uint8
        out[top : top + len(rows)] = (
            rows if is_8_bit else np.rint(_finite(rows).clip(0, white) * (255.0 / white))
        )


def white_level(strips: Strips, num_pixels: int, depth: Depth) -> float:
    """Return the value that becomes 255: by the rule, the smallest level that holds all but hot pixels.

    Hot are at most a thousandth of the pixels (at least one), and only where no block of 3 x 3 pixels is as bright.
    """
    top, kind, whole = 0.0, np.dtype(np.uint8), True
    num_hot = max(num_pixels // HOT_SHARE, 1) if num_pixels >= SMALLEST_WITH_HOT else 0
    brightest, above = np.zeros(0), np.zeros(0)
    for _, rows in strips():
        kind = rows.dtype
        if kind == np.uint8:
            return 255.0
        if depth != "camera":
            return float(depth)
        values = _finite(rows)
        whole = whole and (kind.kind != "f" or bool((values == np.rint(values)).all()))
        # of all strips so far, the values down to the first that cannot be hot
        keep = num_hot * rows.shape[2] + 1
        brightest = _largest(np.concatenate((brightest, _largest(values.ravel(), keep))), keep)
        # blocks may lie across the border of two strips
        band = np.concatenate((above, values)) if above.size else values
        top = max(top, _brightest_block(band))
        above = band[1 - BLOCK :]
    return _level(max(top, float(brightest.min())), kind, whole)


def _level(top: float, kind: np.dtype[Any], whole: bool) -> float:
    fractional = kind.kind == "f" and (not whole or top <= 1)
    levels = [*(FRACTION_LEVELS if fractional else ()), *(2.0**bits - 1 for bits in CAMERA_BITS)]
    level = next((level for level in levels if top <= level), top)
    return min(level, float(np.iinfo(kind).max)) if kind.kind in "iu" else level


def _brightest_block(band: Values) -> float:
    """Return the highest value that all pixels of a block reach; 0 where the band is smaller than a block."""
    if min(band.shape[:2]) < BLOCK:
        return 0.0
    rows = np.minimum(np.minimum(band[:-2], band[1:-1]), band[2:])
    return float(np.minimum(np.minimum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]).max())


def _largest(values: Values, count: int) -> Values:
    return np.partition(values, -count)[-count:] if len(values) > count else values


def _turned(strips: Strips, white: float) -> Strips:
    def turned() -> Iterator[tuple[int, Values]]:
        for top, rows in strips():
            values = _finite(rows) if rows.dtype.kind == "f" else rows.astype(np.int64)
            yield top, (np.asarray(white).astype(values.dtype) - values).clip(min=0)

    return turned


def _finite(values: Values) -> Values:
    if values.dtype.kind != "f":
        return values
    return np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
