"""Write one scene in files of every depth and storage format."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

Values = np.ndarray[Any, Any]


def scene(height: int = 48, width: int = 64) -> Values:
    """Return soft bright discs on a dark background, `[H, W]`, values in 0..0.75."""
    y, x = np.mgrid[:height, :width]
    discs = [
        (1.3 - ((y - cy) ** 2 + (x - cx) ** 2) / 64).clip(0, 1) for cy in (12, 34) for cx in (14, 32, 50)
    ]
    noise = np.random.default_rng(0).normal(0, 0.01, (height, width))
    return (0.05 + 0.6 * np.max(discs, axis=0) + noise).clip(0, 0.75)


def rgb(values: Values) -> Values:
    return np.stack([values] * 3, axis=-1)


def with_alpha(values: Values) -> Values:
    return np.dstack((values, np.full(values.shape[:2], np.iinfo(values.dtype).max, values.dtype)))


def write_png(path: Path, values: Values) -> None:
    """Write a PNG file with 16 bits per value: gray, gray with alpha, RGB or RGBA, by the number of channels."""
    values = values if values.ndim == 3 else values[..., None]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def _tiff(values: Values, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, values, **options)


def _png(values: Values) -> Callable[[Path], None]:
    return lambda path: write_png(path, values)


def _pillow(values: Values, mode: str | None = None, **options: Any) -> Callable[[Path], None]:
    image = Image.fromarray(values)
    return lambda path: (image if mode is None else image.convert(mode)).save(path, **options)


def containers() -> dict[str, Callable[[Path], None]]:
    """Return a writer of the scene for each file name; all files show the same image at different depths."""
    one = scene()
    eight = np.rint(one * 255).astype(np.uint8)
    made: dict[str, Callable[[Path], None]] = {}
    for bits in (10, 12, 14, 16):
        deep = np.rint(one * (2**bits - 1)).astype(np.uint16)
        made |= {
            f"{bits} gray.png": _png(deep),
            f"{bits} gray alpha.png": _png(with_alpha(deep)),
            f"{bits} rgb.png": _png(rgb(deep)),
            f"{bits} rgba.png": _png(with_alpha(rgb(deep))),
            f"{bits} gray.tif": _tiff(deep),
            f"{bits} rgb.tif": _tiff(rgb(deep), photometric="rgb"),
            f"{bits} rgba.tif": _tiff(with_alpha(rgb(deep)), photometric="rgb"),
            f"{bits} premultiplied.tif": _tiff(with_alpha(rgb(deep)), photometric="rgb", extrasamples=[1]),
            f"{bits} separate.tif": _tiff(np.stack([deep] * 3), photometric="rgb", planarconfig="separate"),
            f"{bits} gray alpha.tif": _tiff(
                with_alpha(deep), photometric="minisblack", planarconfig="contig", extrasamples=[2]
            ),
            f"{bits} white.tif": _tiff(65535 - deep, photometric="miniswhite"),
            f"{bits} uint32.tif": _tiff(deep.astype(np.uint32)),
            f"{bits} int32.tif": _tiff(deep.astype(np.int32)),
            f"{bits} float32.tif": _tiff(deep.astype(np.float32)),
            f"{bits} float64.tif": _tiff(deep.astype(np.float64)),
            f"{bits} float rgb.tif": _tiff(rgb(deep).astype(np.float32), photometric="rgb"),
            f"{bits} lzw.tif": _pillow(deep, compression="tiff_lzw"),
        }
        for order in "<>":
            for big in (False, True):
                for packed in (None, "zlib"):
                    name = f"{bits} {order}{big} {packed}".replace("<", "little ").replace(">", "big ")
                    how: dict[str, Any] = {"byteorder": order, "bigtiff": big, "compression": packed}
                    made[f"{name} gray.tif"] = _tiff(deep, **how)
                    made[f"{name} rgb.tif"] = _tiff(rgb(deep), photometric="rgb", **how)
        made[f"{bits} predictor.tif"] = _tiff(
            rgb(deep), photometric="rgb", compression="zlib", predictor=True
        )
        made[f"{bits} tiles.tif"] = _tiff(rgb(deep), photometric="rgb", tile=(16, 16))
        made[f"{bits} gray tiles.tif"] = _tiff(deep, tile=(16, 16), compression="zlib")
    twelve = np.rint(one * 4095).astype(np.uint16)
    made |= {
        "white of 12.tif": _tiff(4095 - twelve, photometric="miniswhite"),
        "int16.tif": _tiff(np.rint(one * 32767).astype(np.int16)),
        "fractions.tif": _tiff(one.astype(np.float32)),
        "fractions rgb.tif": _tiff(rgb(one).astype(np.float32), photometric="rgb"),
        "half.tif": _tiff(one.astype(np.float16)),
        "white fractions.tif": _tiff((1 - one).astype(np.float32), photometric="miniswhite"),
        "float to 4.tif": _tiff((one * 4).astype(np.float32)),
        "float to 255.tif": _tiff((one * 255).astype(np.float32)),
        "float 255.tif": _tiff(eight.astype(np.float32)),
        "8.bmp": _pillow(eight),
        "8.gif": _pillow(eight),
        "8.webp": _pillow(rgb(eight), lossless=True),
        "8 white.tif": _tiff(255 - eight, photometric="miniswhite"),
        "8 separate.tif": _tiff(np.stack([eight] * 3), photometric="rgb", planarconfig="separate"),
    }
    for mode in ("L", "LA", "RGB", "RGBA", "P"):
        made[f"8 {mode}.png"] = _pillow(eight, mode)
        for packed in (None, "tiff_lzw", "tiff_deflate", "packbits"):
            made[f"8 {mode} {packed}.tif"] = _pillow(eight, mode, compression=packed)
    return made
