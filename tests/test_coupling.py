"""Coupling (eq. 3) against a slow reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import coupling as slow
from torch import Tensor

from embedmask.coupling import (
    MIN_DISTANCE,
    logit,
    paired_distance,
    prior_precision,
    weighted_distance,
)

EPSILON = torch.finfo(torch.float32).eps


@st.composite
def cases(draw: st.DrawFn, spreads: tuple[float, ...] = (0.01, 1.0, 10.0)) -> tuple[Tensor, Tensor, Tensor]:
    """Sample p `[D, P]`, Q `[M, D]` and S, within 50 of the origin in every dimension."""
    dims, pixels, instances = draw(st.integers(1, 40)), draw(st.integers(1, 30)), draw(st.integers(1, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    center = (torch.rand(dims, generator=rng) * 2 - 1) * draw(st.sampled_from([0.0, 1.0, 50.0]))
    spread = draw(st.sampled_from(spreads))
    embed = center + spread * torch.randn(instances, dims, generator=rng)
    pixel = center[:, None] + spread * torch.randn(dims, pixels, generator=rng)
    margin = torch.randn(instances, draw(st.sampled_from([1, dims])), generator=rng).exp()
    return pixel, embed, margin


def rounding(pixel: Tensor, embed: Tensor, margin: Tensor) -> Tensor:
    """Return the float32 tolerance: a few units in the last place of the expanded terms."""
    mean = embed.mean(0).double()
    margins = margin.double().expand_as(embed)
    terms = margins @ (pixel.double() - mean[:, None]).square()
    return 16 * EPSILON * (terms + (margins * (embed - mean).square()).sum(1)[:, None])


@settings(max_examples=60, deadline=None)
@given(cases())
def test_own_distance(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """Check that no precision is lost: no term is larger than the distance."""
    pixel, embed, margin = case
    expected = slow.weighted_distance(*case)
    own = pixel.T.expand(len(embed), -1, -1).contiguous()
    found = paired_distance(own, embed, margin)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=50 * EPSILON, atol=0)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_distance_is_the_sum_of_weighted_squares(case: tuple[Tensor, Tensor, Tensor]) -> None:
    expected = slow.weighted_distance(*case)
    found = weighted_distance(*case)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    assert ((found - expected).abs() <= rounding(*case)).all()


@pytest.mark.parametrize("offset", [0.0, 50.0, -50.0])
@pytest.mark.parametrize("vector", [False, True])
def test_distance_is_exact_far_from_the_origin(offset: float, vector: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    embed = torch.randn(5, 16, generator=rng) + offset
    pixel = torch.randn(16, 200, generator=rng) + offset
    margin = torch.rand(5, 16 if vector else 1, generator=rng) + 0.1
    expected = slow.weighted_distance(pixel, embed, margin)
    relative = (weighted_distance(pixel, embed, margin) - expected).abs() / expected
    assert relative.max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(cases(spreads=(1.0, 10.0)))
def test_gradients(case: tuple[Tensor, Tensor, Tensor]) -> None:
    leaves = [t.clone().requires_grad_() for t in case]
    references = [t.double().requires_grad_() for t in case]
    weights = torch.linspace(0.5, 1, case[1].shape[0] * case[0].shape[1]).view(len(case[1]), -1)
    (weighted_distance(*leaves) * weights).sum().backward()
    (slow.weighted_distance(*references) * weights.double()).sum().backward()
    for leaf, reference in zip(leaves, references, strict=True):
        assert leaf.grad is not None
        assert reference.grad is not None
        assert (leaf.grad - reference.grad).abs().max() <= 1e-4 * reference.grad.abs().max()


def test_no_instance_and_no_pixel() -> None:
    assert weighted_distance(torch.zeros(4, 7), torch.zeros(0, 4), torch.zeros(0, 1)).shape == (0, 7)
    assert weighted_distance(torch.zeros(4, 0), torch.zeros(3, 4), torch.ones(3, 4)).shape == (3, 0)


def test_a_thousand_instances() -> None:
    rng = torch.Generator().manual_seed(0)
    case = (torch.randn(8, 64, generator=rng), torch.randn(1000, 8, generator=rng), torch.ones(1000, 1))
    assert torch.allclose(weighted_distance(*case).double(), slow.weighted_distance(*case), atol=1e-4)


def test_stays_float32_under_autocast() -> None:
    pixel, embed, margin = torch.randn(8, 20), torch.randn(3, 8), torch.ones(3, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = weighted_distance(pixel, embed, margin)
    assert found.dtype == torch.float32
    assert torch.equal(found, weighted_distance(pixel, embed, margin))
    assert weighted_distance(pixel.bfloat16(), embed.bfloat16(), margin.bfloat16()).dtype == torch.float32


def test_logit_matches_the_probability() -> None:
    distance = torch.logspace(-3, 1, 200)
    assert torch.allclose(logit(distance).double(), slow.logit(distance), rtol=1e-5, atol=1e-5)
    assert logit(torch.tensor(math.log(2))).item() == pytest.approx(0, abs=1e-6)
    assert (logit(distance).diff() < 0).all()


@pytest.mark.parametrize("min_prob", [0.0, 1e-9])
def test_logit_and_its_gradient_are_finite_at_the_extremes(min_prob: float) -> None:
    distance = torch.tensor([0.0, MIN_DISTANCE / 10, 1e-6, 30.0, 1e3, 1e6], requires_grad=True)
    value = logit(distance, min_prob)
    value.sum().backward()
    assert value.isfinite().all()
    assert distance.grad is not None
    assert distance.grad.isfinite().all()
    assert value[0].item() == pytest.approx(-math.log(MIN_DISTANCE), rel=1e-3)
    beyond = distance.detach() > (-math.log(min_prob) if min_prob else math.inf)
    assert (distance.grad[beyond] == 0).all()
    assert (distance.grad[3:][~beyond[3:]] == -1).all()
    if min_prob:
        assert value[-1].item() == pytest.approx(math.log(min_prob), rel=1e-5)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 7.0])
def test_prior_precision_is_half_at_its_distance(distance: float) -> None:
    pixel, embed = torch.tensor([[distance], [0.0]]), torch.zeros(1, 2)
    margin = torch.tensor([[prior_precision(distance)]])
    assert weighted_distance(pixel, embed, margin).neg().exp().item() == pytest.approx(0.5)
