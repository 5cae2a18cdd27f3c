"""A picture in any form that users have one in, as uint8 RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from embedmask.data.images import read_image
from embedmask.errors import BadInput

PICTURE_TYPES = (str, Path, bytes, Image.Image, np.ndarray, Tensor)
Picture = str | Path | bytes | Image.Image | npt.NDArray[Any] | Tensor


def check_picture(source: Any, name: str = "picture") -> None:
    """Whether `source` is a form of a picture at all; files and bytes are not looked into.

    Args:
        name: what messages call the picture.

    Raises:
        BadInput: of another type, or an array or tensor of another shape or number format.
    """
    if not isinstance(source, PICTURE_TYPES):
        raise BadInput(
            f"{name}: expected a path, bytes, image, array or tensor, got {type(source).__name__}; "
            "several pictures go into a list"
        )
    if isinstance(source, Tensor) and not (
        source.dtype == torch.uint8 and source.ndim == 3 and source.shape[0] == 3 and source.numel()
    ):
        raise BadInput(
            f"{name}: a tensor must be uint8 RGB [3, H, W], got {source.dtype} {tuple(source.shape)}; "
            "convert it, pixels 0..255"
        )
    if isinstance(source, np.ndarray) and not (_is_deep_grey(source) or _is_8_bit(source)):
        raise BadInput(
            f"{name}: an array must be uint8 RGB [H, W, 3] or grey [H, W], "
            f"got {source.dtype} {source.shape}; convert it, pixels 0..255"
        )


def as_image(source: Picture, name: str = "picture", *, any_size: bool = False) -> Tensor:
    """Any form of a picture as uint8 RGB [3, H, W]; a tensor as it is.

    Args:
        source: path, bytes of a file, PIL image, array uint8 RGB [H, W, 3] (or RGBA, or grey [H, W], also uint16) or
            tensor uint8 RGB [3, H, W].
        name: what messages call the picture, if it has no path.
        any_size: also files that Pillow takes for decompression bombs, which are read one at a time.

    Raises:
        BadInput: not a picture, unreadable, or too large.
    """
    check_picture(source, name)
    if isinstance(source, Tensor):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    own = source if isinstance(source, (str, Path)) else getattr(source, "filename", "")
    return read_image(source, name=str(own or name), any_size=any_size)


def _is_grey(source: npt.NDArray[Any]) -> bool:
    return source.ndim == 2 or source.shape[2:] == (1,)


def _is_deep_grey(source: npt.NDArray[Any]) -> bool:
    return source.dtype == np.uint16 and _is_grey(source) and source.size > 0


def _is_8_bit(source: npt.NDArray[Any]) -> bool:
    shaped = _is_grey(source) or (source.ndim == 3 and source.shape[2] in (3, 4))
    return source.dtype == np.uint8 and shaped and source.size > 0


def _from_array(source: npt.NDArray[Any]) -> Tensor:
    if _is_deep_grey(source):
        return read_image(Image.fromarray(source.reshape(source.shape[:2])))
    pixels = source.reshape(*source.shape[:2], -1)[..., :3]
    # a copy: the caller's array may be read-only, or run backwards
    rgb = np.array(np.broadcast_to(pixels, (*source.shape[:2], 3)), order="C")
    return torch.from_numpy(rgb).permute(2, 0, 1)
