"""Slow reference of `embedmask.locations.resize_aligned`."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_aligned(maps: Tensor, factor: int) -> Tensor:
    """Interpolate one output cell at a time: o reads (o - factor // 2) / factor, clamped to the map.

    The fast version is one bilinear resize of a padded map. Any leading dims.
    """
    for axis in (-2, -1):
        length = maps.shape[axis]
        parts = []
        for out in range(factor * length):
            place = min(max((out - factor // 2) / factor, 0), length - 1)
            low = int(place)
            high = min(low + 1, length - 1)
            share = place - low
            parts.append(maps.select(axis, low) * (1 - share) + maps.select(axis, high) * share)
        maps = torch.stack(parts, axis)
    return maps
