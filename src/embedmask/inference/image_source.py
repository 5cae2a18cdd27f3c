"""An image in any form that users have one in, as uint8 RGB."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from embedmask.config.reading import DEFAULT_READING, Depth, ReadOptions
from embedmask.data.depth import reduce_depth, strips_of
from embedmask.data.images import read_image
from embedmask.data.pages import UnreadPages
from embedmask.errors import BadInput


@runtime_checkable
class BinaryFile(Protocol):
    """A file opened in binary mode, or whatever gives bytes as one does."""

    def read(self) -> bytes:
        """Return all that is left."""
        ...


ImageSource = str | Path | bytes | BinaryFile | Image.Image | npt.NDArray[Any] | Tensor
IMAGE_SOURCE_TYPES = (str, Path, bytes, BinaryFile, Image.Image, np.ndarray, Tensor)


def check_image_source(source: Any, name: str = "image") -> None:
    """Whether `source` is a form of an image at all; files and bytes are not looked into.

    Args:
        name: what messages call the image.

    Raises:
        BadInput: of another type, or an array or tensor of another shape or number format.
    """
    if not isinstance(source, IMAGE_SOURCE_TYPES):
        raise BadInput(
            f"{name}: expected a path, bytes, file, image, array or tensor, got {type(source).__name__}; "
            "several images go into a list"
        )
    if isinstance(source, Tensor) and not (
        source.dtype == torch.uint8 and source.ndim == 3 and source.shape[0] == 3 and source.numel()
    ):
        raise BadInput(
            f"{name}: a tensor must be uint8 RGB [3, H, W], got {source.dtype} {tuple(source.shape)}; "
            "convert it, pixels 0..255"
        )
    if isinstance(source, np.ndarray) and not _is_image_array(source):
        raise BadInput(
            f"{name}: an array must be uint8 or uint16, RGB [H, W, 3] or grey [H, W], "
            f"got {source.dtype} {source.shape}; convert it, pixels 0..255"
        )


def as_image(
    source: ImageSource,
    name: str = "image",
    *,
    any_size: bool = False,
    options: ReadOptions = DEFAULT_READING,
) -> Tensor:
    """Return an image of any form as uint8 RGB [3, H, W]; a tensor as it is.

    Args:
        source: path, bytes of a file, a file opened in binary mode, PIL image, array uint8 or uint16, RGB [H, W, 3] (or
            RGBA, or grey [H, W]), or tensor uint8 RGB [3, H, W].
        name: what messages call the image, if it has no path.
        any_size: also files that Pillow takes for decompression bombs, which are read one at a time.
        options: page and channels of files, and how 16 bits become 8.

    Raises:
        BadInput: not an image, unreadable, or too large.
    """
    check_image_source(source, name)
    if isinstance(source, Tensor):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, options.depth)
    path = (
        source
        if isinstance(source, (str, Path))
        else getattr(source, "filename", getattr(source, "name", ""))
    )
    own = str(path or name)
    content = source if isinstance(source, (str, Path, bytes, Image.Image)) else _content(source, own)
    return read_image(content, name=own, any_size=any_size, options=options, notice=partial(_warn, own))


def _warn(name: str, line: str) -> None:
    warnings.warn(f"{name}: {line}", UnreadPages, stacklevel=2)


def _content(source: Any, name: str) -> bytes:
    """What is left to read of a file."""
    try:
        content = source.read()
    except (OSError, ValueError) as error:
        raise BadInput(f"{name}: cannot be read ({error}); open it again") from None
    if not isinstance(content, (bytes, bytearray, memoryview)):
        raise BadInput(
            f"{name}: a file gives {type(content).__name__} instead of bytes; open it in binary mode, 'rb'"
        )
    if not content:
        raise BadInput(f"{name}: a file with nothing left to read; go back to its beginning, seek(0)")
    return bytes(content)


def _is_image_array(source: npt.NDArray[Any]) -> bool:
    shaped = source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (1, 3, 4))
    return source.dtype in (np.uint8, np.uint16) and shaped and source.size > 0


def _from_array(source: npt.NDArray[Any], depth: Depth) -> Tensor:
    # a copy: the caller's array may be read-only, or run backwards
    pixels = np.empty((*source.shape[:2], 3), np.uint8)
    reduce_depth(strips_of(source.reshape(*source.shape[:2], -1)[..., :3]), pixels, depth)
    return torch.from_numpy(pixels).permute(2, 0, 1)
