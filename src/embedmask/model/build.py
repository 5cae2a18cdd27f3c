"""Construction of the network that a config describes."""

from __future__ import annotations

from embedmask.config import DetectorConfig, MaskRCNNConfig, ModelConfig
from embedmask.model.detector import Detector
from embedmask.model.embedmask import EmbedMask
from embedmask.model.maskrcnn import MaskRCNN


def build_model(config: DetectorConfig) -> Detector:
    """Build the network that a config describes, with random weights."""
    if isinstance(config, MaskRCNNConfig):
        return MaskRCNN(config)
    assert isinstance(config, ModelConfig)
    return EmbedMask(config)
