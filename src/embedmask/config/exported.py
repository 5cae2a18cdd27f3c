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
    def least_score(self) -> float:
        """Return the smallest threshold on final scores that the graph serves."""
        least = self.least_candidate_threshold
        return math.sqrt(least) if self.score == "root" else least

    def __post_init__(self) -> None:
        super().__post_init__()
        few = self.max_detections <= self.most_detections
        require(self, "max_detections", few, f"at most {self.most_detections}, as in the exported file")
