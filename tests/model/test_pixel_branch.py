"""The parts of the network that only preset `fused` has."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import small_config
from torch import nn

from embedmask import EmbedMask
from embedmask.model.head import CLASS_PRIOR
from embedmask.model.pixel_branch import FusedPixelBranch


def model_of(**changes: Any) -> EmbedMask:
    torch.manual_seed(0)
    return EmbedMask(small_config(**{"preset": "fused", "embed_channels": 16, **changes}))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 65), (100, 37)])
@pytest.mark.parametrize("first", [4, 8])
def test_any_frame(size: tuple[int, int], first: int) -> None:
    """Also one that the coarser levels overshoot, because their cells do not divide it."""
    strides = tuple(first * 2**level for level in range(5))
    model = model_of(strides=strides).eval()
    with torch.no_grad():
        predictions = model(torch.randn(2, 3, *size))
    grid = tuple(math.ceil(side / first) for side in size)
    assert predictions.pixel_embed.shape == (2, 8, *grid)
    assert predictions.pixel_embed.isfinite().all()
    branch = model.head.pixel_branch
    assert isinstance(branch, FusedPixelBranch)
    assert len(branch.refine) == sum(stride <= 32 for stride in strides)


def test_semantic_logits_in_training_alone() -> None:
    model, images = model_of(), torch.randn(2, 3, 64, 96)
    semantic = model.train()(images).semantic_logits
    assert semantic is not None
    assert semantic.shape == (2, 3, 8, 12)
    assert semantic.sigmoid().mean().item() == pytest.approx(CLASS_PRIOR, rel=0.5)
    assert model.eval()(images).semantic_logits is None
    assert model_of(semantic_weight=0.0).train()(images).semantic_logits is None


def test_every_finer_level_reaches_the_pixels() -> None:
    branch = model_of().eval().head.pixel_branch
    maps = [torch.randn(1, 32, 8 >> level, 8 >> level, requires_grad=True) for level in range(4)]
    branch(maps).square().sum().backward()
    reached = [m.grad is not None and bool(m.grad.any()) for m in maps]
    assert reached == [True, True, True, False]


def test_the_width_in_front_of_the_embeddings() -> None:
    head = model_of().head
    assert (head.proposal_reduce.weight.shape, head.margin.reduce.weight.shape) == ((16, 32, 1, 1),) * 2
    assert head.proposal_embed.weight.shape == (8, 16, 3, 3)
    plain = model_of(embed_channels=None).head
    assert isinstance(plain.proposal_reduce, nn.Identity)
    assert plain.proposal_embed.weight.shape == (8, 32, 3, 3)
    assert plain.semantic[0][0].weight.shape == (32, 32, 3, 3)


def test_the_fixed_scale_of_positions_has_no_parameter() -> None:
    names = {name for name, _ in model_of().head.named_parameters()}
    assert not any("position_scale" in name for name in names)
    learned = model_of(coordinate_scale="learned")
    assert "position_scale.scale" in dict(learned.head.named_parameters())
    fixed = model_of()
    fixed.load_state_dict(learned.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    one, two = (model.eval()(images).pixel_embed for model in (fixed, learned))
    torch.testing.assert_close(one, two)  # the learned one begins at 1
