"""Embeddings q and margins s, computed only at the detections, which occupy few cells of the pyramid."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from embedmask.model.head import POSITION_UNIT, Head, TowerMargin

MAX_DETECTIONS = 200
"""Maximum detections per image: the cells around more of them are about as many as in the whole pyramid."""


class Embeddings(nn.Module):
    """The layers of a head that predict q and s, for a few cells of its pyramid."""

    def __init__(self, head: Head) -> None:
        """Share the weights of `head`; see `serves`."""
        super().__init__()
        assert head.proposal_embed is not None
        self.strides, self.position_scale, self.margin = head.strides, head.position_scale, head.margin
        self.reduce, self.embed = head.proposal_reduce, once_per_patch(head.proposal_embed)
        if isinstance(head.margin, TowerMargin):
            self.margin_reduce, self.margin_conv = head.margin.reduce, once_per_patch(head.margin.conv)

    @staticmethod
    def serves(head: Head, detections: int) -> bool:
        """Return whether the class supports `head`, and takes less time than all cells for a number of detections."""
        return head.num_anchors == 1 and head.proposal_embed is not None and detections <= MAX_DETECTIONS

    def forward(
        self, features: Sequence[Tensor], box_ltrb: Sequence[Tensor], cells: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute q `[N, K, D]` and s `[N, K, 1 or D]`.

        Args:
            features: of the box tower, `[N, channels, Hl, Wl]` per level.
            box_ltrb: px, `[N, 4, Hl, Wl]` per level.
            cells: of the detections, numbered through all levels, int64 `[N, K]`.
        """
        level, places, inside, xy = self.around(features, cells)
        # 3 x 3 cells of each detection, one below the other: [N, channels, 3 K, 3]
        patches = torch.unflatten(at(features, places.flatten(1)), 2, (-1, 3))
        inside = inside.flatten(1, 2)[:, None]  # [N, 1, 3 K, 3]
        q = self.embed(torch.where(inside, self.reduce(patches), 0.0))[..., 0]  # [N, D, K]
        if self.position_scale is not None:
            position = self.position_scale(xy.mT.float() / POSITION_UNIT)
            q = torch.cat([q[:, :2] + position, q[:, 2:]], 1)
        if not isinstance(self.margin, TowerMargin):
            ltrb = at(box_ltrb, cells)[..., None]  # [N, 4, K, 1]
            return q.mT, self.margin(ltrb, ltrb, 0)[..., 0].mT
        reduced = self.margin_reduce(patches / self.margin.input_scale)
        log_margin = self.margin_conv(torch.where(inside, reduced, 0.0))[..., 0]
        if self.margin.level_scales is not None:
            scales = torch.cat([scale.scale for scale in self.margin.level_scales])  # type: ignore[misc]
            log_margin = torch.cat([log_margin[:, :2] * scales[level][:, None], log_margin[:, 2:]], 1)
        return q.mT, log_margin.exp().mT

    def around(self, features: Sequence[Tensor], cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the level of each cell `[N, K]`, its neighbors, and its location in px, int64 `[N, K, 2]`.

        Neighbors are two tensors `[N, K, 3, 3]`: their numbers, 0 outside of the map, and whether they are inside.
        """
        heights, widths = ([feature.shape[axis] for feature in features] for axis in (2, 3))
        firsts = [0]
        for tall, wide in zip(heights[:-1], widths[:-1], strict=True):
            firsts.append(firsts[-1] + tall * wide)
        # `new_tensor` takes no symbolic sizes; [L] each
        table = [
            torch.stack([cells.new_full((), value) for value in values])
            for values in (firsts, heights, widths, self.strides)
        ]
        level = (cells[..., None] >= table[0]).sum(2) - 1
        first, height, width, stride = (values[level] for values in table)  # [N, K]
        row = (cells - first) // width
        column = cells - first - row * width
        xy = torch.stack([column, row], 2) * stride[..., None] + stride[..., None] // 2
        steps = torch.arange(-1, 2, device=cells.device)
        y, x = row[..., None, None] + steps[:, None], column[..., None, None] + steps
        first, height, width = (values[..., None, None] for values in (first, height, width))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return level, torch.where(inside, first + y * width + x, 0), inside, xy


def once_per_patch(conv: nn.Module) -> nn.Conv2d:
    """Return a 3x3 convolution with the weights of `conv` that computes one value of each 3 x 3 cells."""
    assert isinstance(conv, nn.Conv2d)
    strided = copy.copy(conv)
    strided.stride, strided.padding = (3, 3), (0, 0)
    return strided


def at(maps: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Return the values of maps `[N, C, Hl, Wl]` at cells `[N, T]`, numbered through all: `[N, C, T]`."""
    return gather(torch.cat([level.flatten(2) for level in maps], 2), cells)


def gather(maps: Tensor, cells: Tensor) -> Tensor:
    """Return the values of maps `[N, C, K]` at cells `[N, T]`: `[N, C, T]`."""
    return maps.gather(2, cells[:, None].expand(-1, maps.shape[1], -1))
