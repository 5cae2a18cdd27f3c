"""The paper's idea: a pixel belongs to a proposal when their embeddings are close, judged by the proposal's margin.

phi(i, k) = exp(-sum_d S_kd (p_id - Q_kd)^2)   (eq. 3; with one margin a proposal S_kd = S_k)

Everything stays in log space and float32: d = -log phi is the weighted squared distance, computed as matrix
products, so that no tensor of [instances, pixels, D] exists.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_DISTANCE = 1e-8
"""Floor of d in `logit`: at d = 0 the logit is infinite (the arXiv version's nan); here it ends at 18.4."""


def weighted_distance(pixel_embed: Tensor, instance_embed: Tensor, instance_margin: Tensor) -> Tensor:
    """d = -log phi of eq. 3 for every pair of instance and pixel.

    `sum_d S (p - Q)^2` is expanded into `S.p^2 - 2 (S Q).p + S.Q^2`. Its terms are far larger than their sum when
    all embeddings lie far from the origin (pixel positions do), so the mean instance is made the origin first.

    Args:
        pixel_embed: p, `[D, P]`.
        instance_embed: Q, `[M, D]`.
        instance_margin: S > 0, `[M, 1]` or `[M, D]`.

    Returns:
        float32 `[M, P]`, >= 0, also under autocast.
    """
    with torch.autocast(pixel_embed.device.type, enabled=False):
        pixels, centers = pixel_embed.float(), instance_embed.float()
        if len(centers) == 0:
            return pixels.new_zeros(0, pixels.shape[1])
        origin = centers.detach().mean(0)
        pixels, centers = pixels - origin[:, None], centers - origin
        margins = instance_margin.float().expand_as(centers)
        weighted = margins * centers
        constant = (weighted * centers).sum(1, keepdim=True)
        distance = margins @ pixels.square() - 2 * (weighted @ pixels) + constant
        return distance.clamp(min=0)


def own_distance(pixel_embed: Tensor, instance_embed: Tensor, instance_margin: Tensor) -> Tensor:
    """d of eq. 3 where every instance has pixels of its own, term by term: no cancellation.

    Args:
        pixel_embed: p, `[M, P, D]`; it is overwritten.
        instance_embed: Q, `[M, D]`.
        instance_margin: S > 0, `[M, 1]` or `[M, D]`.

    Returns:
        `[M, P]`, >= 0.
    """
    offset = pixel_embed.sub_(instance_embed[:, None])
    scalar = instance_margin.shape[1] == 1
    if not scalar:
        offset.mul_(instance_margin.sqrt()[:, None])
    distance: Tensor = torch.linalg.vector_norm(offset, dim=2).square_()
    return distance.mul_(instance_margin) if scalar else distance


def logit(distance: Tensor, min_prob: float = 0.0) -> Tensor:
    """`log phi - log(1 - phi)` from d = -log phi without leaving log space (input of eq. 4's Lovász hinge).

    Args:
        distance: d >= 0, any shape.
        min_prob: phi is clamped from below at this (1e-9 in the 2021 version); no gradient passes beyond it.
    """
    ceiling = -math.log(min_prob) if min_prob > 0 else math.inf
    d = distance.clamp(min=MIN_DISTANCE, max=ceiling)
    return -d - torch.log(-torch.expm1(-d))


def prior_precision(distance: float) -> float:
    """The margin S at which phi = 0.5 at this distance: ln 2 / distance^2."""
    return math.log(2) / distance**2
