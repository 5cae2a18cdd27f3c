"""`MaskRCNNConfig`: the baseline that the paper compares with (Table 1)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from embedmask.config.detector import DetectorConfig
from embedmask.fields import require


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(DetectorConfig):
    """torchvision's Mask R-CNN with FPN; what is no field here is as torchvision has it."""

    nms_threshold: float = 0.5
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side of the square anchor of each level (strides 4, 8, 16, 32, 64), px; halve them for smaller objects."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (0, *self.anchor_sizes)
        ascending = all(low < high for low, high in itertools.pairwise(sizes))
        require(self, "anchor_sizes", len(sizes) == 6 and ascending, "5 ascending sides above 0, one a level")
