"""Masks as run lengths and as pixels of crops, against dense masks."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow
from torch import Tensor

from embedmask.errors import BadInput
from embedmask.masks import BitMasks, MaskCrop, RunMasks

SIZE = (19, 23)
BORDER = 30
"""Margin around the image for crops that reach outside, px."""


@st.composite
def dense_masks(draw: st.DrawFn) -> Tensor:
    """Sample up to five masks of a small image, bool `[G, H, W]`; some are empty."""
    shape = (draw(st.integers(0, 5)), draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return (torch.rand(shape, generator=rng) < share) & (torch.rand(shape[0], 1, 1, generator=rng) < 0.8)


def boxes_of(masks: Tensor) -> list[list[int]]:
    """Return the tight box of each mask, from its pixels."""
    boxes = []
    for mask in masks:
        y, x = mask.nonzero().unbind(1)
        box = (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(y) else (0, 0, 0, 0)
        boxes.append([int(side) for side in box])
    return boxes


# --- run lengths ------------------------------------------------------------------------------------


@given(dense_masks())
def test_run_masks_equal_dense(dense: Tensor) -> None:
    masks = RunMasks.from_dense(dense)
    assert len(masks) == len(dense)
    assert masks.to_dense().dtype == torch.bool
    assert torch.equal(masks.to_dense(), dense)
    assert masks.areas().tolist() == dense.flatten(1).sum(1).tolist()
    assert masks.boxes().tolist() == boxes_of(dense)
    order = list(reversed(range(len(dense))))
    assert torch.equal(masks.select(order).to_dense(), dense.flip(0))
    assert masks.select([]).to_dense().shape == (0, *dense.shape[1:])
    again = pickle.loads(pickle.dumps(masks))
    assert torch.equal(again.to_dense(), dense)


@given(dense_masks())
def test_crops_of_run_masks(dense: Tensor) -> None:
    masks = RunMasks.from_dense(dense)
    crops = list(masks.crops())
    assert torch.equal(RunMasks.from_crops(crops, masks.frame).to_dense(), dense)
    for index, (crop, (x1, y1, x2, y2)) in enumerate(zip(crops, boxes_of(dense), strict=True)):
        assert (crop.y, crop.x, crop.pixels.shape) == (y1, x1, (y2 - y1, x2 - x1))
        np.testing.assert_array_equal(crop.pixels, dense[index, y1:y2, x1:x2].numpy())
        np.testing.assert_array_equal(masks.crop(index).pixels, crop.pixels)
        tight = MaskCrop(dense[index].numpy(), 0, 0).tight()
        np.testing.assert_array_equal(tight.pixels, crop.pixels)
        assert (tight.y, tight.x) == (y1, x1)


@given(st.data(), dense_masks())
def test_window(data: st.DataObject, dense: Tensor) -> None:
    masks = RunMasks.from_dense(dense)
    height, width = masks.frame
    y1, x1 = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    y2, x2 = data.draw(st.integers(y1, height)), data.draw(st.integers(x1, width))
    for index, mask in enumerate(dense):
        np.testing.assert_array_equal(masks.window(index, (x1, y1, x2, y2)), mask[y1:y2, x1:x2].numpy())


@settings(max_examples=200, deadline=None)
@given(dense_masks())
def test_overlap_and_union(dense: Tensor) -> None:
    masks = RunMasks.from_dense(dense)
    one, other = np.divmod(np.arange(len(dense) ** 2), max(len(dense), 1))
    common = (dense[one] & dense[other]).flatten(1).sum(1)
    assert masks.overlaps(one, masks, other).tolist() == common.tolist()
    for count in range(1, len(dense) + 1):
        runs = masks.union(range(count))
        assert torch.equal(RunMasks([runs], masks.frame).to_dense()[0], dense[:count].any(0))
        np.testing.assert_array_equal(runs, RunMasks.from_dense(dense[:count].any(0, keepdim=True)).runs[0])


@given(dense_masks(), st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_place(dense: Tensor, top: int, left: int, more: int) -> None:
    _, height, width = dense.shape
    frame = (top + height + more, left + width + more)
    expected = torch.zeros(len(dense), *frame, dtype=torch.bool)
    expected[:, top : top + height, left : left + width] = dense
    placed = RunMasks.from_dense(dense).place((top, left), frame)
    assert placed.frame == frame
    assert all(runs.dtype == np.int32 for runs in placed.runs)
    assert torch.equal(placed.to_dense(), expected)


@given(dense_masks())
@settings(deadline=None)
def test_coco_rle(dense: Tensor) -> None:
    masks = RunMasks.from_dense(dense)
    rles = masks.to_coco_rle()
    for rle, mask in zip(rles, dense.numpy(), strict=True):
        expected = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": list(masks.frame), "counts": expected["counts"].decode()}
    assert torch.equal(RunMasks.from_rle(rles, masks.frame).to_dense(), dense)


def test_rle_of_another_size() -> None:
    rles = RunMasks.from_dense(torch.ones(1, 4, 5, dtype=torch.bool)).to_coco_rle()
    with pytest.raises(BadInput, match="do not add up"):
        RunMasks.from_rle(rles, (4, 6))


def test_run_masks_of_a_large_frame() -> None:
    """Check masks of 10 gigapixels, whose pixel numbers need 64 bits."""
    frame = (100_000, 100_000)
    crop = MaskCrop(np.ones((3, 2), bool), 7, 8)
    masks = RunMasks.from_crops([crop], (10, 10)).place((99_990, 99_990), frame)
    assert masks.runs[0].dtype == np.int64
    assert masks.boxes().tolist() == [[99_998, 99_997, 100_000, 100_000]]
    assert mask_api.area(masks.to_coco_rle()).tolist() == [6]
    np.testing.assert_array_equal(masks.crop(0).pixels, crop.pixels)


# --- pixels of crops ----------------------------------------------------------------------------------


@st.composite
def mask_crops(draw: st.DrawFn) -> list[MaskCrop]:
    """Sample crops of any place and size, also empty, outside the image, or not contiguous."""
    crops = []
    for _ in range(draw(st.integers(0, 4))):
        shape = (draw(st.integers(0, 20)), draw(st.integers(0, 20)))
        rng = np.random.default_rng(draw(st.integers(0, 999)))
        pixels = rng.random(shape) < draw(st.sampled_from([0.1, 0.5, 1.0]))
        views = [pixels, np.asfortranarray(pixels), pixels[::-1], pixels.repeat(2, 1)[:, ::2]]
        place = draw(st.integers(-9, 28)), draw(st.integers(-9, 28))
        crops.append(MaskCrop(draw(st.sampled_from(views)), *place))
    return crops


def canvas(crops: list[MaskCrop]) -> Tensor:
    """Return dense masks with a margin of `BORDER` px, so that they contain every crop."""
    whole = torch.zeros(len(crops), SIZE[0] + 2 * BORDER, SIZE[1] + 2 * BORDER, dtype=torch.bool)
    for mask, (pixels, y, x) in zip(whole, crops, strict=True):
        height, width = pixels.shape
        mask[y + BORDER : y + BORDER + height, x + BORDER : x + BORDER + width] = torch.from_numpy(
            pixels.copy()
        )
    return whole


def indices(count: int) -> st.SearchStrategy[list[int]]:
    """Sample indices of `count` masks, in any order, with repetitions."""
    return st.lists(st.integers(0, count - 1), max_size=6) if count else st.just([])


@settings(max_examples=150, deadline=None)
@given(st.data(), mask_crops(), st.sampled_from([1, 2, 3, 4, 8]))
def test_any_of(data: st.DataObject, crops: list[MaskCrop], stride: int) -> None:
    grid = (data.draw(st.integers(1, 26)), data.draw(st.integers(1, 26)))
    inside = st.integers(0, stride - 1)
    places = data.draw(st.lists(st.tuples(inside, inside), min_size=1, max_size=4))
    index = data.draw(st.none() | indices(len(crops)))
    chosen = None if index is None else torch.tensor(index, dtype=torch.int64)
    actual = BitMasks.from_crops(crops, SIZE).any_of(places, stride, grid, chosen)
    assert actual.dtype == torch.bool
    whole = canvas(crops)[:, BORDER:, BORDER:]
    expected = slow.any_of(whole if chosen is None else whole[chosen], places, stride, grid)
    assert torch.equal(actual, expected)


@settings(max_examples=150, deadline=None)
@given(st.data(), mask_crops(), st.integers(0, 30))
def test_at(data: st.DataObject, crops: list[MaskCrop], count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    y, x = torch.randint(-BORDER, SIZE[0] + BORDER, (2, count), generator=rng)
    index = torch.tensor(data.draw(indices(len(crops))), dtype=torch.int64)
    actual = BitMasks.from_crops(crops, SIZE).at(y, x, index)
    assert actual.dtype == torch.bool
    assert torch.equal(actual, canvas(crops)[index][:, y + BORDER, x + BORDER])


@settings(deadline=None)
@given(mask_crops())
def test_crops_of_bit_masks(crops: list[MaskCrop]) -> None:
    masks = BitMasks.from_crops(crops, SIZE)
    whole = canvas(crops)
    assert len(masks) == len(crops)
    assert masks.areas().tolist() == whole.flatten(1).sum(1).tolist()
    assert torch.equal(masks.to_dense(), whole[:, BORDER:-BORDER, BORDER:-BORDER])
    for (pixels, *corner), own in zip(masks.crops(), crops, strict=True):
        np.testing.assert_array_equal(pixels.numpy(), own.pixels)
        assert corner == [own.y, own.x]


@given(dense_masks())
def test_bit_masks_to_runs(dense: Tensor) -> None:
    runs = RunMasks.from_dense(dense)
    crops = [MaskCrop(mask.numpy(), 0, 0) for mask in dense]
    for masks in (BitMasks.of(dense), BitMasks.from_crops(crops, runs.frame)):
        assert masks.frame == runs.frame
        assert torch.equal(masks.to_runs().to_dense(), dense)


@settings(deadline=None)
@given(mask_crops(), st.booleans())
def test_bit_masks_are_pickled_as_one_tensor(crops: list[MaskCrop], looked_up: bool) -> None:
    masks = BitMasks.from_crops(crops, SIZE)
    if looked_up:
        masks.to_dense()
    types = []

    class CountingPickler(pickle.Pickler):
        def persistent_id(self, value: object) -> None:
            types.append(type(value))

    buffer = io.BytesIO()
    CountingPickler(buffer).dump(masks)
    assert types.count(torch.Tensor) == 1
    buffer.seek(0)
    restored = pickle.load(buffer)
    assert torch.equal(restored.pixels, masks.pixels)
    assert torch.equal(restored.bounds, masks.bounds)
    assert restored.frame == masks.frame


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_bit_masks_of_dense_masks(count: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(count)
    dense = (torch.rand(count, *SIZE, generator=rng) < 0.4).to(dtype)
    for one in (dense, dense.mT.contiguous().mT):
        masks = BitMasks.of(one)
        assert torch.equal(masks.to_dense(), dense.bool())
        y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
        assert torch.equal(masks.at(y, x, torch.arange(count)), dense.bool())
    if dtype == torch.bool and count:
        assert BitMasks.of(dense).pixels.data_ptr() == dense.data_ptr()  # not a copy
    assert BitMasks.of(masks) is masks


@pytest.mark.parametrize("count", [0, 2])
def test_device_of_bit_masks(count: int) -> None:
    crops = [MaskCrop(np.ones((2, 3), bool), 1, 1)] * count
    moved = BitMasks.from_crops(crops, SIZE).to(torch.device("meta"))
    for masks in (moved, BitMasks.of(torch.ones(count, *SIZE, dtype=torch.bool, device="meta"))):
        assert masks.pixels.is_meta
        assert masks.layout.is_meta
        assert masks.layout.shape == (count, 5)
    assert copy.copy(BitMasks.from_crops(crops, SIZE)).bounds.tolist() == [[1, 1, 4, 3]] * count


def test_first_mask_keeps_the_pixels_of_a_label_image() -> None:
    square = np.ones((2, 2), dtype=bool)
    crops = [MaskCrop(square, 0, 0), MaskCrop(square, 1, 1), MaskCrop(square[:0], 0, 0)]
    image = RunMasks.from_crops(crops, (3, 4)).to_label_image(np.uint16)
    assert image.dtype == np.uint16
    assert image.tolist() == [[1, 1, 0, 0], [1, 1, 2, 0], [0, 2, 2, 0]]
