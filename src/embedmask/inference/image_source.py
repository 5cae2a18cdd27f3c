"""Conversion of images in any form to uint8 RGB."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.depth import reduce_depth, strips_of
from embedmask.data.images import open_slide, read_image
from embedmask.data.pages import UnreadPages
from embedmask.data.slides import Slide
from embedmask.errors import BadInput


@runtime_checkable
class BinaryFile(Protocol):
    """A file opened in binary mode, or any object with its `read`."""

    def read(self) -> bytes:
        """Return the remaining bytes."""
        ...


ImageSource = str | Path | bytes | BinaryFile | Image.Image | npt.NDArray[Any] | Tensor
IMAGE_SOURCE_TYPES = (str, Path, bytes, BinaryFile, Image.Image, np.ndarray, Tensor)

SINGLE_TYPES: tuple[Any, ...] = (*IMAGE_SOURCE_TYPES, Mapping, bytearray, memoryview)
"""Types that stand for one image, or for none, although some of them are iterable; all other iterables are lists."""


def check_image_source(source: Any, name: str = "image", *, tensor: bool = False) -> None:
    """Check the type of an image, and shape and dtype of an array or tensor; files and bytes are not read.

    Args:
        tensor: accept tensors only.

    Raises:
        BadInput: another type, shape or dtype.
    """
    if tensor and not isinstance(source, Tensor):
        raise BadInput(
            f"{name}: expected a tensor uint8 RGB [3, H, W], got {type(source).__name__}; call the predictor itself, "
            "or predict_stream, for files and arrays"
        )
    if not isinstance(source, IMAGE_SOURCE_TYPES):
        raise BadInput(
            f"{name}: expected a path, bytes, file, image, array or tensor, got {type(source).__name__}; "
            "pass several images as a list"
        )
    if isinstance(source, Tensor) and not (
        source.dtype == torch.uint8 and source.ndim == 3 and source.shape[0] == 3 and source.numel()
    ):
        raise BadInput(
            f"{name}: a tensor must be uint8 RGB [3, H, W], got {source.dtype} {tuple(source.shape)}; "
            "convert it, pixels 0..255"
        )
    if isinstance(source, np.ndarray) and not (
        source.dtype.newbyteorder("=") in (np.uint8, np.uint16)
        and (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (1, 3, 4)))
        and source.size > 0
    ):
        raise BadInput(
            f"{name}: an array must be uint8 or uint16, RGB [H, W, 3] or gray [H, W], "
            f"got {source.dtype} {source.shape}; convert it, pixels 0..255"
        )


def as_image(
    source: ImageSource,
    name: str = "image",
    *,
    any_size: bool = False,
    options: ReadOptions = DEFAULT_READING,
) -> Tensor:
    """Convert an image in any form to a tensor uint8 RGB [3, H, W]; a tensor is returned unchanged.

    Args:
        source: path, bytes of a file, a file opened in binary mode, PIL image, array uint8 or uint16, RGB [H, W, 3] (or
            RGBA, or gray [H, W]), or tensor uint8 RGB [3, H, W].
        name: name of the image in messages, if it has no path.
        any_size: accept files that Pillow rejects as decompression bombs; these are read one at a time.
        options: page and channels of files, and conversion of 16 bits to 8.

    Raises:
        BadInput: not an image, unreadable, or too large.
    """
    check_image_source(source, name)
    if isinstance(source, Tensor):
        return source
    if isinstance(source, np.ndarray):
        # copy: the caller's array may be read-only or have negative strides
        pixels = np.empty((*source.shape[:2], 3), np.uint8)
        reduce_depth(strips_of(source.reshape(*source.shape[:2], -1)[..., :3]), pixels, options.depth)
        return torch.from_numpy(pixels).permute(2, 0, 1)
    path = (
        source
        if isinstance(source, (str, Path))
        else getattr(source, "filename", getattr(source, "name", ""))
    )
    label = str(path or name)
    content = source if isinstance(source, (str, Path, bytes, Image.Image)) else _read_bytes(source, label)

    def notice(line: str) -> None:
        warnings.warn(f"{label}: {line}", UnreadPages, stacklevel=2)

    return read_image(content, name=label, any_size=any_size, options=options, notice=notice)


def open_image(source: ImageSource, name: str, *, tiled: bool, options: ReadOptions) -> Tensor | Slide:
    """Convert an image as `as_image` does, or open it by windows if it goes through the network in tiles.

    Args:
        tiled: open pyramids and OME-Zarr by windows, and accept images of any size.

    Raises:
        BadInput: as `as_image`, or the package that reads windows is not installed.
    """
    if tiled and isinstance(source, (str, Path)):

        def notice(line: str) -> None:
            warnings.warn(f"{source}: {line}", UnreadPages, stacklevel=2)

        slide = open_slide(source, options, notice)
        if slide is not None:
            return slide
    return as_image(source, name, any_size=tiled, options=options)


def _read_bytes(source: Any, name: str) -> bytes:
    """Read the rest of a file."""
    try:
        content = source.read()
    except UnicodeDecodeError:
        raise BadInput(f"{name}: is open as text; open it in binary mode, 'rb'") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{name}: cannot be read ({error}); open it again") from None
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise BadInput(
            f"{name}: read() returned {type(content).__name__}, not bytes; open it in binary mode, 'rb'"
        )
    if not content:
        raise BadInput(f"{name}: the file is at its end; rewind it with seek(0)")
    return bytes(content)
