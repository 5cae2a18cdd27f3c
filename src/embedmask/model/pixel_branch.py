"""The pixel branch: one embedding for every pixel, predicted once on the finest level's grid."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from embedmask.config import ModelConfig
from embedmask.locations import resize_aligned
from embedmask.model.layers import ConvNormReLU, Tower, conv3x3, in_float32

COARSEST_FUSED = 32
"""Levels up to this stride are fused: those that the backbone has, too."""


def make_pixel_branch(cfg: ModelConfig) -> PixelBranch | FusedPixelBranch:
    """The branch of the two repositories."""
    if cfg.pixel_branch == "tower":
        return PixelBranch(cfg.channels, cfg.embed_dim, depth=cfg.tower_convs, groups=cfg.norm_groups)
    return FusedPixelBranch(
        cfg.channels,
        cfg.embed_channels or cfg.channels,
        cfg.embed_dim,
        depth=cfg.tower_convs,
        levels=sum(stride <= COARSEST_FUSED for stride in cfg.strides),
    )


class PixelBranch(nn.Module):
    """Tower on the finest level and a 3x3 convolution to D dims (figure 2, "pixel head")."""

    def __init__(self, channels: int, embed_dim: int, *, depth: int, groups: int) -> None:
        super().__init__()
        self.tower = Tower(channels, depth, groups)
        self.embed = conv3x3(channels, embed_dim)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps of all levels, of which the finest `[N, channels, H, W]` counts -> p without coordinates, float32
        `[N, D, H, W]`."""
        return in_float32(self.embed, self.tower(features[0]))


class FusedPixelBranch(nn.Module):
    """Second repository: the finer levels, brought to one width, are added on the finest grid; a tower follows."""

    def __init__(self, channels: int, width: int, embed_dim: int, *, depth: int, levels: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(ConvNormReLU(channels, width) for _ in range(levels))
        last = nn.Conv2d(width, width, 3, padding=1)
        self.tower = nn.Sequential(*(ConvNormReLU(width, width) for _ in range(depth)), last)
        self.embed = conv3x3(width, embed_dim)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Maps of all levels, finest first -> p without coordinates, float32 `[N, D, H, W]`."""
        height, width = features[0].shape[-2:]
        fused = self.refine[0](features[0])
        for level, (refine, feature) in enumerate(zip(self.refine, features, strict=False)):
            if level:
                # a frame that the coarser cells overshoot is cut
                fused = fused + resize_aligned(refine(feature), 2**level)[..., :height, :width]
        return in_float32(self.embed, self.tower(fused))
