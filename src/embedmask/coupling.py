"""Coupling of pixels and proposals: a pixel belongs to a proposal whose embedding is close, relative to its margin.

phi(i, k) = exp(-sum_d S_kd (p_id - Q_kd)^2)   (eq. 3; S_kd = S_k with one margin per proposal)

All functions work in log space and float32. d = -log phi is a weighted squared distance, computed by matrix products,
so no tensor of shape [instances, pixels, D] is made.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_DISTANCE = 1e-8
"""Lower bound of d in `logit`: at d = 0 the logit is infinite (nan in the authors' first version), here 18.4."""


def weighted_distance(pixel_embed: Tensor, instance_embed: Tensor, instance_margin: Tensor) -> Tensor:
    """Compute d = -log phi of eq. 3 for every pair of instance and pixel.

    Args:
        pixel_embed: p, `[D, P]`.
        instance_embed: Q, `[M, D]`.
        instance_margin: S > 0, `[M, 1]` or `[M, D]`.

    Returns:
        float32 `[M, P]`, >= 0, even under autocast.
    """
    with torch.autocast(pixel_embed.device.type, enabled=False):
        pixels, centers = pixel_embed.float(), instance_embed.float()
        if len(centers) == 0:
            return pixels.new_zeros(0, pixels.shape[1])
        # Differences do not depend on the origin. The terms below do: far from it (pixel positions are) they are much
        # larger than their sum, and float32 cancels. The mean instance as origin keeps them small.
        origin = centers.detach().mean(0)  # [D]
        pixels, centers = pixels - origin[:, None], centers - origin
        # sum_d S (p - Q)^2 = S . p^2 - 2 (S Q) . p + S . Q^2
        margins = instance_margin.float().expand_as(centers)  # [M, D]
        weighted = margins * centers  # [M, D]
        constant = (weighted * centers).sum(1, keepdim=True)  # [M, 1]
        # [M, D] x [D, P] -> [M, P], twice
        distance = margins @ pixels.square() - 2 * (weighted @ pixels) + constant
        # rounding may leave a small negative number where p = Q
        return distance.clamp(min=0)


def paired_distance(pixel_embed: Tensor, instance_embed: Tensor, instance_margin: Tensor) -> Tensor:
    """Compute d of eq. 3 where every instance has its own pixels, term by term and without cancellation.

    Args:
        pixel_embed: p, `[M, P, D]`; overwritten.
        instance_embed: Q, `[M, D]`.
        instance_margin: S > 0, `[M, 1]` or `[M, D]`.

    Returns:
        `[M, P]`, >= 0.
    """
    offset = pixel_embed.sub_(instance_embed[:, None])  # [M, P, D]
    scalar = instance_margin.shape[1] == 1
    if not scalar:
        # S (p - Q)^2 = (sqrt(S) (p - Q))^2
        offset.mul_(instance_margin.sqrt()[:, None])
    # the norm reduces over D without a squared copy of `offset`: [M, P, D] -> [M, P]
    distance: Tensor = torch.linalg.vector_norm(offset, dim=2).square_()
    return distance.mul_(instance_margin) if scalar else distance


def logit(distance: Tensor, min_prob: float = 0.0) -> Tensor:
    """Compute log phi - log(1 - phi) from d = -log phi in log space, the input of the Lovász hinge of eq. 4.

    Args:
        distance: d >= 0, any shape.
        min_prob: lower bound of phi (1e-9 in the 2021 version); values below it have no gradient.
    """
    max_distance = -math.log(min_prob) if min_prob > 0 else math.inf
    d = distance.clamp(min=MIN_DISTANCE, max=max_distance)
    # 1 - phi = -expm1(-d), accurate also for small d, where 1 - exp(-d) would round to 0
    return -d - torch.log(-torch.expm1(-d))


def prior_precision(distance: float) -> float:
    """Return the margin S at which phi = 0.5 at this distance: ln 2 / distance^2."""
    return math.log(2) / distance**2
