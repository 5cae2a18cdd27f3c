"""Pyramids as microscopes and converters write them: OME-TIFF, and OME-Zarr 0.4 and 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

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
