"""Outputs of the head before training, and the effect of each option of Table 2."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import maps_of, small_config
from torch import Tensor

from embedmask import Predictions
from embedmask.coupling import weighted_distance
from embedmask.locations import level_locations
from embedmask.model.head import CLASS_PRIOR, Head

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def features(seed: int = 0, images: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(images, 32, *size, generator=rng) for size in SIZES]


def run(seed: int = 0, **changes: Any) -> tuple[Head, Predictions]:
    torch.manual_seed(0)
    head = Head(small_config(**changes))
    return head, head(features(seed))


def phi_at(distance: float, margin: Tensor) -> float:
    """Return phi of a pixel at a distance from a proposal with a scalar margin."""
    d = weighted_distance(torch.tensor([[distance]]), torch.zeros(1, 1), margin.reshape(1, 1))
    return d.neg().exp().item()


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
def test_shapes_and_signs(preset: str) -> None:
    _, p = run(preset=preset)
    margins = {"paper": 1, "ijcai21": 8}[preset]
    for maps, channels in (
        (p.class_logits, 3),
        (p.box_ltrb, 4),
        (p.centerness_logits, 1),
        (p.proposal_embed, 8),
        (p.proposal_margin, margins),
    ):
        assert [m.shape for m in maps] == [(2, channels, *size) for size in SIZES]
    assert p.pixel_embed.shape == (2, 8, *SIZES[0])
    assert all((m >= 0).all() for m in p.box_ltrb)
    assert all((m > 0).all() for m in p.proposal_margin)
    assert p.strides == (8, 16, 32, 64, 128)


def test_before_training() -> None:
    _, p = run()
    assert torch.cat([m.flatten() for m in p.class_logits]).sigmoid().mean().item() == pytest.approx(
        CLASS_PRIOR, rel=0.2
    )
    margins = torch.cat([m.flatten() for m in p.proposal_margin])
    assert torch.allclose(margins, torch.tensor(math.log(2) / 4), rtol=0.02)


@pytest.mark.parametrize("prior", [1.0, 2.0, 3.5])
def test_predicted_margin_starts_at_its_prior(prior: float) -> None:
    _, p = run(prior_margin=prior)
    assert phi_at(prior, p.proposal_margin[0][0, 0, 0, 0]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("margin", "distance"), [("constant", 2.0), ("hinge", 1.0)])
def test_fixed_margins(margin: str, distance: float) -> None:
    head, p = run(margin=margin)
    values = torch.cat([m.flatten() for m in p.proposal_margin])
    assert len(values.unique()) == 1
    assert phi_at(distance, values[0]) == pytest.approx(0.5, abs=1e-6)
    assert not any("margin" in name for name, _ in head.named_parameters())
    assert not any(m.requires_grad for m in p.proposal_margin)


def test_constant_margin_follows_its_field() -> None:
    _, p = run(margin="constant", prior_margin=5.0)
    assert phi_at(5.0, p.proposal_margin[0][0, 0, 0, 0]) == pytest.approx(0.5, abs=1e-6)


def test_margin_from_the_box_stops_the_gradient() -> None:
    head, p = run()
    torch.stack([m.sum() for m in p.proposal_margin]).sum().backward()
    assert head.margin.conv.weight.grad is not None
    assert head.margin.conv.weight.grad.abs().sum() > 0
    assert all(q.grad is None for name, q in head.named_parameters() if not name.startswith("margin."))


def test_margin_from_the_tower_passes_the_gradient() -> None:
    head, p = run(preset="ijcai21")
    torch.stack([m.sum() for m in p.proposal_margin]).sum().backward()
    grads = [q.grad for q in head.box_tower.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_cluster_center_from_the_pixels() -> None:
    head, p = run(cluster_center="pixel")
    assert not any(name.startswith("proposal_embed") for name, _ in head.named_parameters())
    for level, (size, stride) in enumerate(zip(SIZES, p.strides, strict=True)):
        for cell, (x, y) in enumerate(level_locations(size, stride).long().tolist()):
            row, column = min(y // 8, SIZES[0][0] - 1), min(x // 8, SIZES[0][1] - 1)
            found = p.proposal_embed[level][:, :, cell // size[1], cell % size[1]]
            assert torch.equal(found, p.pixel_embed[:, :, row, column])


def test_cluster_center_from_the_proposals() -> None:
    head, p = run()
    assert any(name.startswith("proposal_embed") for name, _ in head.named_parameters())
    assert not torch.allclose(p.proposal_embed[0], p.pixel_embed, atol=1e-3)


@pytest.mark.parametrize("dims", [8, 16, 32])
def test_embedding_dims(dims: int) -> None:
    _, p = run(embed_dim=dims)
    assert {m.shape[1] for m in (*p.proposal_embed, p.pixel_embed)} == {dims}
    assert {m.shape[1] for m in p.proposal_margin} == {1}


def test_coordinates_change_only_the_first_two_dims() -> None:
    head, with_position = run(preset="ijcai21")
    assert head.position_scale is not None
    with torch.no_grad():
        head.position_scale.scale.zero_()
        without = head(features())
        head.position_scale.scale.fill_(2.0)
        doubled = head(features())
    pairs = [
        (*maps, 8)
        for maps in zip(*(m.pixel_embed[None] for m in (with_position, without, doubled)), strict=True)
    ]
    for level, stride in enumerate(with_position.strides):
        pairs.append((*(p.proposal_embed[level] for p in (with_position, without, doubled)), stride))
    for once, none, twice, stride in pairs:
        height, width = once.shape[-2:]
        xy = level_locations((height, width), stride).T.reshape(2, height, width)
        assert torch.allclose((once - none)[:, :2], (xy / 100).expand(2, -1, -1, -1), atol=1e-5)
        assert torch.allclose((twice - none)[:, :2], (xy / 50).expand(2, -1, -1, -1), atol=1e-5)
        assert torch.equal(once[:, 2:], none[:, 2:])


def test_boxes_are_in_pixels_on_every_level() -> None:
    head, _ = run()
    with torch.no_grad():
        for parameter in head.box.parameters():
            parameter.zero_()
        head.box.bias.fill_(1.5)
        p = head(features())
    for stride, level in zip(p.strides, p.box_ltrb, strict=True):
        assert torch.equal(level, torch.full_like(level, 1.5 * stride))


def test_predictions_do_not_depend_on_the_batch() -> None:
    head, both = run()
    alone = head([f[1:] for f in features()])
    for one, two in zip(maps_of(alone), maps_of(both), strict=True):
        assert torch.allclose(one, two[1:], atol=1e-5)


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
def test_outputs_are_float32_under_autocast(preset: str) -> None:
    head, exact = run(preset=preset)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = head(features())
    assert {m.dtype for m in maps_of(p)} == {torch.float32}
    near = torch.stack(
        [(a - b).abs().max() for a, b in zip(p.proposal_embed, exact.proposal_embed, strict=True)]
    )
    assert near.max() < 0.05
