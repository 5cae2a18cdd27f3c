"""Mask targets and regions against interpolation and loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow

from embedmask.objective.mask_targets import box_regions, mask_targets, semantic_targets


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 4]),
    st.tuples(st.integers(1, 37), st.integers(1, 37)),
    st.integers(0, 9),
    st.sampled_from([0.02, 0.5, 1.0]),
    st.integers(0, 3),
)
def test_mask_targets(stride: int, size: tuple[int, int], extra: int, share: float, count: int) -> None:
    height, width = size
    rng = torch.Generator().manual_seed(height * width + extra)
    masks = torch.rand(count, height, width, generator=rng) < share
    grid = (math.ceil(height / stride) + extra, math.ceil(width / stride))
    found = mask_targets(masks, grid, stride)
    assert found.dtype == torch.bool
    assert found.shape == (count, *grid)
    assert torch.equal(found, slow.mask_targets(masks, grid, stride))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([2, 4, 8]),
    st.tuples(st.integers(1, 37), st.integers(1, 37)),
    st.integers(0, 5),
    st.booleans(),
)
def test_aligned_targets_and_semantic_targets(
    stride: int, size: tuple[int, int], count: int, ties: bool
) -> None:
    height, width = size
    rng = torch.Generator().manual_seed(height * width + count)
    masks = torch.rand(count, height, width, generator=rng) < 0.4
    if ties and count > 1:
        masks[1] = masks[0]
    grid = (math.ceil(height / stride) + 1, math.ceil(width / stride))
    found = mask_targets(masks, grid, stride, aligned=True)
    padded = torch.nn.functional.pad(masks, (0, grid[1] * stride - width, 0, grid[0] * stride - height))
    assert torch.equal(found, padded[:, stride // 2 :: stride, stride // 2 :: stride])
    some = torch.arange(count).flip(0).repeat(2)
    assert torch.equal(mask_targets(masks, grid, stride, aligned=True, index=some), found[some])
    labels = torch.randint(0, 9, (count,), generator=rng)
    classes = semantic_targets(masks, labels, grid, stride)
    assert torch.equal(classes, slow.semantic_targets(masks, labels, grid, stride))


@pytest.mark.parametrize("aligned", [False, True])
def test_stride_1_copies_the_mask(aligned: bool) -> None:
    masks = torch.rand(3, 7, 9) > 0.5
    padded = torch.nn.functional.pad(masks, (0, 1, 0, 1))
    assert torch.equal(mask_targets(masks, (8, 10), 1, aligned=aligned), padded)


def test_only_pixels_around_the_center_count() -> None:
    found = []
    for x in range(4):
        mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        mask[0, 1, x] = True
        found.append(mask_targets(mask, (1, 1), 4).item())
    assert found == [False, True, True, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 4]), st.sampled_from([1.0, 1.2, 1.5, 3.0]))
def test_box_regions(seed: int, stride: int, expansion: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    grid = (int(torch.randint(1, 14, (), generator=rng)), int(torch.randint(1, 14, (), generator=rng)))
    frame = torch.tensor([grid[1], grid[0]]) * stride
    low = torch.rand(4, 2, generator=rng) * frame
    boxes = torch.cat([low, low + torch.rand(4, 2, generator=rng) * (frame - low)], 1)
    assert torch.equal(
        box_regions(boxes, grid, stride, expansion), slow.box_regions(boxes, grid, stride, expansion)
    )


def test_regions_grow_with_the_factor_and_contain_the_box() -> None:
    boxes = torch.tensor([[40.0, 48, 80, 60], [0, 0, 4, 4], [100, 100, 128, 128]])
    sizes = [box_regions(boxes, (32, 32), 4, factor).flatten(1).sum(1) for factor in (1.0, 1.2, 1.5)]
    assert (sizes[0] <= sizes[1]).all()
    assert (sizes[1] <= sizes[2]).all()
    assert sizes[0][0] < sizes[1][0] < sizes[2][0]
    assert box_regions(boxes, (32, 32), 4, 1.0)[0, 12:15, 10:20].all()


@pytest.mark.parametrize("grid", [(1, 1), (1, 9)])
def test_last_row_is_never_inside(grid: tuple[int, int]) -> None:
    assert not box_regions(torch.tensor([[0.0, 0, 99, 99]]), grid, 4, 1.2)[:, -1].any()


def test_no_boxes() -> None:
    assert box_regions(torch.zeros(0, 4), (3, 4), 4, 1.2).shape == (0, 3, 4)
