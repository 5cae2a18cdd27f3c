"""Head of the detector `tal`: one box per cell without centerness; the class score is the quality of the box."""

from __future__ import annotations

import math

from torch import Tensor, nn

from embedmask.config import ModelConfig
from embedmask.model.head import Head
from embedmask.model.layers import Scale, conv3x3

INITIAL_SIDE = 2.0
"""Distance to each side before training, in strides: IoU is defined and differentiable from the first step on."""
MAX_SIDE = 64.0
"""Maximum distance to a side, in strides."""


class AlignedHead(Head):
    """Anchor-free head for task-aligned assignment (TOOD, arXiv 2108.07755), with the towers of FCOS.

    Sides are exponentials, as in the first version of FCOS. With a ReLU a box may be empty, and its alignment and the
    gradient of its IoU are then zero.
    """

    def make_box_layers(self, cfg: ModelConfig) -> None:
        """Create the convolution of the logarithms of the sides, and the scales of the levels."""
        self.box = conv3x3(cfg.channels, 4, bias=math.log(INITIAL_SIDE), float32=True)
        self.box_scales = nn.ModuleList(Scale() for _ in self.strides)

    def box_outputs(self, half_side: float) -> tuple[float, float]:
        """Return mean and deviation of the outputs of `box` for boxes with about this half side, in strides."""
        return math.log(half_side), 0.25

    def boxes(self, feature: Tensor, level: int) -> Tensor:
        """Return ltrb > 0 px, `[N, 4, Hl, Wl]`."""
        log_sides = self.box_scales[level](self.box(feature)).clamp(max=math.log(MAX_SIDE))
        ltrb: Tensor = log_sides.exp() * self.strides[level]
        return ltrb
