"""Ablations of Table 2: each option builds, trains one step, predicts and uses every parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import maps_of, random_predictions, random_rectangles, rectangles, small_config

from embedmask import Criterion, EmbedMask, Postprocessor
from embedmask.structures import Losses

SIZE = (64, 96)
SWITCHES: list[dict[str, Any]] = [
    {"margin": "predicted"},
    {"margin": "constant"},
    {"margin": "hinge"},
    {"cluster_center": "proposal"},
    {"cluster_center": "pixel"},
    {"embed_samples": "all"},
    {"embed_samples": "iou"},
    {"embed_samples": "best"},
    {"sample_in_mask": False},
    {"sample_in_mask": False, "embed_samples": "all"},
    {"box_expansion": None},
    {"box_expansion": 1.0},
    {"box_expansion": 1.2},
    {"box_expansion": 1.5},
    {"embed_dim": 8},
    {"embed_dim": 16},
    {"embed_dim": 32},
    {"preset": "ijcai21"},
    {"preset": "ijcai21", "cluster_center": "pixel"},
    {"preset": "ijcai21", "margin": "hinge"},
    {"coordinates": True},
    {"margin_source": "tower"},
    {"smooth_weight": 0.0},
    {"center_radius": None},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_builds_trains_and_predicts(switch: dict[str, Any]) -> None:
    torch.manual_seed(0)
    cfg = small_config(**switch)
    model = EmbedMask(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images = torch.randn(2, 3, *SIZE)
    targets = [rectangles([[8, 8, 50, 56], [40, 20, 90, 40]], SIZE), random_rectangles(3, SIZE)]
    losses = Criterion.from_config(cfg)(model(images), targets)
    assert losses.num_positives > 0
    assert losses.mask.item() > 0
    losses.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    model.eval()
    with torch.no_grad():
        predictions = model(images)
    assert all(m.isfinite().all() for m in maps_of(predictions))
    low = small_config(**{**switch, "candidate_threshold": 0.0, "max_detections": 5})
    results = Postprocessor.from_config(low)(predictions, [SIZE] * 2, [(70, 100)] * 2)
    assert all(len(found) == 5 and found.masks.to_dense().shape == (5, 70, 100) for found in results)


def losses_with(**changes: Any) -> Losses:
    predictions = random_predictions(SIZE, seed=3)
    target = rectangles([[8, 8, 60, 56], [40, 20, 90, 60]], SIZE)
    target.masks[:, 24:40, 24:72] = False
    return Criterion.from_config(small_config(embed_dim=4, **changes))(predictions, [target])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"embed_samples": "all"}, {"embed_samples": "best"}),
        ({"embed_samples": "all"}, {"embed_samples": "iou"}),
        ({"box_expansion": 1.0}, {"box_expansion": 1.2}),
        ({"box_expansion": 1.2}, {"box_expansion": 1.5}),
        ({"box_expansion": 1.5}, {"box_expansion": None}),
        ({"mask_weight": 0.5}, {"mask_weight": 1.0}),
    ],
)
def test_mask_loss_options_change_only_the_mask_loss(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = losses_with(**one), losses_with(**other)
    assert first.mask.item() != second.mask.item()
    for name in ("classification", "box", "centerness"):
        assert first.as_dict()[name].item() == second.as_dict()[name].item()


def test_in_mask_sampling_drops_locations_in_holes() -> None:
    with_rule, without = losses_with(sample_in_mask=True), losses_with(sample_in_mask=False)
    assert 0 < with_rule.num_positives < without.num_positives


def test_single_samples_have_no_smooth_loss() -> None:
    best, every = losses_with(embed_samples="best").smooth, losses_with(embed_samples="all").smooth
    assert best is not None
    assert every is not None
    assert best.item() == 0 < every.item()
    assert losses_with(smooth_weight=0.0).smooth == 0


def test_hinge_uses_distances_without_the_margin() -> None:
    """Check eq. 2 on ||p - Q|| = 0: the loss is 0 inside and delta_b squared outside."""
    cfg = small_config(margin="hinge", embed_dim=4, mask_weight=1.0, box_expansion=None)
    predictions = random_predictions(SIZE)
    predictions.proposal_embed = [torch.zeros_like(m) for m in predictions.proposal_embed]
    predictions.proposal_margin = [torch.full_like(m, 0.6931472) for m in predictions.proposal_margin]
    predictions.pixel_embed = torch.zeros_like(predictions.pixel_embed)
    target = rectangles([[0, 0, 48, 64]], SIZE)
    assert Criterion.from_config(cfg)(predictions, [target]).mask.item() == pytest.approx(
        0.5 * 1.5**2, rel=1e-4
    )
    predictions.pixel_embed = predictions.pixel_embed + torch.tensor([2.0, 0, 0, 0]).view(1, 4, 1, 1)
    assert Criterion.from_config(cfg)(predictions, [target]).mask.item() == pytest.approx(
        0.5 * 1.5**2, rel=1e-4
    )
    predictions.pixel_embed[:, 0] = 0.5
    predictions.pixel_embed[:, 0, :, 6:] = 1.5
    # only the interpolated border has a loss
    assert Criterion.from_config(cfg)(predictions, [target]).mask.item() < 0.02
