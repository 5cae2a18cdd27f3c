"""A small model with detections of distinct scores, exported once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.typing import NDArray
from small_models import small_config

from embedmask import EmbedMask, Predictor, save
from embedmask.benchmark.calibration import calibrate_embedmask
from embedmask.export import export_model

NAMES = ["disc", "star", "ring"]


@dataclass
class Exported:
    """A model file, the same model as ONNX, and both as predictors."""

    weights: Path
    onnx: Path
    native: Predictor
    exported: Predictor


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image of soft blobs, uint8 `[H, W, 3]`."""
    rng = np.random.default_rng(seed)
    blobs = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3))
    return np.kron(blobs, np.ones((12, 12, 1)))[:height, :width].astype(np.uint8)


def calibrated(**changes: object) -> EmbedMask:
    """Return a model with about 30 detections in the scene of 90 x 131 px."""
    torch.manual_seed(0)
    settings = {
        "backbone": "test_resnet",
        "channels": 16,
        "norm_groups": 4,
        "strides": (8, 16, 32),
        "size_ranges": (64, 128),
        "image_short_side": 64,
        "image_long_side": 128,
    }
    model = EmbedMask(small_config(**{**settings, "max_detections": 40, **changes})).eval()
    predictor = Predictor(model, NAMES, device="cpu", precision="float32")
    image = torch.from_numpy(scene(90, 131)).permute(2, 0, 1)
    calibrate_embedmask(
        model, model.preprocess([predictor.resize.image(image)]), 30, trained=False, box_cells=4
    )
    return model


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export a model as ONNX, once for all processes: it takes 20 s of one core."""
    pytest.importorskip("onnxscript")
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    weights, onnx = folder / "model.safetensors", folder / "model.onnx"
    model = calibrated()
    with FileLock(folder / "export.lock"):
        if not onnx.is_file():
            save(model, weights, class_names=NAMES)
            export_model(model, onnx, class_names=NAMES)
    native = Predictor(model, NAMES, device="cpu", precision="float32")
    return Exported(weights, onnx, native, Predictor.load(onnx, device="cpu"))
