"""The proposal head: class, box, centerness, embedding and margin of every location (figure 2, section 3.1 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedmask.config import ModelConfig
from embedmask.coupling import prior_precision
from embedmask.locations import level_locations
from embedmask.model.layers import ConvNormReLU, Scale, Tower, conv1x1, conv3x3
from embedmask.model.pixel_branch import make_pixel_branch
from embedmask.structures import Predictions

CLASS_PRIOR = 0.01
"""Initial probability of every class at every location, so that background does not flood the first steps."""
CLASS_BIAS = -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR)
POSITION_UNIT = 100.0
"""Pixel positions enter the embedding in hundreds of px."""


class Head(nn.Module):
    """Two towers shared by all levels and, on the finest one, the pixel branch.

    A deformable convolution would go into `layers.Tower`; an anchor-based head would replace this class and keep
    its output type.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        channels, depth, groups = cfg.channels, cfg.tower_convs, cfg.norm_groups
        width = cfg.embed_channels or channels
        self.strides, self.pixel_stride = cfg.strides, cfg.pixel_stride
        self.class_tower = Tower(channels, depth, groups)
        self.box_tower = Tower(channels, depth, groups)
        self.class_logits = conv3x3(channels, cfg.num_classes, bias=CLASS_BIAS)
        self.box = conv3x3(channels, 4, float32=True)
        self.centerness = conv3x3(channels, 1)
        self.box_scales = nn.ModuleList(Scale() for _ in self.strides)
        self.pixel_branch = make_pixel_branch(cfg)
        own = cfg.cluster_center == "proposal"
        self.proposal_reduce = reduction(cfg) if own else nn.Identity()
        self.proposal_embed = conv3x3(width, cfg.embed_dim, float32=True) if own else None
        scale = Scale() if cfg.coordinate_scale == "learned" else nn.Identity()
        self.position_scale = scale if cfg.coordinates else None
        self.margin = make_margin(cfg)
        self.semantic = None
        if cfg.semantic_weight > 0:
            self.semantic = SemanticHead(channels, width, cfg.num_classes)

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        """L maps `[N, channels, Hl, Wl]`, finest first -> `Predictions`; semantic logits in training mode alone.

        Where p is finer than they are, the neck's maps of the finer strides stand before them.
        """
        predictions = self.predict(*self.trunk(features))
        if self.semantic is not None and self.training:
            predictions.semantic_logits = self.semantic(features[-len(self.strides)])
        return predictions

    def trunk(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Nearly all the work, for which few digits will do: what `predict` takes, from what `forward` takes."""
        levels = features[-len(self.strides) :]
        logits = [self.class_logits(self.class_tower(level)) for level in levels]
        return self.pixel_branch.trunk(features), logits, [self.box_tower(level) for level in levels]

    def predict(
        self, pixels: Tensor, logits: Sequence[Tensor], box_features: Sequence[Tensor]
    ) -> Predictions:
        """The layers that stay float32.

        Args:
            pixels: in front of the pixel embedding, `[N, width, H, W]`.
            logits: class logits, `[N, C, Hl, Wl]` a level.
            box_features: from the box tower, `[N, channels, Hl, Wl]` a level.
        """
        pixel_embed = self._add_position(self.pixel_branch.embed(pixels), self.pixel_stride)
        box_ltrb, centerness, embeds, margins = [], [], [], []
        for level, (feature, stride) in enumerate(zip(box_features, self.strides, strict=True)):
            ltrb = self.box_scales[level](self.box(feature)).relu() * stride
            box_ltrb.append(ltrb)
            centerness.append(self.centerness(feature).float())
            embeds.append(self._proposal_embed(feature, pixel_embed, stride))
            margins.append(self.margin(feature, ltrb, level))
        return Predictions(
            [level.float() for level in logits],
            box_ltrb,
            centerness,
            embeds,
            margins,
            pixel_embed,
            self.strides,
            pixel_stride=self.pixel_stride,
        )

    def _proposal_embed(self, box_feature: Tensor, pixel_embed: Tensor, stride: int) -> Tensor:
        """q: predicted from the box tower, or the pixel embedding at the location (Table 2 (b))."""
        if self.proposal_embed is None:
            height, width = box_feature.shape[-2:]
            return _sample_at_locations(pixel_embed, height, width, stride, self.pixel_stride)
        return self._add_position(self.proposal_embed(self.proposal_reduce(box_feature)), stride)

    def _add_position(self, embed: Tensor, stride: int) -> Tensor:
        """Add scale x position to the first two dims (x, then y), one scale for proposals and pixels."""
        if self.position_scale is None:
            return embed
        height, width = embed.shape[-2:]
        xy = level_locations((height, width), stride, embed.device).T.reshape(1, 2, height, width)
        spatial = embed[:, :2] + self.position_scale(xy / POSITION_UNIT)
        return torch.cat([spatial, embed[:, 2:]], 1)


def reduction(cfg: ModelConfig) -> nn.Module:
    """1x1 convolution of the box tower to the width of the embeddings; nothing where they have the tower's."""
    return (
        nn.Identity()
        if cfg.embed_channels is None
        else conv1x1(cfg.channels, cfg.embed_channels, float32=True)
    )


def make_margin(cfg: ModelConfig) -> BoxMargin | TowerMargin | FixedMargin:
    """The margin of Table 2 (a) and of the two versions."""
    if cfg.fixed_margin_distance is not None:
        return FixedMargin(cfg.fixed_margin_distance)
    bias = math.log(prior_precision(cfg.prior_margin))
    if cfg.margin_source == "box":
        return BoxMargin(cfg.margin_input_scale, bias)
    return TowerMargin(
        reduction(cfg),
        conv3x3(cfg.embed_channels or cfg.channels, cfg.embed_dim, bias, float32=True),
        input_scale=cfg.margin_input_scale,
        spatial_levels=len(cfg.strides) if cfg.coordinates else 0,
    )


class BoxMargin(nn.Module):
    """2019: one precision a proposal, exp of a 1x1 convolution of the box it predicts; no gradient to the box."""

    def __init__(self, input_scale: float, bias: float) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.conv = conv1x1(4, 1, bias, float32=True)

    def forward(self, box_feature: Tensor, ltrb: Tensor, level: int) -> Tensor:
        """`ltrb` px `[N, 4, H, W]` -> `[N, 1, H, W]`; the other arguments belong to the other margins."""
        del box_feature, level
        log_margin: Tensor = self.conv(ltrb.detach() / self.input_scale)
        return log_margin.exp()


class TowerMargin(nn.Module):
    """2021: one precision a dimension from the box tower; the spatial dims have a scale for each level."""

    def __init__(
        self, reduce: nn.Module, conv: nn.Module, *, input_scale: float, spatial_levels: int
    ) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.reduce = reduce
        self.conv = conv
        self.level_scales = nn.ModuleList(Scale() for _ in range(spatial_levels)) if spatial_levels else None

    def forward(self, box_feature: Tensor, ltrb: Tensor, level: int) -> Tensor:
        """`box_feature` `[N, channels, H, W]` -> `[N, D, H, W]`; `ltrb` belongs to `BoxMargin`."""
        del ltrb
        log_margin: Tensor = self.conv(self.reduce(box_feature / self.input_scale))
        if self.level_scales is not None:
            log_margin = torch.cat([self.level_scales[level](log_margin[:, :2]), log_margin[:, 2:]], 1)
        return log_margin.exp()


class SemanticHead(nn.Sequential):
    """Second repository: class logits of every cell of the finest level, a task for training alone."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        logits = nn.Conv2d(width, num_classes, 1)
        assert logits.bias is not None
        nn.init.constant_(logits.bias, CLASS_BIAS)
        super().__init__(ConvNormReLU(channels, width), ConvNormReLU(width, width), logits)


class FixedMargin(nn.Module):
    """The same precision everywhere: phi = 0.5 at `distance` (ablations of Table 2 (a))."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.precision = prior_precision(distance)

    def forward(self, box_feature: Tensor, ltrb: Tensor, level: int) -> Tensor:
        """-> `[N, 1, H, W]`, a constant."""
        del box_feature, level
        return torch.full_like(ltrb[:, :1], self.precision)


def _sample_at_locations(
    pixel_embed: Tensor, height: int, width: int, stride: int, pixel_stride: int
) -> Tensor:
    """The pixel embedding of the cell in which each location of a level lies: `[N, D, height, width]`."""
    y = (torch.arange(height, device=pixel_embed.device) * stride + stride // 2) // pixel_stride
    x = (torch.arange(width, device=pixel_embed.device) * stride + stride // 2) // pixel_stride
    rows = pixel_embed.index_select(2, y.clamp(max=pixel_embed.shape[2] - 1))
    return rows.index_select(3, x.clamp(max=pixel_embed.shape[3] - 1))
