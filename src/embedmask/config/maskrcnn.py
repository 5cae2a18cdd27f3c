"""`MaskRCNNConfig`: the baseline of Table 1."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from embedmask.config.detector import DetectorConfig
from embedmask.fields import Fraction, PositiveInt, require


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(DetectorConfig):
    """torchvision's Mask R-CNN with FPN; settings without a field have torchvision's values."""

    nms_threshold: Fraction = 0.5
    """IoU threshold of the class-wise NMS."""
    anchor_sizes: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512)
    """Side of the square anchor of each level (strides 4 to 64), px; halve them for small objects."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending = all(low < high for low, high in itertools.pairwise(self.anchor_sizes))
        sizes_ok = len(self.anchor_sizes) == 5 and ascending
        require(self, "anchor_sizes", sizes_ok, "5 ascending sides, one per level")
