"""Fixtures: a small predictor and a photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from predictors import NAMES, predictor_config

from embedmask import EmbedMask, Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(EmbedMask(predictor_config()), NAMES, device="cpu", precision="float32")


@pytest.fixture
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    return np.asarray(small.resize((131, 90)))
