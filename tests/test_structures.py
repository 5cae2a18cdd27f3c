"""Shared data structures: targets, losses, and masks as crops."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import no_objects, random_predictions, rectangles

from embedmask.errors import BadInput
from embedmask.structures import CropMasks, Instances, Losses, RunCrops, Target


@st.composite
def crop_masks(draw: st.DrawFn) -> CropMasks:
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    crops, offsets = [], []
    for _ in range(draw(st.integers(0, 4))):
        y, x = draw(st.integers(0, height)), draw(st.integers(0, width))
        h, w = draw(st.integers(0, height - y)), draw(st.integers(0, width - x))
        rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        crops.append(torch.rand(h, w, generator=rng) > 0.5)
        offsets.append((y, x))
    return CropMasks(crops, offsets, (height, width))


@given(crop_masks())
def test_dense_masks_contain_the_crops(masks: CropMasks) -> None:
    dense = masks.to_dense()
    assert dense.shape == (len(masks), *masks.image_size)
    assert dense.dtype == torch.bool
    assert masks.areas() == dense.flatten(1).sum(1).tolist()
    for index, (crop, (y, x)) in enumerate(zip(masks.crops, masks.offsets, strict=True)):
        assert torch.equal(dense[index, y : y + crop.shape[0], x : x + crop.shape[1]], crop)
        assert torch.equal(masks.dense(index), dense[index])
    order = list(reversed(range(len(masks))))
    assert torch.equal(masks.select(order).to_dense(), dense.flip(0))
    assert len(masks.select([])) == 0


@given(crop_masks())
def test_run_lengths_equal_the_crops(masks: CropMasks) -> None:
    runs = CropMasks(RunCrops.of(masks.crops), masks.offsets, masks.image_size)
    order = list(reversed(range(len(masks))))
    for encoded, crops in ((runs, masks), (runs.select(order), masks.select(order))):
        assert [crop.tolist() for crop in encoded.crops] == [crop.tolist() for crop in crops.crops]
        assert (encoded.areas(), encoded.offsets, encoded.shape) == (
            crops.areas(),
            crops.offsets,
            crops.shape,
        )
        assert torch.equal(encoded.pixels(), crops.pixels())
        assert torch.equal(encoded.to_dense(), crops.to_dense())
    again = pickle.loads(pickle.dumps(runs))
    assert isinstance(again.crops, RunCrops)
    assert torch.equal(again.to_dense(), masks.to_dense())
    assert RunCrops.of(runs.crops) is runs.crops
    assert [crop.tolist() for crop in runs.crops[:2]] == [crop.tolist() for crop in masks.crops[:2]]


@given(crop_masks())
def test_masks_are_pickled_as_one_tensor(masks: CropMasks) -> None:
    types = []

    class CountingPickler(pickle.Pickler):
        def persistent_id(self, value: object) -> None:
            types.append(type(value))

    buffer = io.BytesIO()
    CountingPickler(buffer).dump(masks)
    assert types.count(torch.Tensor) == 1
    buffer.seek(0)
    restored = pickle.load(buffer)
    assert [crop.tolist() for crop in restored.crops] == [crop.tolist() for crop in masks.crops]
    assert (restored.offsets, restored.shape) == (masks.offsets, masks.shape)


def test_copied_masks_stay_on_their_device() -> None:
    masks = CropMasks([torch.ones(2, 3, dtype=torch.bool, device="meta")] * 2, [(0, 0), (1, 1)], (4, 5))
    assert all(crop.is_meta and crop.shape == (2, 3) for crop in copy.copy(masks).crops)


def test_length_of_instances() -> None:
    empty = Instances(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), CropMasks([], [], (3, 4))
    )
    assert len(empty) == 0
    assert empty.masks.to_dense().shape == (0, 3, 4)


def test_losses_omit_missing_terms() -> None:
    one = torch.ones((), requires_grad=True)
    losses = Losses(one, one * 2, one * 3, one * 4, smooth=None, semantic=one * 5, num_positives=7)
    assert list(losses.as_dict()) == ["classification", "box", "centerness", "mask", "semantic"]
    assert losses.total.item() == 15
    losses.total.backward()
    assert one.grad is not None
    assert one.grad.item() == 15


def test_padded_size() -> None:
    assert random_predictions((33, 65)).padded_size == (40, 72)


def changed(**fields: torch.Tensor) -> Target:
    good = rectangles([[1, 2, 10, 12], [4, 4, 20, 30]], (32, 32))
    good.image_id = 41
    return Target(**{**vars(good), **fields})


BAD = {
    "label too high": ({"labels": torch.tensor([0, 3])}, r"labels 0\.\.3, but the model has classes 0\.\.2"),
    "label below 0": ({"labels": torch.tensor([-1, 0])}, r"labels -1\.\.0"),
    "no width": ({"boxes": torch.tensor([[1.0, 1, 5, 5], [7, 1, 7, 5]])}, "box 1 .* has no area"),
    "turned around": ({"boxes": torch.tensor([[9.0, 1, 5, 5], [1, 1, 7, 5]])}, "box 0 .* has no area"),
    "not a number": ({"boxes": torch.tensor([[1.0, 1, 5, 5], [1, 1, torch.nan, 5]])}, "box 1"),
    "infinite": ({"boxes": torch.tensor([[1.0, 1, torch.inf, 5], [1, 1, 7, 5]])}, "box 0"),
    "one mask": ({"masks": torch.ones(1, 32, 32, dtype=torch.bool)}, "2 boxes but 1 masks"),
    "masks without frame": ({"masks": torch.ones(2, 32, dtype=torch.bool)}, r"masks \[G, H, W\]"),
    "three sides": ({"boxes": torch.ones(2, 3)}, r"boxes \[G, 4\]"),
    "one label": ({"labels": torch.tensor([0])}, r"labels \[G\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_validate_raises_on_bad_targets(case: str) -> None:
    fields, message = BAD[case]
    with pytest.raises(BadInput, match=message) as error:
        changed(**fields).validate(3)
    assert "image 41" in str(error.value)
    assert "\n" not in str(error.value)


def test_validate_accepts_good_targets() -> None:
    changed().validate(3)
    no_objects((5, 6)).validate(1)
    assert len(changed()) == 2
