"""Position of masks of known shapes at every size and scale (`mask_frame: exact`)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_config
from torch import Tensor

from embedmask import Postprocessor, Predictions, runtime_masks
from embedmask.export.metadata import settings_from
from embedmask.inference.mask_decoding import decode_masks
from embedmask.inference.proposals import Proposals
from embedmask.structures import Instances

Size = tuple[int, int]
STRIDES = (8, 16, 32, 64, 128)
UNIT = 16.0
"""px of the network's frame per unit of the embedding."""
BENT = {"prob": 1.5, "log_prob": 4.0}
"""Deviation from linear interpolation between cells of 4 px. For log phi it moves the outline of a circle of radius r
inwards by up to 2 / r px of the network's frame for each axis; phi is less curved."""


def positions(size: Size) -> Tensor:
    """Return p with the position of each cell of 8 px, `[2, h, w]`, over the padded frame."""
    height, width = (math.ceil(side / 32) * 32 // 8 for side in size)
    y, x = torch.arange(height) * 8 + 4.0, torch.arange(width) * 8 + 4.0
    return torch.stack(torch.meshgrid(x, y, indexing="xy")) / UNIT


def one_proposal(
    sizes: list[Size], centers: list[tuple[float, float]], radii: list[float], slack: float
) -> Predictions:
    """Create predictions of one disc per image, from center x, y and radius in px; its box is `slack` px larger."""
    frame = (max(size[0] for size in sizes), max(size[1] for size in sizes))
    pixels = torch.stack([positions(frame)] * len(sizes))
    grids = [tuple(math.ceil(s / 32) * 32 // stride or 1 for s in frame) for stride in STRIDES]
    maps: dict[str, list[Tensor]] = {
        name: [torch.full((len(sizes), channels, *grid), value) for grid in grids]
        for name, channels, value in [
            ("class_logits", 1, -20.0),
            ("box_ltrb", 4, 1.0),
            ("centerness_logits", 1, 5.0),
            ("proposal_embed", 2, 0.0),
            ("proposal_margin", 1, 1.0),
        ]
    }
    for image, ((x, y), radius) in enumerate(zip(centers, radii, strict=True)):
        row, column = min(int(y / 8), grids[0][0] - 1), min(int(x / 8), grids[0][1] - 1)
        at_x, at_y, reach = column * 8 + 4, row * 8 + 4, radius + slack
        place = (image, slice(None), row, column)
        maps["class_logits"][0][place] = 5
        sides = [at_x - x + reach, at_y - y + reach, x + reach - at_x, y + reach - at_y]
        maps["box_ltrb"][0][place] = torch.tensor(sides).clamp(min=0)
        maps["proposal_embed"][0][place] = torch.tensor([x, y]) / UNIT
        maps["proposal_margin"][0][place] = math.log(2) * (UNIT / radius) ** 2
    return Predictions(**maps, pixel_embed=pixels, strides=STRIDES)  # type: ignore[arg-type]


def postprocess(
    predictions: Predictions, sizes: list[Size], originals: list[Size], interpolation: str, **fields: float
) -> list[Instances]:
    cfg = small_config(
        num_classes=1, embed_dim=2, mask_interpolation=interpolation, mask_frame="exact", **fields
    )
    return Postprocessor.from_config(cfg)(predictions, sizes, originals)


def distances(size: Size, original: Size, center: tuple[float, float]) -> Tensor:
    """Return the distance of each pixel's center to a point, in px of the network's frame, `[H, W]`."""
    y, x = (
        (torch.arange(o) + 0.5) * (s / o) - c
        for o, s, c in zip(original, size, (center[1], center[0]), strict=True)
    )
    return (y[:, None].square() + x.square()).sqrt()


def assert_disc(
    actual: Instances,
    sizes: tuple[Size, Size],
    center: tuple[float, float],
    radius: float,
    interpolation: str = "prob",
) -> None:
    """Check the mask of a disc; `sizes` are the network's and the original one."""
    size, original = sizes
    assert len(actual) == 1
    mask = actual.masks.to_dense()[0]
    off = distances(size, original, center) - radius
    pixel = max(s / o for s, o in zip(size, original, strict=True))
    clear = off.abs() > 0.5 * pixel + BENT[interpolation] / radius
    assert torch.equal(mask[clear], off[clear] < 0)
    y, x = (axis.double() + 0.5 for axis in mask.nonzero().T)
    middle = (x.mean() * size[1] / original[1] - center[0], y.mean() * size[0] / original[0] - center[1])
    assert math.hypot(*middle) < 0.1 + 0.25 * pixel


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(70, 150), st.integers(70, 150)),
    st.floats(0.4, 4.0),
    st.floats(0.4, 4.0),
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    st.sampled_from(["prob", "log_prob"]),
)
def test_discs(
    size: Size, down: float, across: float, place: tuple[float, float, float], interpolation: str
) -> None:
    radius = 10 + 10 * place[2]
    # away from the border, where the map of positions has no next cell
    x, y = (
        radius + 8 + share * (side - 2 * radius - 16) for share, side in zip(place, size[::-1], strict=False)
    )
    original = (round(size[0] * down), round(size[1] * across))
    predictions = one_proposal([size], [(x, y)], [radius], 0)
    actual = postprocess(predictions, [size], [original], interpolation, mask_threshold=0.5)
    assert_disc(actual[0], (size, original), (x, y), radius, interpolation)


@pytest.mark.parametrize("interpolation", ["prob", "log_prob"])
@pytest.mark.parametrize("box_offset", [0.0, 1.0])
def test_boxes_that_are_a_little_small_clip_nothing(interpolation: str, box_offset: float) -> None:
    size, original, center, radius = (133, 97), (401, 290), (47.3, 61.8), 17.4
    masks = []
    for slack in (3.0, 0.0, -2.0, -3.0):
        predictions = one_proposal([size], [center], [radius], slack)
        actual = postprocess(
            predictions, [size], [original], interpolation, box_offset=box_offset, mask_threshold=0.5
        )
        assert_disc(actual[0], (size, original), center, radius, interpolation)
        masks.append(actual[0].masks.to_dense())
    assert all(torch.equal(masks[0], mask) for mask in masks)


def test_images_of_a_batch_have_sizes_of_their_own() -> None:
    sizes, originals = [(133, 97), (90, 160), (64, 64)], [(133, 97), (271, 483), (50, 77)]
    centers, radii = [(47.3, 61.8), (120.0, 44.0), (30.5, 33.0)], [17.0, 12.0, 11.0]
    results = postprocess(one_proposal(sizes, centers, radii, 1.0), sizes, originals, "prob")
    for actual, *pair, center, radius in zip(results, sizes, originals, centers, radii, strict=True):
        assert_disc(actual, (pair[0], pair[1]), center, radius)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.sampled_from([0.0, 1.0]),
)
def test_full_image_mask_reaches_borders(size: Size, original: Size, box_offset: float) -> None:
    predictions = one_proposal([size], [(size[1] / 2, size[0] / 2)], [1000.0], 0)
    predictions.pixel_embed.zero_()
    predictions.proposal_embed[0].zero_()
    actual = postprocess(predictions, [size], [original], "prob", box_offset=box_offset)[0]
    if box_offset and 1 in size:
        assert len(actual) == 0  # boxes that end on their last pixel have no width here
    else:
        assert actual.masks.areas() == [original[0] * original[1]]


@pytest.mark.parametrize("edge", [41.0, 50.25, 62.6])
@pytest.mark.parametrize("original", [(96, 96), (187, 333), (45, 61)])
def test_straight_edge(edge: float, original: Size) -> None:
    """Check the half-plane left of `edge`: a circle with a distant center has a straight outline."""
    size, far = (96, 96), 50000.0
    predictions = one_proposal([size], [(48.0, 48.0)], [200.0], 0)
    place = (0, slice(None), 6, 6)
    predictions.proposal_embed[0][place] = torch.tensor([edge - far, 48.0]) / UNIT
    predictions.proposal_margin[0][place] = math.log(2) * (UNIT / far) ** 2
    mask = postprocess(predictions, [size], [original], "prob")[0].masks.to_dense()[0]
    ends = mask.sum(1).float()
    assert ((ends - edge * original[1] / size[1]).abs() <= 0.6).all()
    assert (mask.long().diff(dim=1) <= 0).all()


def test_single_pixel() -> None:
    """Check the smallest object: one pixel, in the cell at its position."""
    size, original = (64, 64), (64, 64)
    predictions = one_proposal([size], [(34.0, 26.0)], [0.5], 0)
    predictions.proposal_margin[0].fill_(math.log(2) * (UNIT / 1.5) ** 2)
    actual = postprocess(predictions, [size], [original], "prob")[0]
    inside = actual.masks.to_dense()[0].nonzero().double() + 0.5
    assert len(inside) >= 4
    assert inside.mean(0).tolist() == pytest.approx([26.0, 34.0], abs=0.1)


@pytest.mark.parametrize(
    ("fields", "reach"),
    [
        ({"mask_margin": 0.0}, 0.0),
        ({"mask_margin": 0.01}, 1.5 * 4),
        ({"mask_margin": 0.1}, 8.0),
        ({"mask_margin": 0.5}, 40.0),
        ({"mask_margin": 2.0}, 80.0),
        # by default not beyond the pixels of the mask loss, and at most a tenth
        ({"box_expansion": 1.0}, 0.0),
        ({"box_expansion": 1.1}, 1.5 * 4),
        ({"box_expansion": 1.2}, 8.0),
        ({"box_expansion": 2.0}, 8.0),
        ({"box_expansion": None}, 8.0),
        ({"box_expansion": 1.0, "mask_margin": 0.1}, 8.0),
    ],
)
def test_mask_margin_around_box(fields: dict[str, float | None], reach: float) -> None:
    """Check a bar across the whole image whose box covers the middle 80 px only, in PyTorch and in the runtime."""
    pixels = torch.full((1, 30, 30), 9.0)
    pixels[0, 10:20] = 0
    proposals = Proposals(
        torch.tensor([[80.0, 80.0, 160.0, 160.0]]),
        torch.ones(1),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 1),
        torch.ones(1, 1),
    )
    config = small_config(**fields)
    margin, min_margin = config.mask_reach
    sizes: dict[str, Size] = {"image_size": (240, 240), "original_size": (240, 240)}
    masks = decode_masks(
        pixels, proposals, stride=8, threshold=0.5, interpolation="prob", frame="exact", margin=margin,
        min_margin=min_margin, **sizes,
    )  # fmt: skip
    columns = masks.to_dense()[0].any(0).nonzero()[:, 0]
    # cells are 4 px, and a cell that the margin touches is included
    assert columns[0] == pytest.approx(80 - reach, abs=4)
    assert columns[-1] + 1 == pytest.approx(160 + reach, abs=4)
    rows = [proposals.boxes.numpy(), proposals.embed.numpy(), proposals.margin.numpy()]
    settings = settings_from(config, ["a", "b", "c"], dense_masks=False)
    (runs,) = runtime_masks.decode_masks(pixels.numpy(), *rows, settings, **sizes)
    assert (runtime_masks.to_dense(runs, (240, 240)) == masks.to_dense()[0].numpy()).all()
