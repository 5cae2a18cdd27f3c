"""Learning rates and parameter groups compared with the authors'."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from embedmask.config import TrainConfig
from embedmask.errors import BadInput
from embedmask.training.module import make_optimizer
from embedmask.training.schedule import lr_factor, parameter_groups

GOLDEN = Path(__file__).parents[1] / "golden" / "layers.npz"


def schedule_config(total: int, milestones: tuple[int, ...], **changes: Any) -> TrainConfig:
    return TrainConfig(max_steps=total, milestones=tuple(m / total for m in milestones), **changes)


@pytest.mark.parametrize(
    ("key", "total", "milestones", "warmup"),
    [
        ("lr.1x_constant", 90_000, (60_000, 80_000), "constant"),
        ("lr.3x_constant", 270_000, (210_000, 250_000), "constant"),
        ("lr.1x_linear", 90_000, (60_000, 80_000), "linear"),
    ],
)
def test_rates_of_weights_and_biases_equal_the_authors(
    key: str, total: int, milestones: tuple[int, ...], warmup: Any
) -> None:
    figures = np.load(GOLDEN)
    config = schedule_config(total, milestones, warmup=warmup)
    factors = np.array([lr_factor(int(step), total, config) for step in figures["lr.iteration"]])
    groups = parameter_groups(nn.Linear(2, 2), config)
    rates = np.stack([group["lr"] * factors for group in groups], axis=1)
    np.testing.assert_allclose(rates, figures[key], rtol=1e-6)


def test_rates_of_a_stepped_scheduler_equal_the_authors() -> None:
    figures = np.load(GOLDEN)["lr.stepped_w4_steps6_9"]
    config = schedule_config(12, (6, 9), warmup_steps=4)
    net = nn.Linear(2, 2)
    optimizer = make_optimizer(parameter_groups(net, config), config)
    scheduler = LambdaLR(optimizer, partial(lr_factor, total_steps=12, config=config))
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, figures, rtol=1e-6)


def test_default_milestones_are_60k_and_80k_exactly() -> None:
    config = TrainConfig(warmup_steps=0)
    factors = [lr_factor(step, 90_000, config) for step in (59_999, 60_000, 79_999, 80_000)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01])


def test_cosine_decays_from_one_to_almost_zero() -> None:
    config = TrainConfig(schedule="cosine", warmup_steps=10)
    assert lr_factor(10, 110, config) == 1
    assert lr_factor(60, 110, config) == pytest.approx(0.5)
    assert 0 < lr_factor(109, 110, config) < 0.001


@given(
    step=st.integers(0, 2000),
    total=st.integers(1, 2000),
    warmup_steps=st.integers(0, 3000),
    warmup=st.sampled_from(["constant", "linear"]),
    schedule=st.sampled_from(["step", "cosine"]),
)
def test_factor_stays_between_zero_and_one(
    step: int, total: int, warmup_steps: int, warmup: Any, schedule: Any
) -> None:
    config = TrainConfig(warmup_steps=warmup_steps, warmup=warmup, schedule=schedule)
    factor = lr_factor(step, total, config)
    assert 0 <= factor <= 1
    assert math.isfinite(factor)


def test_parameters_named_bias_get_the_bias_rate() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1, bias=False))
    net.add_module("bias_scale", nn.Linear(2, 2, bias=False))  # the rule is the name, not the role
    config = TrainConfig(lr=0.1, bias_lr_factor=2, bias_weight_decay=0, weight_decay=1e-4)
    weights, biases = parameter_groups(net, config)
    named = dict(net.named_parameters())
    assert {id(p) for p in biases["params"]} == {id(p) for n, p in named.items() if "bias" in n}
    assert len(biases["params"]) == 3
    assert len(weights["params"]) == 3
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 1e-4)
    assert (biases["lr"], biases["weight_decay"]) == (0.2, 0)


def test_frozen_parameters_are_left_out_and_no_group_is_empty() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
    net[0].requires_grad_(False)
    (only,) = parameter_groups(net, TrainConfig())
    assert [p.shape for p in only["params"]] == [torch.Size([2, 2])]
    assert only["params"][0] is net[1].weight


@pytest.mark.parametrize(
    ("batch", "meant", "rate"), [(16, 16, 0.01), (8, 16, 0.005), (64, 16, 0.04), (8, None, 0.01)]
)
def test_rates_scale_with_the_batch_size(batch: int, meant: int | None, rate: float) -> None:
    config = TrainConfig(lr=0.01, batch_size=batch, lr_batch_size=meant, accumulate=2)
    weights, biases = parameter_groups(nn.Linear(2, 2), config)
    assert weights["lr"] == pytest.approx(rate)
    assert biases["lr"] == pytest.approx(2 * rate)


def test_raises_if_accumulate_does_not_divide_the_batch_size() -> None:
    with pytest.raises(BadInput, match="accumulate must be a divisor of batch_size 16"):
        TrainConfig(accumulate=3)
