"""Neck: FPN on the backbone's maps, and coarser levels by strided convolutions (section 3.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from embedmask.model.layers import Float32Conv2d, conv1x1


class CoarserLevels(ExtraFPNBlock):
    """P6, P7, ...: a stride-2 3x3 convolution of the level before each, with ReLU in between."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for _ in range(count):
            # float32: on a 1x1 map, the CPU's bfloat16 kernel (torch 2.15) returns garbage as this weight's gradient
            conv = Float32Conv2d(channels, channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            self.convs.append(conv)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Append the coarser levels to the FPN's `results`; `x`, the backbone's maps, is unused: P6 comes from P5."""
        del x
        level = results[-1]
        for index, conv in enumerate(self.convs):
            level = conv(F.relu(level) if index else level)
            results.append(level)
            names.append(f"extra{index}")
        return results, names


class Neck(nn.Module):
    """FPN with `num_levels` levels of `channels` channels, finest first.

    If the pixel embedding is finer than the finest level, the `details` finest maps of the backbone precede the levels,
    for the pixel branch. Each has half the channels of the map after it.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_levels: int, details: int = 0) -> None:
        super().__init__()
        levels = list(in_channels[details:])
        extra = CoarserLevels(channels, num_levels - len(levels))
        self.fpn = FeaturePyramidNetwork(levels, channels, extra_blocks=extra)
        self.details = nn.ModuleList(
            # channels / 2 for the coarsest of them, / 4 for the one before, ...
            conv1x1(inputs, channels >> (details - index), std=inputs**-0.5)
            for index, inputs in enumerate(in_channels[:details])
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Convert the backbone's maps, finest first, into the `details` maps followed by all levels."""
        finer, coarser = features[: len(self.details)], features[len(self.details) :]
        named = OrderedDict((str(index), feature) for index, feature in enumerate(coarser))
        details = [conv(feature) for conv, feature in zip(self.details, finer, strict=True)]
        return [*details, *self.fpn(named).values()]
