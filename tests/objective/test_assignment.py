"""Assignment (section 3.5) against three nested loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow
from small_models import random_rectangles, rectangles
from torch import Tensor

from embedmask.locations import all_locations, paired_iou
from embedmask.objective.assignment import GT_CHUNK, assign, select_samples

STRIDES = (8, 16, 32)
RANGES = [(-1.0, 20.0), (20.0, 40.0), (40.0, math.inf)]


def pyramid(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return locations, strides and ranges of three levels."""
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    locations, level = all_locations(sizes, STRIDES, "cpu")
    return locations, torch.tensor(STRIDES)[level].float(), torch.tensor(RANGES)[level]


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int], Tensor, Tensor]:
    """Sample a frame, boxes on half pixels (ties are common) and random masks, some smaller than the frame."""
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    height, width = (int(torch.randint(1, 90, (), generator=rng)) for _ in range(2))
    frame, count = torch.tensor([width, height]), draw(st.integers(0, 6))
    low = (torch.rand(count, 2, generator=rng) * frame).mul(2).floor() / 2
    sides = (torch.rand(count, 2, generator=rng) * (frame - low)).mul(2).ceil() / 2
    boxes = torch.cat([low, low + sides], 1)
    cut = draw(st.integers(0, min(height, width) - 1)) // 4
    masks = torch.rand(count, height - cut, width - cut, generator=rng) < 0.8
    return (height, width), boxes, masks


@settings(max_examples=60, deadline=None)
@given(
    scenes(),
    st.sampled_from([None, 1.5]),
    st.booleans(),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["box", "mass"]),
)
def test_assign(
    scene: tuple[tuple[int, int], Tensor, Tensor],
    radius: float | None,
    in_mask: bool,
    offset: float,
    center: str,
) -> None:
    (height, width), boxes, masks = scene
    # 1.53 for mass centers: no location lies on the square's border, where the last bit of a mean would decide
    radius = 1.53 if radius and center == "mass" else radius
    options = {
        "center_radius": radius,
        "sampling_center": center,
        "sample_in_mask": in_mask,
        "box_offset": offset,
    }
    found = assign(*pyramid(height, width), boxes, masks, **options)
    index, ltrb = slow.assign(*pyramid(height, width), boxes, masks, **options)
    assert found.gt_index.dtype == torch.int64
    assert found.gt_index.tolist() == index
    assert found.ltrb.tolist() == ltrb


def test_no_ground_truth() -> None:
    found = assign(*pyramid(64, 64), torch.zeros(0, 4), torch.zeros(0, 64, 64, dtype=torch.bool))
    assert (found.gt_index == -1).all()
    assert (found.ltrb == 0).all()


def test_the_first_of_equal_areas_wins() -> None:
    target = rectangles([[0, 0, 32, 24], [0, 0, 24, 32], [0, 0, 32, 24]], (64, 64))
    locations, strides, ranges = pyramid(64, 64)
    found = assign(locations, strides, ranges, target.boxes, target.masks)
    both = (locations == torch.tensor([12.0, 12.0])).all(1).nonzero()[0, 0]
    assert found.gt_index[both] == 0
    assert 2 not in found.gt_index.tolist()


def test_more_objects_than_a_chunk() -> None:
    target = random_rectangles(GT_CHUNK + 45, (64, 64))
    options = {"center_radius": 1.5, "sample_in_mask": True, "box_offset": 1.0}
    found = assign(*pyramid(64, 64), target.boxes, target.masks, **options)
    index, _ = slow.assign(*pyramid(64, 64), target.boxes, target.masks, **options)
    assert found.gt_index.tolist() == index
    assert max(index) >= GT_CHUNK


def test_size_ranges_include_both_ends() -> None:
    # the farthest side of location (20, 20) is exactly 20 away: levels one and two both accept it
    target = rectangles([[0, 0, 40, 40]], (64, 64))
    locations, strides, ranges = pyramid(64, 64)
    found = assign(locations, strides, ranges, target.boxes, target.masks, center_radius=None)
    assert found.gt_index[(locations == 20).all(1) & (strides == 8)].tolist() == [0]
    for low, high in ((0.0, 20.0), (20.0, 40.0)):
        only = torch.tensor([[low, high]])
        one = assign(torch.tensor([[20.0, 20.0]]), torch.tensor([8.0]), only, target.boxes, target.masks)
        assert one.gt_index.tolist() == [0]


def test_in_mask_moves_a_location_to_the_object_behind() -> None:
    target = rectangles([[0, 0, 30, 30], [0, 0, 40, 40]], (64, 64))
    target.masks[0, 20:, 20:] = False
    at, stride, span = torch.tensor([[20.0, 20.0]]), torch.tensor([8.0]), torch.tensor([[-1.0, 99.0]])
    options = {"center_radius": None, "sample_in_mask": True}
    assert assign(at, stride, span, target.boxes, target.masks, **options).gt_index.tolist() == [1]
    options["sample_in_mask"] = False
    assert assign(at, stride, span, target.boxes, target.masks, **options).gt_index.tolist() == [0]


@st.composite
def samplings(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Sample predicted boxes on a coarse grid (equal IoUs are common) and ground truths, some without a positive."""
    corner = st.integers(0, 6)
    side = st.integers(1, 6)
    box = st.tuples(corner, corner, side, side)
    gts = draw(st.lists(box, min_size=1, max_size=4))
    preds = draw(st.lists(box, max_size=12))
    owner = draw(st.lists(st.integers(0, len(gts) - 1), min_size=len(preds), max_size=len(preds)))

    def xyxy(boxes: list[tuple[int, int, int, int]]) -> Tensor:
        return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).view(-1, 4)

    return xyxy(preds), xyxy(gts), torch.tensor(owner, dtype=torch.int64)


@settings(max_examples=60, deadline=None)
@given(samplings(), st.sampled_from(["iou", "all", "best"]), st.sampled_from([0.0, 1.0]))
def test_select_samples(case: tuple[Tensor, Tensor, Tensor], mode: str, offset: float) -> None:
    options = {"mode": mode, "iou_threshold": 0.4321, "box_offset": offset}
    found = select_samples(*case, **options)
    assert found.tolist() == slow.select_samples(*case, **options)
    # in every mode, each ground truth that has a positive keeps at least one
    assert set(case[2][found].tolist()) == set(case[2].tolist())


@settings(max_examples=40, deadline=None)
@given(samplings(), st.sampled_from([0.0, 1.0]))
def test_paired_iou(case: tuple[Tensor, Tensor, Tensor], offset: float) -> None:
    preds, gts, owner = case
    found = paired_iou(preds, gts[owner], offset)
    pairs = zip(preds.tolist(), gts[owner].tolist(), strict=True)
    expected = torch.tensor([slow.iou(a, b, offset) for a, b in pairs])
    assert torch.allclose(found, expected, atol=1e-6)
    assert (paired_iou(gts, gts, offset) == 1).all()


@pytest.mark.parametrize(("mode", "expected"), [("iou", [1, 0, 0]), ("best", [1, 0, 0]), ("all", [1, 1, 1])])
def test_samples_without_overlap(mode: str, expected: list[int]) -> None:
    gt = torch.tensor([[0.0, 0, 10, 10]])
    preds = torch.tensor([[0.0, 0, 4, 4], [20, 20, 30, 30], [40, 40, 50, 50]])
    found = select_samples(preds, gt, torch.zeros(3, dtype=torch.int64), mode=mode, iou_threshold=0.5)
    assert found.int().tolist() == expected
