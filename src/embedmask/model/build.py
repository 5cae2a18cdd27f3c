"""Construction of the network that a config describes."""

from __future__ import annotations

from embedmask.config import DetectorConfig, model_type_of
from embedmask.model.detector import Detector


def build_model(config: DetectorConfig) -> Detector:
    """Build the network that a config describes, with random weights."""
    model: Detector = model_type_of(config).load("model")(config)
    return model
