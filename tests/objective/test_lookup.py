"""Mask lookup in crops against indexing of dense masks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow
from torch import Tensor

from embedmask.objective.lookup import MaskLookup
from embedmask.structures import CropMasks

SIZE = (19, 23)
BORDER = 30
"""Margin around the image for crops that reach outside, px."""


@st.composite
def crop_masks(draw: st.DrawFn) -> CropMasks:
    """Sample crops of any place and size, also empty, outside the image, or not contiguous."""
    crops, offsets = [], []
    for _ in range(draw(st.integers(0, 4))):
        h, w = draw(st.integers(0, 20)), draw(st.integers(0, 20))
        rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        crop = torch.rand(h, w, generator=rng) < draw(st.sampled_from([0.1, 0.5, 1.0]))
        crops.append(
            draw(st.sampled_from([crop, crop.T.contiguous().T, crop.flip(0), crop.repeat(1, 2)[:, ::2]]))
        )
        offsets.append((draw(st.integers(-9, 28)), draw(st.integers(-9, 28))))
    return CropMasks(crops, offsets, SIZE)


def canvas(masks: CropMasks) -> Tensor:
    """Return dense masks with a margin of `BORDER` px, so that they contain every crop."""
    whole = torch.zeros(len(masks), SIZE[0] + 2 * BORDER, SIZE[1] + 2 * BORDER, dtype=torch.bool)
    for mask, crop, (y, x) in zip(whole, masks.crops, masks.offsets, strict=True):
        mask[y + BORDER : y + BORDER + crop.shape[0], x + BORDER : x + BORDER + crop.shape[1]] = crop
    return whole


def indices(count: int) -> st.SearchStrategy[list[int]]:
    """Sample indices of `count` masks, in any order, with repetitions."""
    return st.lists(st.integers(0, count - 1), max_size=6) if count else st.just([])


@settings(max_examples=150, deadline=None)
@given(st.data(), crop_masks(), st.sampled_from([1, 2, 3, 4, 8]))
def test_any_of(data: st.DataObject, masks: CropMasks, stride: int) -> None:
    grid = (data.draw(st.integers(1, 26)), data.draw(st.integers(1, 26)))
    inside = st.integers(0, stride - 1)
    places = data.draw(st.lists(st.tuples(inside, inside), min_size=1, max_size=4))
    index = data.draw(st.none() | indices(len(masks)))
    chosen = None if index is None else torch.tensor(index, dtype=torch.int64)
    found = MaskLookup.of(masks).any_of(places, stride, grid, chosen)
    assert found.dtype == torch.bool
    whole = canvas(masks)[:, BORDER:, BORDER:]
    expected = slow.any_of(whole if chosen is None else whole[chosen], places, stride, grid)
    assert torch.equal(found, expected)


@settings(max_examples=150, deadline=None)
@given(st.data(), crop_masks(), st.integers(0, 30))
def test_at(data: st.DataObject, masks: CropMasks, count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    y, x = torch.randint(-BORDER, SIZE[0] + BORDER, (2, count), generator=rng)
    index = torch.tensor(data.draw(indices(len(masks))), dtype=torch.int64)
    found = MaskLookup.of(masks).at(y, x, index)
    assert found.dtype == torch.bool
    assert torch.equal(found, canvas(masks)[index][:, y + BORDER, x + BORDER])


@given(crop_masks())
def test_each_mask_and_its_area(masks: CropMasks) -> None:
    lookup = MaskLookup.of(masks)
    assert len(lookup) == len(masks)
    assert lookup.areas().tolist() == masks.areas()
    for (crop, row, column), own, offset in zip(lookup, masks.crops, masks.offsets, strict=True):
        assert torch.equal(crop, own)
        assert (row, column) == offset


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_dense_masks(count: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(count)
    dense = (torch.rand(count, *SIZE, generator=rng) < 0.4).to(dtype)
    for masks in (dense, dense.mT.contiguous().mT):
        lookup = MaskLookup.of(masks)
        assert torch.equal(lookup.any_of([(0, 0)], 1, SIZE), dense.bool())
        y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
        assert torch.equal(lookup.at(y, x, torch.arange(count)), dense.bool())
    if dtype == torch.bool and count:
        assert MaskLookup.of(dense).pixels.data_ptr() == dense.data_ptr()  # not a copy


def test_lookup_of_a_lookup_is_itself() -> None:
    lookup = MaskLookup.of(CropMasks([torch.ones(2, 3, dtype=torch.bool)], [(1, 1)], SIZE))
    assert MaskLookup.of(lookup) is lookup


def test_lookup_is_on_the_requested_device() -> None:
    masks: Sequence[Tensor | CropMasks] = (
        torch.zeros(2, *SIZE, dtype=torch.bool),
        CropMasks([torch.ones(2, 3, dtype=torch.bool)], [(1, 1)], SIZE),
        CropMasks([], [], SIZE),
    )
    for one in masks:
        lookup = MaskLookup.of(one, torch.device("meta"))
        assert lookup.pixels.is_meta
        assert lookup.crops.is_meta
