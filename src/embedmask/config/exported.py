"""`ExportedConfig`: the config of an exported file, whose graph applies some settings itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

from embedmask.config.model import ModelConfig
from embedmask.fields import Fraction, PositiveInt, require


@dataclass(frozen=True, kw_only=True)
class ExportedConfig(ModelConfig):
    """Config of an EmbedMask that was exported; it limits the settings to those that its graph serves."""

    least_candidate_threshold: Fraction = 0.0
    """Threshold on candidates within the graph: `candidate_threshold` at the time of the export."""
    most_detections: PositiveInt = 100
    """Number of detections that the graph serves: `max_detections` at the time of the export."""

    @property
    def min_score(self) -> float:
        """Return the smallest threshold on final scores that the graph serves."""
        threshold = self.least_candidate_threshold
        return math.sqrt(threshold) if self.score == "root" else threshold

    def __post_init__(self) -> None:
        super().__post_init__()
        is_served = self.max_detections <= self.most_detections
        require(self, "max_detections", is_served, f"at most {self.most_detections}, as in the exported file")
