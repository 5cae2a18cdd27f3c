"""Loss functions against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow
from torch import Tensor
from torchvision.ops import generalized_box_iou

from embedmask.coupling import logit
from embedmask.objective.losses import (
    HINGE_INSIDE,
    HINGE_OUTSIDE,
    bce_loss,
    centerness_targets,
    giou_loss,
    hinge_loss,
    lovasz_hinge,
    smooth_loss,
)


@st.composite
def instances(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sample logits `[M, P]` without ties, targets and regions; rows of one value or without region are common."""
    rows, pixels = draw(st.integers(0, 5)), draw(st.integers(1, 25))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    shift = draw(st.sampled_from([-4.0, 0.0, 4.0]))
    logits = torch.randn(rows, pixels, generator=rng) * draw(st.sampled_from([0.3, 3.0])) + shift
    share = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=rows, max_size=rows)))
    targets = torch.rand(rows, pixels, generator=rng) < share.view(rows, 1)
    if draw(st.booleans()):
        return logits, targets, None
    inside = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=rows, max_size=rows)))
    return logits, targets, torch.rand(rows, pixels, generator=rng) < inside.view(rows, 1)


@settings(max_examples=80, deadline=None)
@given(instances())
def test_lovasz_and_gradient(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    logits, targets, region = case
    fast_input, slow_input = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    targets_copy, region_copy = targets.clone(), None if region is None else region.clone()
    found = lovasz_hinge(fast_input, targets_copy, region_copy)
    expected = slow.lovasz_hinge(slow_input, targets, region)
    assert found.shape == (len(logits),)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.arange(1.0, len(logits) + 1)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert fast_input.grad is not None
    assert torch.allclose(fast_input.grad, slow_input.grad, rtol=1e-4, atol=1e-5)
    # inputs are not modified
    assert torch.equal(targets_copy, targets)
    assert region is None or torch.equal(region_copy, region)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_lovasz_does_not_depend_on_the_order_of_ties(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (4, 30), generator=rng).float()
    targets = torch.rand(4, 30, generator=rng) < 0.4
    found = lovasz_hinge(logits, targets)
    assert torch.allclose(found, slow.lovasz_hinge(logits, targets), atol=1e-5)
    order = torch.randperm(30, generator=rng)
    assert torch.allclose(found, lovasz_hinge(logits[:, order], targets[:, order]), atol=1e-5)


def test_lovasz_extremes() -> None:
    targets = torch.tensor([[True, True, False, False]])
    sure = torch.tensor([[9.0, 9.0, -9.0, -9.0]])
    assert lovasz_hinge(sure, targets).item() == 0
    # all logits 0: every error is 1 and the loss is the full Jaccard distance
    assert lovasz_hinge(torch.zeros(1, 4), targets).item() == pytest.approx(1)
    assert lovasz_hinge(-sure, targets).item() == pytest.approx(10)
    # no foreground: only the largest error counts
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert lovasz_hinge(torch.tensor([[0.5, -3, -3, 0.25]]), nothing).item() == pytest.approx(1.5)


def test_lovasz_of_empty_rows_has_a_gradient() -> None:
    logits = torch.randn(3, 6, requires_grad=True)
    loss = lovasz_hinge(logits, torch.ones(3, 6, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool))
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_lovasz_of_a_certain_background_pixel_in_front() -> None:
    # rows of different length: the shorter one is filled, and not from its infinite first logit
    logits = torch.tensor([[-torch.inf, -1.0, 0.5], [0.5, 0.25, -0.5]], requires_grad=True)
    targets = torch.tensor([[False, True, False], [True, False, True]])
    loss = lovasz_hinge(logits, targets)
    alone = [lovasz_hinge(logits[:1, 1:], targets[:1, 1:]), lovasz_hinge(logits[1:], targets[1:])]
    assert torch.equal(loss, torch.cat(alone))
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_lovasz_of_a_thousand_instances() -> None:
    rng = torch.Generator().manual_seed(3)
    logits, targets = torch.randn(1000, 64, generator=rng), torch.rand(1000, 64, generator=rng) < 0.5
    assert torch.allclose(lovasz_hinge(logits, targets), slow.lovasz_hinge(logits, targets), atol=1e-4)


def test_giou_of_large_boxes_matches_torchvision() -> None:
    # the 1 of FCOS is negligible beside areas of 1e8 square strides
    rng = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(40, 4, generator=rng).double() * 1e4 + 1 for _ in range(2))

    def boxes(ltrb: Tensor) -> Tensor:
        return torch.cat([-ltrb[:, :2], ltrb[:, 2:]], 1)

    expected = 1 - generalized_box_iou(boxes(pred), boxes(target)).diagonal()
    assert torch.allclose(giou_loss(pred, target), expected, atol=1e-5)


def test_giou_by_hand() -> None:
    target = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])
    pred = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]])
    # equal; without size: IoU (0+1)/(4+1), hull = union; half: IoU (2+1)/(4+1), hull = union
    assert giou_loss(pred, target).tolist() == pytest.approx([0, 0.8, 0.4], abs=1e-6)
    assert giou_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_giou_of_boxes_that_do_not_contain_their_location() -> None:
    """Sides may be negative: of boxes apart, inside out, and of one beside its location that overlaps the target."""
    target = torch.tensor([[1.0, 1, 1, 1]] * 3)
    pred = torch.tensor([[-8.0, -8, 9, 9], [-2, -2, 1, 1], [0, 1, 2, 1]])
    # apart: hull 10 x 10, union 4 + 1; without an area: union 4, hull 4; shifted by 1: hull 3 x 2, union 6
    expected = [1 - (1 / 6 - (100 - 5) / 100), 1 - 1 / 5, 1 - 3 / 7]
    loss = giou_loss(pred, target)
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)
    assert loss.max() < 2


def test_centerness_by_hand() -> None:
    ltrb = torch.tensor([[3.0, 5, 3, 5], [1, 2, 4, 2], [1, 1, 4, 9], [4, 9, 1, 1]])
    expected = [1, 0.5, math.sqrt(1 / 36), math.sqrt(1 / 36)]
    assert centerness_targets(ltrb).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("with_region", [False, True])
def test_hinge_against_a_loop(with_region: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    distance = torch.rand(6, 40, generator=rng) * 3
    targets = torch.rand(6, 40, generator=rng) < 0.5
    region = torch.rand(6, 40, generator=rng) < 0.5
    expected = []
    for row in range(6):
        terms = [
            max(d - HINGE_INSIDE, 0) ** 2 if g else max(HINGE_OUTSIDE - d, 0) ** 2
            for d, g, inside in zip(
                distance[row].tolist(), targets[row].tolist(), region[row].tolist(), strict=True
            )
            if inside or not with_region
        ]
        expected.append(sum(terms) / len(terms))
    found = hinge_loss(distance, targets, region if with_region else None)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_hinge_of_an_empty_region_is_zero() -> None:
    empty = torch.zeros(2, 5, dtype=torch.bool)
    assert hinge_loss(torch.ones(2, 5), ~empty, empty).tolist() == [0, 0]


def test_smooth_is_the_squared_distance_to_the_mean() -> None:
    values, means = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[2.0, 3], [3, 1]])
    assert smooth_loss(values, means).tolist() == [2, 9]


@settings(max_examples=60, deadline=None)
@given(instances())
def test_bce_is_the_mean_over_the_region(case: tuple[Tensor, Tensor, Tensor | None]) -> None:
    logits, targets, region = case
    found = bce_loss(logits, targets, region)
    assert found.shape == (len(logits),)
    for row, (values, wanted) in enumerate(zip(logits, targets, strict=True)):
        inside = torch.ones_like(wanted) if region is None else region[row]
        probs = values.double().sigmoid()
        terms = torch.where(wanted, probs, 1 - probs).log().neg()[inside]
        expected = terms.mean().item() if inside.any() else 0.0
        assert found[row].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_bce_of_the_coupling_is_its_distance() -> None:
    distance = torch.tensor([[0.01, 0.5, 3.0, 40.0]])
    outside = torch.zeros(1, 4, dtype=torch.bool)
    # -log phi = d inside the object, -log(1 - exp(-d)) outside
    assert bce_loss(logit(distance), ~outside).item() == pytest.approx(distance.mean().item())
    expected = -(-torch.expm1(-distance)).log().mean().item()
    assert bce_loss(logit(distance), outside).item() == pytest.approx(expected, rel=1e-5)
