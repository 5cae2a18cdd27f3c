"""Proposal head: class, box, centerness, embedding and margin of every location (figure 2, sections 3.1 and 3.3)."""

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
"""Initial probability of every class at every location, so that background does not dominate the first steps."""
CLASS_BIAS = -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR)
POSITION_UNIT = 100.0
"""Unit of the positions that are added to embeddings, px."""


class Head(nn.Module):
    """FCOS: two towers shared by all levels, and the pixel branch. Deformable convolution would go into `layers.Tower`.

    Heads of other detectors derive from it and override `make_box_layers` and `boxes`.

    Attributes:
        num_anchors: A, anchors per cell; 1 in heads without anchors.
    """

    def __init__(self, cfg: ModelConfig, num_anchors: int = 1) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        channels, depth, groups = cfg.channels, cfg.tower_convs, cfg.norm_groups
        width = cfg.embed_channels or channels
        self.strides, self.pixel_stride = cfg.strides, cfg.pixel_stride
        self.class_tower = Tower(channels, depth, groups)
        self.box_tower = Tower(channels, depth, groups)
        self.class_logits = conv3x3(channels, num_anchors * cfg.num_classes, bias=CLASS_BIAS)
        self.centerness: nn.Module | None = None
        self.make_box_layers(cfg)
        self.pixel_branch = make_pixel_branch(cfg)
        from_proposal = cfg.cluster_center == "proposal"
        self.proposal_reduce = reduction(cfg) if from_proposal else nn.Identity()
        self.proposal_embed = (
            conv3x3(width, num_anchors * cfg.embed_dim, float32=True) if from_proposal else None
        )
        scale = Scale() if cfg.coordinate_scale == "learned" else nn.Identity()
        self.position_scale = scale if cfg.coordinates else None
        self.margin = make_margin(cfg, num_anchors)
        self.semantic = None
        if cfg.semantic_weight > 0:
            self.semantic = SemanticHead(channels, width, cfg.num_classes)

    def make_box_layers(self, cfg: ModelConfig) -> None:
        """Create the layers after the box tower that predict box and, if the head has it, centerness."""
        self.box = conv3x3(cfg.channels, 4, float32=True)
        self.centerness = conv3x3(cfg.channels, 1)
        self.box_scales = nn.ModuleList(Scale() for _ in self.strides)

    def box_outputs(self, half_side: float) -> tuple[float, float]:
        """Return mean and deviation of the outputs of `box` for boxes with about this half side, in strides."""
        return half_side, half_side / 4

    def boxes(self, feature: Tensor, level: int) -> Tensor:
        """Return ltrb px `[N, A * 4, Hl, Wl]` from the box tower's features of a level."""
        # predicted in units of the stride, with a learned scale per level -> px
        ltrb: Tensor = self.box_scales[level](self.box(feature)).relu() * self.strides[level]
        return ltrb

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        """Compute the predictions of a batch; semantic logits in training mode only.

        Args:
            features: the neck's maps: L levels `[N, channels, Hl, Wl]`, finest first, preceded by the `details` maps
                if p is finer than the levels.
        """
        predictions = self.predict(*self.trunk(features))
        if self.semantic is not None and self.training:
            predictions.semantic_logits = self.semantic(features[-len(self.strides)])
        return predictions

    def trunk(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Run the convolution towers, which tolerate reduced precision. Return the arguments of `predict`."""
        levels = features[-len(self.strides) :]
        logits = [self.class_logits(self.class_tower(level)) for level in levels]
        return self.pixel_branch.trunk(features), logits, [self.box_tower(level) for level in levels]

    def predict(
        self, pixels: Tensor, logits: Sequence[Tensor], box_features: Sequence[Tensor]
    ) -> Predictions:
        """Run the output layers, which stay float32.

        Args:
            pixels: features of the pixel branch, `[N, width, H, W]`.
            logits: class logits, `[N, A * C, Hl, Wl]` per level.
            box_features: features of the box tower, `[N, channels, Hl, Wl]` per level.
        """
        pixel_embed = self._add_position(self.pixel_branch.embed(pixels), self.pixel_stride)
        box_ltrb, centerness, embeds, margins = [], [], [], []
        for level, (feature, stride) in enumerate(zip(box_features, self.strides, strict=True)):
            ltrb = fold_anchors(self.boxes(feature, level), self.num_anchors)  # [N * A, 4, Hl, Wl]
            if self.centerness is not None:
                centerness.append(self.centerness(feature).float())
            box_ltrb += self._per_anchor(ltrb)
            embeds += self._per_anchor(self._proposal_embed(feature, pixel_embed, stride))
            margins += self._per_anchor(self.margin(feature, ltrb, level))
        count = self.num_anchors
        return Predictions(
            [part for level in logits for part in self._per_anchor(fold_anchors(level.float(), count))],
            box_ltrb,
            None if self.centerness is None else centerness,
            embeds,
            margins,
            pixel_embed,
            tuple(stride for stride in self.strides for _ in range(count)),
            embed_stride=self.pixel_stride,
        )

    def _per_anchor(self, maps: Tensor) -> list[Tensor]:
        """Split `[N * A, C, Hl, Wl]` into the A maps `[N, C, Hl, Wl]` of the anchors."""
        count = self.num_anchors
        return [maps] if count == 1 else list(torch.unflatten(maps, 0, (-1, count)).unbind(1))

    def _proposal_embed(self, box_feature: Tensor, pixel_embed: Tensor, stride: int) -> Tensor:
        """Return q `[N * A, D, Hl, Wl]`: predicted by the box tower, or p at the location (Table 2 (b))."""
        if self.proposal_embed is not None:
            embed = self.proposal_embed(self.proposal_reduce(box_feature))
            return self._add_position(fold_anchors(embed, self.num_anchors), stride)
        # row and column of the pixel cell that contains each location; the last cell may reach past the map of p
        device, (height, width) = pixel_embed.device, box_feature.shape[-2:]
        y = (torch.arange(height, device=device) * stride + stride // 2) // self.pixel_stride
        x = (torch.arange(width, device=device) * stride + stride // 2) // self.pixel_stride
        # [N, D, H, W] -> [N, D, Hl, W] -> [N, D, Hl, Wl]
        rows = pixel_embed.index_select(2, y.clamp(max=pixel_embed.shape[2] - 1))
        embed = rows.index_select(3, x.clamp(max=pixel_embed.shape[3] - 1))
        return embed if self.num_anchors == 1 else embed.repeat_interleave(self.num_anchors, 0)

    def _add_position(self, embed: Tensor, stride: int) -> Tensor:
        """Add the scaled position (x, y) to the first two dims; proposals and pixels share one scale."""
        if self.position_scale is None:
            return embed
        height, width = embed.shape[-2:]
        # [H * W, 2] -> [1, 2, H, W]
        xy = level_locations((height, width), stride, embed.device).T.reshape(1, 2, height, width)
        spatial = embed[:, :2] + self.position_scale(xy / POSITION_UNIT)
        return torch.cat([spatial, embed[:, 2:]], 1)


def fold_anchors(maps: Tensor, num_anchors: int) -> Tensor:
    """Move the A anchors of `[N, A * C, H, W]` into the batch: `[N * A, C, H, W]`."""
    return maps if num_anchors == 1 else torch.unflatten(maps, 1, (num_anchors, -1)).flatten(0, 1)


def reduction(cfg: ModelConfig) -> nn.Module:
    """Return a 1x1 convolution from the tower's width to the embeddings', or identity if these are equal."""
    if cfg.embed_channels is None:
        return nn.Identity()
    return conv1x1(cfg.channels, cfg.embed_channels, float32=True)


def make_margin(cfg: ModelConfig, num_anchors: int = 1) -> BoxMargin | TowerMargin | FixedMargin:
    """Build the margin of a version or of Table 2 (a), for A anchors per cell."""
    if cfg.fixed_margin_distance is not None:
        return FixedMargin(cfg.fixed_margin_distance)
    bias = math.log(prior_precision(cfg.prior_margin))
    if cfg.margin_source == "box":
        return BoxMargin(cfg.margin_input_scale, bias)
    return TowerMargin(
        reduction(cfg),
        conv3x3(cfg.embed_channels or cfg.channels, num_anchors * cfg.embed_dim, bias, float32=True),
        input_scale=cfg.margin_input_scale,
        spatial_levels=len(cfg.strides) if cfg.coordinates else 0,
        num_anchors=num_anchors,
    )


class BoxMargin(nn.Module):
    """Margin of 2019: one precision per proposal, exp of a 1x1 convolution of its box; no gradient to the box."""

    def __init__(self, input_scale: float, bias: float) -> None:
        super().__init__()
        self.input_scale = input_scale
        self.conv = conv1x1(4, 1, bias, float32=True)

    def forward(self, box_feature: Tensor, ltrb: Tensor, level: int) -> Tensor:
        """Return s `[N * A, 1, H, W]` from `ltrb` px `[N * A, 4, H, W]`; the other arguments are unused."""
        del box_feature, level
        log_margin: Tensor = self.conv(ltrb.detach() / self.input_scale)
        return log_margin.exp()


class TowerMargin(nn.Module):
    """Margin of 2021: one precision per dimension from the box tower; the spatial dims have a scale per level."""

    def __init__(
        self,
        reduce: nn.Module,
        conv: nn.Module,
        *,
        input_scale: float,
        spatial_levels: int,
        num_anchors: int,
    ) -> None:
        super().__init__()
        self.input_scale, self.num_anchors = input_scale, num_anchors
        self.reduce = reduce
        self.conv = conv
        self.level_scales = nn.ModuleList(Scale() for _ in range(spatial_levels)) if spatial_levels else None

    def forward(self, box_feature: Tensor, ltrb: Tensor, level: int) -> Tensor:
        """Return s `[N * A, D, H, W]` from `box_feature` `[N, channels, H, W]`; `ltrb` is unused."""
        del ltrb
        log_margin = fold_anchors(self.conv(self.reduce(box_feature / self.input_scale)), self.num_anchors)
        if self.level_scales is not None:
            # dims 0 and 1 carry the position
            log_margin = torch.cat([self.level_scales[level](log_margin[:, :2]), log_margin[:, 2:]], 1)
        return log_margin.exp()


class SemanticHead(nn.Sequential):
    """Class logits of every cell of the finest level, an auxiliary task of training (second repository)."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        logits = nn.Conv2d(width, num_classes, 1)
        assert logits.bias is not None
        nn.init.constant_(logits.bias, CLASS_BIAS)
        super().__init__(ConvNormReLU(channels, width), ConvNormReLU(width, width), logits)


class FixedMargin(nn.Module):
    """Constant precision: phi = 0.5 at `distance` (ablations of Table 2 (a))."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.precision = prior_precision(distance)

    def forward(self, box_feature: Tensor, ltrb: Tensor, level: int) -> Tensor:
        """Return s `[N * A, 1, H, W]`, a constant."""
        del box_feature, level
        return torch.full_like(ltrb[:, :1], self.precision)
