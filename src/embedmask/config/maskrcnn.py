"""`MaskRCNNConfig`: the baseline of Table 1."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from embedmask.config.detector import DetectorConfig
from embedmask.fields import require


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(DetectorConfig):
    """torchvision's Mask R-CNN with FPN; settings without a field have torchvision's values."""

    nms_threshold: float = 0.5
    """IoU threshold of the class-wise NMS."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side of the square anchor of each level (strides 4 to 64), px; halve them for small objects."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (0, *self.anchor_sizes)
        ascending = all(low < high for low, high in itertools.pairwise(sizes))
        require(
            self, "anchor_sizes", len(sizes) == 6 and ascending, "5 ascending sides above 0, one per level"
        )
