"""Masks inside boxes against maps of the whole image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import inference as slow
from torch import Tensor

from embedmask.inference import contours
from embedmask.inference.mask_decoding import cell_ranges, decode_masks
from embedmask.inference.proposals import Proposals

Size = tuple[int, int]
NEAR = 2e-4
"""Distance from the threshold within which pixels may differ between float32 and float64."""


def proposals_of(boxes: list[list[float]] | Tensor, embed: Tensor, margin: Tensor) -> Proposals:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).view(-1, 4)
    count = len(boxes)
    return Proposals(boxes, torch.ones(count), torch.zeros(count, dtype=torch.int64), embed, margin)


def assert_equal_to_whole_maps(
    pixel_embed: Tensor,
    proposals: Proposals,
    interpolation: str,
    stride: int,
    sizes: tuple[Size, Size],
    *,
    frame: str = "authors",
) -> Tensor:
    """Compare masks for `sizes` (network's, original) at the version's threshold, and return them."""
    threshold = 0.53 if interpolation == "log_prob" else 0.5
    options = {
        "stride": stride,
        "image_size": sizes[0],
        "original_size": sizes[1],
        "interpolation": interpolation,
        "frame": frame,
    }
    actual = decode_masks(pixel_embed, proposals, threshold=threshold, **options).to_dense()
    values = slow.mask_values(pixel_embed, proposals, **options)
    limit = math.log(threshold) if interpolation == "log_prob" else threshold
    assert actual.shape == values.shape == (len(proposals), *sizes[1])
    clear = (values - limit).abs() > NEAR
    assert torch.equal(actual[clear], values[clear] > limit)
    assert clear.sum() >= 0.95 * clear.numel()
    return actual


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.sampled_from(["prob", "log_prob", "aligned"]), st.sampled_from(["authors", "exact"])),
    st.sampled_from([4, 8]),
    st.tuples(*[st.integers(1, 60)] * 2, *[st.integers(1, 110)] * 2),
    st.sampled_from([1, 700, 1 << 19]),
)
def test_any_sizes(
    seed: int, way: tuple[str, str], stride: int, sides: tuple[int, int, int, int], block_values: int
) -> None:
    """Check instances of all sizes, split into blocks of columns or grouped with others."""
    image_size, original_size = sides[:2], sides[2:]
    rng = torch.Generator().manual_seed(seed)
    grid = [math.ceil(side / 32) * 32 // stride for side in image_size]
    pixels = torch.randn(3, *grid, generator=rng)
    corner = torch.tensor([image_size[1], image_size[0]])
    low = torch.rand(3, 2, generator=rng) * corner
    boxes = torch.cat([low, low + torch.rand(3, 2, generator=rng) * (corner - low)], 1)
    boxes[0] = torch.tensor([0, 0, image_size[1], image_size[0]])
    margin = (torch.randn(3, 3 if seed % 2 else 1, generator=rng) - 1).exp()
    proposals = proposals_of(boxes, torch.randn(3, 3, generator=rng), margin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contours, "BLOCK_VALUES", block_values)
        sizes = (image_size, original_size)
        assert_equal_to_whole_maps(pixels, proposals, way[0], stride, sizes, frame=way[1])


@pytest.mark.parametrize("interpolation", ["prob", "log_prob"])
@pytest.mark.parametrize("original_size", [(45, 61), (90, 122), (23, 31), (45, 200)])
def test_boxes_at_borders_and_of_one_pixel(interpolation: str, original_size: Size) -> None:
    boxes = [
        [0, 0, 61, 45],
        [0, 0, 1, 1],
        [60, 44, 61, 45],
        [60, 0, 61, 1],
        [30, 20, 31, 21],
        [0, 22, 61, 23],
        [59.5, 10, 61, 40],
        [10, 44.9, 40, 45],
    ]
    same = torch.zeros(2, 8, 8)
    proposals = proposals_of(boxes, torch.zeros(8, 2), torch.ones(8, 1))
    actual = assert_equal_to_whole_maps(same, proposals, interpolation, 8, ((45, 61), original_size))
    # phi is 1 everywhere, so the mask fills the image if the box does
    assert actual[0].all()
    # a box of a tenth of a pixel may lie between two rows of a smaller image
    assert actual[:-1].flatten(1).any(1).all()


@pytest.mark.parametrize("interpolation", ["prob", "log_prob", "aligned"])
def test_no_detections(interpolation: str) -> None:
    none = proposals_of([], torch.zeros(0, 2), torch.zeros(0, 1))
    actual = assert_equal_to_whole_maps(torch.zeros(2, 4, 4), none, interpolation, 8, ((25, 20), (50, 40)))
    assert actual.shape == (0, 50, 40)


@pytest.mark.parametrize("original_size", [(1, 1), (7, 3)])
def test_image_of_one_pixel(original_size: Size) -> None:
    proposals = proposals_of([[0, 0, 1, 1]], torch.zeros(1, 2), torch.ones(1, 1))
    actual = assert_equal_to_whole_maps(torch.zeros(2, 4, 4), proposals, "prob", 8, ((1, 1), original_size))
    assert actual.all()


def test_aligned_masks_ignore_boxes() -> None:
    """Check the tight crop of a mask far from its box, and an empty mask."""
    pixels = torch.full((1, 16, 16), 9.0)
    pixels[0, 2:5, 10:14] = 0
    proposals = proposals_of([[0, 0, 8, 8], [0, 0, 8, 8]], torch.tensor([[0.0], [-9.0]]), torch.ones(2, 1))
    sizes = ((120, 128), (240, 256))
    actual = assert_equal_to_whole_maps(pixels, proposals, "aligned", 8, sizes)
    assert actual[0].any()
    assert not actual[0, :, :100].any()
    masks = decode_masks(
        pixels,
        proposals,
        stride=8,
        image_size=sizes[0],
        original_size=sizes[1],
        threshold=0.5,
        interpolation="aligned",
    )
    # three by four cells with the cells around them that resizing reaches, at twice the size
    x1, y1, x2, y2 = masks.boxes()[0].tolist()
    assert y2 - y1 <= (3 + 4) * 16
    assert x2 - x1 <= (4 + 4) * 16
    assert len(masks.runs[1]) == 0


def test_memory_of_a_thousand_instances() -> None:
    rng = torch.Generator().manual_seed(0)
    low = torch.rand(1000, 2, generator=rng) * 240
    proposals = proposals_of(
        torch.cat([low, low + 12], 1), torch.randn(1000, 4, generator=rng), torch.full((1000, 1), 0.2)
    )
    pixels = torch.randn(4, 32, 32, generator=rng)
    masks = decode_masks(
        pixels,
        proposals,
        stride=8,
        image_size=(256, 256),
        original_size=(1024, 1024),
        threshold=0.5,
        interpolation="prob",
    )
    assert len(masks) == 1000
    # a box of 12 px, two cells of 4 px around it and one that resizing reaches, at four times the size
    assert sum(crop.pixels.size for crop in masks.crops()) < 1000 * (4 * (12 + 6 * 4)) ** 2
    some = torch.arange(0, 1000, 250)
    assert_equal_to_whole_maps(pixels, proposals.select(some), "prob", 8, ((256, 256), (1024, 1024)))
    assert any(masks.areas())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_ranges_cell_by_cell(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    grid = (9, 12)
    low = (torch.rand(4, 2, generator=rng) * 11).mul(2).round() / 2
    boxes = torch.cat([low, low + torch.rand(4, 2, generator=rng) * 6], 1)
    for interpolation in ("prob", "log_prob"):
        for box, (y1, y2, x1, x2) in zip(
            boxes.tolist(), cell_ranges(boxes, grid, interpolation).tolist(), strict=True
        ):
            rows = [y for y in range(grid[0]) if slow.coupled(y, box[1], box[3], interpolation)]
            columns = [x for x in range(grid[1]) if slow.coupled(x, box[0], box[2], interpolation)]
            assert list(range(y1, y2)) == rows
            assert list(range(x1, x2)) == columns
