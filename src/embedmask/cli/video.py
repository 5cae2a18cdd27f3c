"""Videos in and out, by supervision."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embedmask._supervision import sv
from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.visualize import Pixels

logging.getLogger("supervision").setLevel(logging.ERROR)  # what it warns of, we raise


def open_video(path: Path) -> sv.VideoInfo:
    """Size, frames a second and, as far as the file tells, the number of frames.

    Raises:
        BadInput: not a video, or one without pictures.
    """
    try:
        info = sv.VideoInfo.from_video_path(str(path))
    except Exception as error:  # supervision raises nothing narrower; av has errors of its own
        raise BadInput(f"{path}: cannot be read as a video ({_reason(error)}); replace the file") from None
    if not info.fps > 0 or min(info.resolution_wh) < 1:
        raise BadInput(f"{path}: has no pictures, or no rate of them; replace the file")
    return info


def read_frames(path: Path) -> Iterator[Tensor]:
    """The frames of a video, upright, one after the other: uint8 RGB `[3, H, W]`."""
    for frame in sv.get_video_frames_generator(str(path)):
        yield torch.from_numpy(np.ascontiguousarray(frame[..., ::-1])).permute(2, 0, 1)


@contextmanager
def write_video(path: Path, info: sv.VideoInfo) -> Iterator[Callable[[Pixels], None]]:
    """A function that appends a frame, uint8 RGB `[H, W, 3]` of the size in `info`, to a video, whole or not at all.

    Raises:
        BadInput: it cannot be written.
    """
    with atomic_write(path) as temporary, sv.VideoSink(os.fspath(temporary), info) as sink:
        yield lambda picture: sink.write_frame(np.ascontiguousarray(picture[..., ::-1]))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
