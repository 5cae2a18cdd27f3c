"""Neck: the requested number of levels, from maps of any size."""

from __future__ import annotations

import math

import pytest
import torch

from embedmask.model.neck import Neck


def pyramid(height: int, width: int, seed: int = 0) -> list[torch.Tensor]:
    """Return backbone maps of 4, 6 and 8 channels at strides 8, 16, 32."""
    rng = torch.Generator().manual_seed(seed)
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in (8, 16, 32)]
    return [torch.randn(2, c, *size, generator=rng) for c, size in zip((4, 6, 8), sizes, strict=True)]


@pytest.mark.parametrize("levels", [3, 4, 5, 7])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (1, 1), (33, 200)])
def test_sizes(levels: int, size: tuple[int, int]) -> None:
    maps = Neck([4, 6, 8], 16, levels)(pyramid(*size))
    expected = [tuple(math.ceil(side / (8 * 2**i)) for side in size) for i in range(levels)]
    assert [tuple(m.shape) for m in maps] == [(2, 16, *e) for e in expected]


def test_coarser_levels_follow_from_the_one_before() -> None:
    neck = Neck([4, 6, 8], 16, 5)
    _, _, p5, p6, p7 = neck(pyramid(128, 128))
    first, second = neck.fpn.extra_blocks.convs
    assert torch.equal(p6, first(p5))
    assert torch.equal(p7, second(p6.relu()))


def test_gradients_on_a_map_of_one_cell_under_autocast() -> None:
    neck = Neck([4, 6, 8], 32, 5)
    for _ in range(10):
        freed = torch.full(
            (32 * 32 * 9,), math.nan
        )  # a kernel that does not write its output would return this memory
        del freed
        neck.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps = neck(pyramid(32, 32))
        maps[-1].float().square().sum().backward()
        for name, parameter in neck.fpn.extra_blocks.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name
        taps = neck.fpn.extra_blocks.convs[1].weight.grad.clone()
        taps[:, :, 1, 1] = 0
        assert (taps == 0).all()  # all others read only padding


def test_initial_weights_are_the_authors() -> None:
    """Kaiming-uniform with a = 1 has the bound sqrt(3 / inputs) and the deviation sqrt(1 / inputs); biases are 0."""
    torch.manual_seed(0)
    neck = Neck([64, 96, 128], 128, 5)
    convs = [module for module in neck.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convs) == 8  # three lateral, three output, P6 and P7
    for conv in convs:
        bound = math.sqrt(3 / conv.weight[0].numel())
        assert 0.99 * bound < float(conv.weight.detach().abs().max()) <= bound
        assert float(conv.weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert conv.bias is not None
        assert (conv.bias == 0).all()
