"""Grids of the pixel embedding, and the parts of the network of preset `fused`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import small_config
from torch import nn

from embedmask import Criterion, EmbedMask, Postprocessor, Target
from embedmask.errors import BadInput
from embedmask.model.head import CLASS_PRIOR
from embedmask.model.pixel_branch import FusedPixelBranch


def model_of(**changes: Any) -> EmbedMask:
    torch.manual_seed(0)
    return EmbedMask(small_config(**{"preset": "fused", "embed_channels": 16, **changes}))


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 65), (100, 37)])
@pytest.mark.parametrize("first", [4, 8])
def test_any_frame(size: tuple[int, int], first: int) -> None:
    """Include frames that the cells of the coarser levels do not divide."""
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


def test_semantic_logits_only_in_training() -> None:
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
    branch.embed(branch.trunk(maps)).square().sum().backward()
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
    torch.testing.assert_close(one, two)  # the learned scale is initialized to 1


def test_raises_on_stride_beyond_the_fused_levels() -> None:
    assert model_of(pixel_branch="tower", embed_stride=64).config.pixel_stride == 64
    with pytest.raises(BadInput, match="embed_stride must be at most 32 with pixel_branch fused, got 64"):
        model_of(pixel_branch="fused", embed_stride=64)


@pytest.mark.parametrize("branch", ["tower", "fused"])
@pytest.mark.parametrize(("finest", "stride"), [(4, 2), (8, 2), (8, 4), (4, 4), (4, 16), (8, 16)])
def test_pixel_embedding_has_the_configured_stride(branch: str, finest: int, stride: int) -> None:
    """Train, couple and decode on each grid."""
    strides = tuple(finest * 2**level for level in range(5))
    model = model_of(preset="ijcai21", pixel_branch=branch, strides=strides, embed_stride=stride)
    predictions = model.train()(torch.randn(2, 3, 64, 96))
    assert (predictions.pixel_stride, predictions.padded_size) == (stride, (64, 96))
    assert predictions.pixel_embed.shape[2:] == (64 // stride, 96 // stride)
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 16:64] = True
    target = Target(boxes=torch.tensor([[16.0, 8, 64, 40]]), labels=torch.tensor([1]), masks=masks)
    Criterion.from_config(model.config)(predictions, [target, target]).mask.backward()
    branch_grads = [p.grad for p in model.head.pixel_branch.parameters()]
    assert all(grad is not None and bool(grad.any()) for grad in branch_grads)
    assert all(bool(conv.weight.grad.any()) for conv in model.neck.details)
    found = Postprocessor.from_config(model.config)(predictions, [(60, 90)] * 2, [(120, 180)] * 2)
    assert all(one.masks.frame == (120, 180) for one in found)


@pytest.mark.parametrize("size", [(33, 65), (100, 37)])
def test_finer_grid_accepts_frames_of_any_size(size: tuple[int, int]) -> None:
    model = model_of(preset="ijcai21", embed_stride=2).eval()
    with torch.no_grad():
        predictions = model(torch.randn(1, 3, *size))
    assert predictions.pixel_embed.shape[2:] == tuple(math.ceil(side / 2) for side in size)


def test_pixel_embedding_as_cluster_center_on_a_finer_grid() -> None:
    """Check that Table 2 (b) reads p at the location, for any stride of p."""
    model = model_of(preset="ijcai21", embed_stride=2, cluster_center="pixel", coordinates=False).eval()
    with torch.no_grad():
        predictions = model(torch.randn(1, 3, 64, 64))
    first = predictions.proposal_embed[0]  # stride 8: its locations lie at 4, 12, ...
    assert torch.equal(first, predictions.pixel_embed[:, :, 2::4, 2::4])


def test_raises_on_missing_stride() -> None:
    for stride in (1, 3, 256):
        with pytest.raises(BadInput, match="embed_stride"):
            model_of(embed_stride=stride)
    with pytest.raises(BadInput, match="choose another"):
        model_of(preset="ijcai21", backbone="convnext_atto", embed_stride=2)
