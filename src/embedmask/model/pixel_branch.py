"""Pixel branch: one embedding per pixel, predicted once for all proposals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from embedmask.config import ModelConfig
from embedmask.locations import resize_aligned
from embedmask.model.layers import ConvNormReLU, Tower, conv3x3

COARSEST_FUSED = 32
"""Largest stride of the fused levels, px per cell: the coarsest that the backbone also has."""


def make_pixel_branch(cfg: ModelConfig) -> PixelBranch | FusedPixelBranch:
    """Build the pixel branch of the first repository, or of the second (`pixel_branch: fused`)."""
    return FusedPixelBranch(cfg) if cfg.pixel_branch == "fused" else PixelBranch(cfg)


class PixelBranch(nn.Module):
    """A tower on one level, usually the finest, and a 3x3 convolution to D dims (figure 2, "pixel head")."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.tower = Tower(cfg.channels, cfg.tower_convs, cfg.norm_groups)
        self.finer = FinerGrids(cfg, cfg.channels)
        self.embed = conv3x3(self.finer.width, cfg.embed_dim, float32=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return p without coordinates, float32 `[N, D, H, W]`, from the neck's maps, finest first."""
        embed: Tensor = self.embed(self.trunk(features))
        return embed

    def trunk(self, features: Sequence[Tensor]) -> Tensor:
        """Run all but the last convolution, which stays float32."""
        levels = features[self.finer.first_level :]
        grown: Tensor = self.finer(self.tower(levels[0]), features)
        return grown


class FusedPixelBranch(nn.Module):
    """Branch of the second repository: the finer levels, summed on the finest grid, and a tower."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        channels, width = cfg.channels, cfg.embed_channels or cfg.channels
        levels = sum(cfg.pixel_stride <= stride <= COARSEST_FUSED for stride in cfg.strides)
        self.refine = nn.ModuleList(ConvNormReLU(channels, width) for _ in range(levels))
        last = nn.Conv2d(width, width, 3, padding=1)
        self.tower = nn.Sequential(*(ConvNormReLU(width, width) for _ in range(cfg.tower_convs)), last)
        self.finer = FinerGrids(cfg, width)
        self.embed = conv3x3(self.finer.width, cfg.embed_dim, float32=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return p without coordinates, float32 `[N, D, H, W]`, from the neck's maps, finest first."""
        embed: Tensor = self.embed(self.trunk(features))
        return embed

    def trunk(self, features: Sequence[Tensor]) -> Tensor:
        """Run all but the last convolution, which stays float32."""
        levels = features[self.finer.first_level :]
        height, width = levels[0].shape[-2:]
        fused = self.refine[0](levels[0])
        for level, (refine, feature) in enumerate(zip(self.refine, levels, strict=False)):
            if level:
                # [N, C, Hl, Wl] -> the finest grid; coarse cells may reach past the frame
                fused = fused + resize_aligned(refine(feature), 2**level)[..., :height, :width]
        grown: Tensor = self.finer(self.tower(fused), features)
        return grown


class FinerGrids(nn.Module):
    """Upsampling to grids finer than the levels, for objects of few cells; not in the paper.

    Each step doubles the resolution, halves the channels and adds the backbone's map of that stride (`Neck.details`).
    Without finer grids, the input is returned.

    Attributes:
        first_level: index in the neck's maps of the level that the branch reads.
        width: channels of the result.
    """

    def __init__(self, cfg: ModelConfig, width: int) -> None:
        super().__init__()
        finest = cfg.strides[0]
        count = int(math.log2(max(1, finest // cfg.pixel_stride)))
        self.first_level = count or cfg.strides.index(cfg.pixel_stride)
        widths = [width, *(cfg.channels >> index + 1 for index in range(count))]
        self.width = widths[-1]
        pairs = list(itertools.pairwise(widths))
        self.narrow = nn.ModuleList(
            conv3x3(before, after, std=(9 * before) ** -0.5) for before, after in pairs
        )
        self.towers = nn.ModuleList(Tower(after, 1, math.gcd(cfg.norm_groups, after)) for _, after in pairs)

    def forward(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Upsample features to the grid of the pixel embedding.

        Args:
            x: `[N, C, Hl, Wl]` on the grid of the level that the branch reads.
            features: the neck's maps, finest first.

        Returns:
            `[N, width, H, W]`.
        """
        details = reversed(features[: len(self.towers)])
        for narrow, tower, detail in zip(self.narrow, self.towers, details, strict=True):
            # [N, C, h, w] -> [N, C / 2, 2 h, 2 w], cut where the coarser cells reach past the frame
            height, width = detail.shape[-2:]
            enlarged = F.interpolate(narrow(x), scale_factor=2, mode="bilinear", align_corners=False)
            x = tower((enlarged[..., :height, :width] + detail).relu())
        return x
