"""Fixtures of `predict`: images, a video and a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import save_eager
from PIL import Image
from predict_command import COUNT, RATE

from embedmask._supervision import sv
from embedmask.synthetic.dataset import make_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=COUNT, val=1, size=64, seed=0)
    return folder


@pytest.fixture(scope="session")
def weights(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_eager(shapes, tmp_path_factory.mktemp("weights") / "eager.safetensors")


@pytest.fixture
def images(shapes: Path, tmp_path: Path) -> Path:
    """Return a folder of images that a test may modify."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted((shapes / "images").glob("train*")):
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def video(images: Path, tmp_path: Path) -> Path:
    """Write a video of eight frames, 64 x 48."""
    path = tmp_path / "clip.avi"
    with sv.VideoSink(str(path), sv.VideoInfo(64, 48, RATE)) as sink:
        for image in sorted(images.iterdir())[:8]:
            frame = np.asarray(Image.open(image).convert("RGB"))[:48, :, ::-1]
            sink.write_frame(np.ascontiguousarray(frame))
    return path
