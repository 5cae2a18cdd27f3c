"""Twins of `embedmask.coupling`."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_distance(pixel_embed: Tensor, instance_embed: Tensor, instance_margin: Tensor) -> Tensor:
    """-log of eq. 3 as written, in float64: `[D, P]`, `[M, D]`, `[M, 1 or D]` -> `[M, P]`.

    It holds the tensor [M, P, D] (1.7 GB for 100 instances on 200 x 336 cells in 64 dims), which the fast way's two
    matrix products avoid; they are also several times faster.
    """
    pixels, centers, margins = pixel_embed.double(), instance_embed.double(), instance_margin.double()
    differences = pixels.T[None] - centers[:, None]
    return (differences.square() * margins.expand_as(centers)[:, None]).sum(-1)


def logit(distance: Tensor) -> Tensor:
    """log(phi / (1 - phi)) straight from the probability, in float64; the fast way keeps every digit far away."""
    phi = torch.exp(-distance.double())
    return torch.log(phi) - torch.log(1 - phi)
