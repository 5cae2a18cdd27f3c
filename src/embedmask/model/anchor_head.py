"""Head of RetinaNet: A anchors per cell, each with class, box, embedding and margin; no centerness."""

from __future__ import annotations

import torch
from torch import Tensor

from embedmask.anchors import CODER, cell_anchors
from embedmask.config import ModelConfig
from embedmask.model.head import Head
from embedmask.model.layers import conv3x3


class AnchorHead(Head):
    """RetinaNet with GroupNorm in its towers, like torchvision's `retinanet_resnet50_fpn_v2`."""

    anchors: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__(cfg, len(cfg.anchor_scales) * len(cfg.anchor_ratios))

    def make_box_layers(self, cfg: ModelConfig) -> None:
        """Create the convolution of the box codes, and the anchors `[L, A, 4]` relative to their locations."""
        self.box = conv3x3(cfg.channels, self.num_anchors * 4, float32=True)
        anchors = cell_anchors(cfg.strides, cfg.anchor_scales, cfg.anchor_ratios)
        self.register_buffer("anchors", anchors, persistent=False)

    def box_outputs(self, half_side: float) -> tuple[float, float]:
        """Return mean and deviation of the outputs of `box` for boxes close to their anchors."""
        del half_side
        return 0.0, 0.1

    def boxes(self, feature: Tensor, level: int) -> Tensor:
        """Return ltrb px `[N, A * 4, Hl, Wl]`; sides are negative where a box does not contain its location."""
        # [N, A * 4, Hl, Wl] -> [N, A, Hl, Wl, 4]
        codes = self.box(feature).unflatten(1, (self.num_anchors, 4)).permute(0, 1, 3, 4, 2)
        anchors = self.anchors[level][:, None, None].expand(codes.shape)
        corners = CODER.decode_single(codes.reshape(-1, 4), anchors.reshape(-1, 4)).view(codes.shape)
        ltrb = torch.cat([-corners[..., :2], corners[..., 2:]], -1)
        return ltrb.permute(0, 1, 4, 2, 3).flatten(1, 2)
