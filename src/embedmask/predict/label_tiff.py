"""Export of masks as a tiled TIFF label image of any size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from embedmask.files import atomic_write
from embedmask.masks import RunMasks

TILE = 1024
"""Side of the tiles, px."""
MAX_16 = 2**16 - 1
"""Number of objects up to which labels have 16 bits."""

Dtype = np.dtype[np.uint16] | np.dtype[np.uint32]
Labels = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def write_label_tiff(path: Path, masks: RunMasks) -> bool:
    """Write a label image: 0 for the background, k for the k-th mask; the first of overlapping masks wins.

    Labels have 16 bits, and 32 beyond 65,535 masks. Tiles are compressed by deflate and written one at a time, so
    memory does not grow with the image.

    Returns:
        Whether the labels have 32 bits.

    Raises:
        BadInput: the file cannot be written.
    """
    dtype: Dtype = np.dtype(np.uint16) if len(masks) <= MAX_16 else np.dtype(np.uint32)
    empty = zlib.compress(bytes(TILE * TILE * dtype.itemsize))
    with atomic_write(path) as temporary:
        tifffile.imwrite(
            temporary,
            (empty if tile is None else zlib.compress(tile.tobytes()) for tile in label_tiles(masks, dtype)),
            shape=masks.frame,
            dtype=dtype,
            tile=(TILE, TILE),
            compression="deflate",
            photometric="minisblack",
            bigtiff=masks.frame[0] * masks.frame[1] * dtype.itemsize >= 2**32,
            metadata=None,
        )
    return dtype == np.uint32


def label_tiles(masks: RunMasks, dtype: Dtype) -> Iterator[Labels | None]:
    """Yield the tiles of the label image, row by row, `[1024, 1024]`, padded by background; None: it has no mask."""
    boxes = masks.boxes()
    height, width = masks.frame
    for top in range(0, height, TILE):
        in_row = np.flatnonzero((boxes[:, 1] < top + TILE) & (boxes[:, 3] > top))
        for left in range(0, width, TILE):
            inside = in_row[(boxes[in_row, 0] < left + TILE) & (boxes[in_row, 2] > left)]
            if not len(inside):
                yield None
                continue
            tile = np.zeros((TILE, TILE), dtype)
            # the first mask last, so that it wins
            for index in inside[::-1].tolist():
                x1, y1 = np.maximum(boxes[index, :2], (left, top)).tolist()
                x2, y2 = np.minimum(boxes[index, 2:], (left + TILE, top + TILE)).tolist()
                part = tile[y1 - top : y2 - top, x1 - left : x2 - left]
                part[masks.window(index, (x1, y1, x2, y2))] = index + 1
            yield tile
