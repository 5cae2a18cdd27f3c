"""Pyramids as microscopes and converters write them: OME-TIFF, OME-Zarr 0.4 and 0.5, SVS and NDPI."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Values = NDArray[Any]


def halved(values: Values, y: int, x: int) -> Values:
    """Return every second row and column, along the given axes."""
    index = [slice(None)] * values.ndim
    index[y] = index[x] = slice(None, None, 2)
    return values[tuple(index)]


def write_ome_tiff(path: Path, values: Values, axes: str, levels: int = 3, **options: Any) -> list[Values]:
    """Write a tiled pyramid with SubIFDs; return its levels."""
    pyramid = [values]
    for _ in range(levels - 1):
        pyramid.append(halved(pyramid[-1], axes.index("Y"), axes.index("X")))
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    shared = {"tile": (64, 64), "photometric": photometric, "compression": "deflate", **options}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(pyramid[0], subifds=levels - 1, metadata={"axes": axes}, **shared)
        for level in pyramid[1:]:
            file.write(level, subfiletype=1, **shared)
    return pyramid


def write_ome_zarr(
    path: Path,
    values: Values,
    axes: str,
    version: str = "0.4",
    *,
    levels: int = 3,
    colors: Sequence[str] = (),
) -> list[Values]:
    """Write OME-Zarr; return its levels."""
    import zarr

    names = axes.lower()
    pyramid = [values]
    for _ in range(levels - 1):
        pyramid.append(halved(pyramid[-1], names.index("y"), names.index("x")))
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    for index, level in enumerate(pyramid):
        chunks = tuple(64 if axis in "yx" else 1 for axis in names)
        group.create_array(str(index), data=level, chunks=chunks)
    types = {"t": "time", "c": "channel"}
    scales = [[float(2**k) if axis in "yx" else 1.0 for axis in names] for k in range(levels)]
    image: dict[str, Any] = {
        "axes": [{"name": axis, "type": types.get(axis, "space")} for axis in names],
        "datasets": [
            {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for k, scale in enumerate(scales)
        ],
    }
    content: dict[str, Any] = {"multiscales": [image]}
    if colors:
        content["omero"] = {"channels": [{"color": color} for color in colors]}
    if version == "0.4":
        image["version"] = "0.4"
        group.attrs.update(content)
    else:
        group.attrs["ome"] = {"version": version, **content}
    return pyramid


def textured(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Return random pixels, uint8 `[H, W, C]`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


APERIO = (
    "Aperio Image Library v11.2.1 \r\n{1}x{0} [0,0 {1}x{0}] (64x64) JPEG/RGB Q=95|AppMag = 20|MPP = 0.4990"
)
"""Description of the pages of an SVS file, with height and width."""


def write_svs(path: Path, values: Values, levels: int = 3, **options: Any) -> None:
    """Write the layout of Aperio's SVS: level 0, a thumbnail, the other levels, label and macro image.

    Args:
        values: uint8 RGB `[H, W, 3]`.
        options: of `TiffWriter.write` for the levels, such as the compression.
    """
    pyramid = [values]
    for _ in range(levels - 1):
        pyramid.append(halved(pyramid[-1], 0, 1))
    shared: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:

        def write(image: Values, more: dict[str, Any]) -> None:
            file.write(image, description=APERIO.format(*image.shape), **shared, **more)

        write(pyramid[0], {"tile": (64, 64), **options})
        write(values[:40, :48], {"compression": "jpeg", "rowsperstrip": 16})
        for level in pyramid[1:]:
            write(level, {"tile": (64, 64), **options})
        write(values[:30, :32], {"compression": "lzw", "subfiletype": 1})
        write(values[:24, :56], {"compression": "jpeg", "subfiletype": 9})


def write_ndpi(path: Path, values: Values, levels: int = 3) -> list[Values]:
    """Write the layout of Hamamatsu's NDPI: one JPEG per page, whose restart intervals are its tiles; a macro image.

    Directories have 64-bit offsets, and the high halves of their values at their end.

    Args:
        values: uint8 RGB `[H, W, 3]`; sides are multiples of 64 on each level.

    Returns:
        The levels as Pillow decodes them.
    """
    pyramid = [values]
    for _ in range(levels - 1):
        pyramid.append(halved(pyramid[-1], 0, 1))
    pages = [(level, 20 / 2**k) for k, level in enumerate(pyramid)] + [(values[:64, :192], -1.0)]
    content, place, decoded = bytearray(b"II*\0" + bytes(8)), 4, []
    for image, magnification in pages:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0, restart_marker_blocks=8)
        jpeg, data = buffer.getvalue(), len(content)
        decoded.append(np.asarray(Image.open(buffer)))
        scan = jpeg.index(b"\xff\xda")
        scan += 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")
        starts = [scan, *(scan + found.end() for found in re.finditer(rb"\xff[\xd0-\xd7]", jpeg[scan:]))]
        content += jpeg
        depths, marks = len(content), len(content) + 6
        content += struct.pack(f"<3H{len(starts)}I", 8, 8, 8, *starts)
        make = len(content)
        content += b"Hamamatsu\0"
        height, width = image.shape[:2]
        tags = [
            (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, depths), (259, 3, 1, 7), (262, 3, 1, 6),
            (271, 2, 10, make), (273, 4, 1, data), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(jpeg)),
            (65420, 4, 1, 1), (65421, 11, 1, struct.unpack("<I", struct.pack("<f", magnification))[0]),
            (65426, 4, len(starts), marks),
        ]  # fmt: skip
        content[place : place + 8] = struct.pack("<Q", len(content))
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        place = len(content)
        content += bytes(8 + 4 * len(tags))
    path.write_bytes(content)
    return decoded[:-1]
