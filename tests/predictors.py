"""A small predictor, modified copies of it, and comparison of results."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from embedmask import ModelConfig, Predictor
from embedmask._supervision import sv
from embedmask.masks import RunMasks
from embedmask.structures import Instances

NAMES = ["disc", "star", "ring"]
NOTHING = Instances(
    torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), RunMasks([], (32, 32))
)


def predictor_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "num_classes": 3, "backbone": "resnet18", "channels": 16, "norm_groups": 4, "embed_dim": 4,
        "tower_convs": 1, "backbone_norm": "batch", "image_short_side": 64, "image_long_side": 128,
        "candidate_threshold": 0.0, "max_detections": 20,
    }  # fmt: skip
    return ModelConfig.preset("paper", **{**values, **changes})


def same(a: sv.Detections, b: sv.Detections) -> bool:
    assert a.mask is not None
    assert b.mask is not None
    return (
        np.array_equal(a.xyxy, b.xyxy)
        and np.array_equal(a.confidence, b.confidence)  # type: ignore[arg-type]
        and np.array_equal(a.class_id, b.class_id)  # type: ignore[arg-type]
        and np.array_equal(np.asarray(a.mask), np.asarray(b.mask))
    )


def changed(predictor: Predictor, **attributes: Any) -> Predictor:
    """Return a copy of a predictor with other attributes."""
    twin = copy.copy(predictor)
    vars(twin).update(attributes)
    return twin
