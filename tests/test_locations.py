"""Locations of cells, and the order of all levels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import locations as slow
from torchvision.ops import box_iou

from embedmask.locations import (
    all_locations,
    flatten_levels,
    level_locations,
    ltrb_to_xyxy,
    paired_iou,
    resize_aligned,
    xyxy_to_ltrb,
)


@pytest.mark.parametrize("stride", [4, 8, 128])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (5, 1), (0, 4)])
def test_level_locations(size: tuple[int, int], stride: int) -> None:
    expected = [
        [x * stride + stride // 2, y * stride + stride // 2] for y in range(size[0]) for x in range(size[1])
    ]
    found = level_locations(size, stride)
    assert found.dtype == torch.float32
    assert found.shape == (size[0] * size[1], 2)
    assert found.tolist() == expected


def test_all_levels_in_the_order_of_the_flattened_maps() -> None:
    sizes, strides = [(4, 6), (2, 3), (1, 2)], (8, 16, 32)
    locations, level = all_locations(sizes, strides, "cpu")
    assert level.tolist() == [0] * 24 + [1] * 6 + [2] * 2
    # each map contains its own locations, so flattening must return them
    maps = [level_locations(s, t).T.reshape(1, 2, *s) for s, t in zip(sizes, strides, strict=True)]
    assert torch.equal(flatten_levels(maps)[0].T, locations)


def test_boxes_from_distances_and_back() -> None:
    locations = torch.rand(50, 2) * 100
    ltrb = torch.rand(50, 4) * 30
    boxes = ltrb_to_xyxy(locations, ltrb)
    assert torch.allclose(locations - boxes[:, :2], ltrb[:, :2], atol=1e-4)
    assert torch.allclose(boxes[:, 2:] - locations, ltrb[:, 2:], atol=1e-4)
    assert torch.allclose(xyxy_to_ltrb(locations, boxes), ltrb, atol=1e-4)
    assert torch.equal(ltrb_to_xyxy(locations, torch.zeros(50, 4)), locations.repeat(1, 2))
    assert ltrb_to_xyxy(torch.zeros(0, 2), torch.zeros(0, 4)).shape == (0, 4)


def test_paired_iou_equals_the_diagonal() -> None:
    draw = torch.Generator().manual_seed(0)
    low = torch.rand(500, 2, generator=draw) * 900
    boxes = torch.cat([low, low + torch.rand(500, 2, generator=draw) * 100], 1)
    others = (boxes + torch.randn(500, 4, generator=draw) * 10).round()
    boxes[::5, 2:], others[::10, 2:] = boxes[::5, :2], others[::10, :2]  # without area
    found, expected = paired_iou(boxes, others), box_iou(boxes, others).diagonal()
    assert found.dtype == torch.float32
    assert found.isnan().sum() >= 50
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
    assert paired_iou(boxes[:0], others[:0]).shape == (0,)


def test_different_numbers_of_sizes_and_strides() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        all_locations([(1, 1)], (8, 16), "cpu")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 2, 3, 4, 8]))
def test_resize_aligned(seed: int, height: int, width: int, factor: int) -> None:
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    found = resize_aligned(maps, factor)
    assert found.shape == (2, 3, factor * height, factor * width)
    assert torch.allclose(found, slow.resize_aligned(maps, factor), atol=1e-5)
    # every cell keeps its value at its location
    offset = factor // 2
    assert torch.allclose(found[..., offset::factor, offset::factor], maps, atol=1e-5)
