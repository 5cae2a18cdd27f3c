"""Layers shared by the head and the pixel branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tower(nn.Sequential):
    """`depth` blocks of 3x3 convolution, GroupNorm and ReLU, all of one width (section 3.1)."""

    def __init__(self, channels: int, depth: int, groups: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [conv3x3(channels, channels), nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class ConvNormReLU(nn.Sequential):
    """3x3 convolution without bias, BatchNorm and ReLU (second repository)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class Scale(nn.Module):
    """One learned scalar factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale a tensor of any shape."""
        return x * self.scale


class Float32Conv2d(nn.Conv2d):
    """A convolution that stays float32 under autocast: bfloat16 is too coarse for embeddings and margins."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the convolution to `[N, C, H, W]` of any floating dtype, in the dtype of the weights."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def conv3x3(
    in_channels: int, out_channels: int, bias: float = 0.0, *, std: float = 0.01, float32: bool = False
) -> nn.Conv2d:
    """Return a 3x3 convolution, by default with the head's initialization: weights N(0, 0.01), constant bias."""
    conv = Float32Conv2d if float32 else nn.Conv2d
    return _init(conv(in_channels, out_channels, 3, padding=1), bias, std)


def conv1x1(
    in_channels: int, out_channels: int, bias: float = 0.0, *, std: float = 0.01, float32: bool = False
) -> nn.Conv2d:
    """Return a 1x1 convolution, initialized as `conv3x3`."""
    conv = Float32Conv2d if float32 else nn.Conv2d
    return _init(conv(in_channels, out_channels, 1), bias, std)


def _init(conv: nn.Conv2d, bias: float, std: float) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=std)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv
