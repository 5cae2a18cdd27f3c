"""Invariants of every augmentation: image, masks and boxes agree, and only the generator is random."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedmask.config import DataConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.geometry import GeometricTransform, rotate_crop
from embedmask.data.loader import train_loader
from embedmask.data.packed import Annotations
from embedmask.data.segmentation import parse_segmentation
from embedmask.data.transforms import TrainTransform
from embedmask.errors import BadInput
from embedmask.masks import MaskCrop

from .conftest import MakeFolder, annotation, run_lengths
from .images import Pair, ellipse, no_objects, outline, rectangles, scene, seeded, slow_boxes

PLAIN: dict[str, Any] = {"short_sides": (), "flip_horizontal": 0.0}
SHAPES: dict[str, dict[str, Any]] = {
    "short side": {"short_sides": (40, 60, 90), "long_side": 130},
    "flips": {"flip_horizontal": 0.5, "flip_vertical": 0.5},
    "right angles": {"rotate90": True},
    "any angle": {"rotate": 180.0},
    "scale": {"scale_range": (0.3, 1.5)},
    "crop": {"crop_size": 40},
    "crop of an object": {"crop_size": 40, "crop_objects": 1.0},
    "large-scale jitter": {
        "short_sides": (64,), "long_side": 64, "scale_range": (0.3, 2.0), "scale_draw": "linear",
        "crop_size": 64, "crop_pad": True,
    },
    "copy-paste": {"copy_paste": 1.0},
    "all": {
        "scale_range": (0.5, 1.5), "crop_size": 48, "crop_pad": True, "rotate": 40.0, "rotate90": True,
        "flip_horizontal": 0.5, "flip_vertical": 0.5, "copy_paste": 1.0,
    },
}  # fmt: skip
LIGHTS: dict[str, dict[str, Any]] = {
    "color": {"color_jitter": 0.5},
    "negative": {"invert": 0.5},
    "gamma": {"gamma": 0.5},
    "blur": {"blur": 2.0},
    "noise": {"noise": 0.1},
}
FIELDS = SHAPES | LIGHTS


def transform(**fields: Any) -> TrainTransform:
    return TrainTransform(DataConfig(**{**PLAIN, **fields}))


def edge(masks: Tensor) -> Tensor:
    """Return the pixels within one pixel of the outline of a mask, from bool `[G, h, w]`."""
    solid = masks[:, None].float()
    return (F.max_pool2d(solid, 3, 1, 1) != -F.max_pool2d(-solid, 3, 1, 1)).any(0)[0]


def ellipses(rng: np.random.Generator, polygons: bool) -> tuple[Tensor, Annotations]:
    """Render up to three ellipses that cover less than half of an image."""
    size = (int(rng.integers(50, 80)), int(rng.integers(50, 80)))
    masks, objects = [np.zeros(size, bool)], []
    for _ in range(int(rng.integers(0, 4))):
        middle = (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
        radii, tilt = (rng.uniform(6, 14), rng.uniform(6, 14)), rng.uniform(0, np.pi)
        masks.append(ellipse(size, middle, radii, tilt))
        stored = [outline(middle, radii, tilt)] if polygons else run_lengths(masks[-1])
        if masks[-1].any():
            objects.append(parse_segmentation(stored, size))
    white = np.logical_or.reduce(masks)[None].repeat(3, 0) * np.uint8(255)
    return torch.from_numpy(white), Annotations(np.zeros(len(objects), np.int64), objects, size, 3)


@pytest.mark.parametrize("name", SHAPES)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32), polygons=st.booleans())
def test_white_pixels_match_the_masks(name: str, seed: int, polygons: bool) -> None:
    rng = np.random.default_rng(seed)
    items = Pair(ellipses(rng, polygons), ellipses(rng, polygons))
    image, target = transform(**SHAPES[name])(*items.items[0], seeded(seed), items)
    wrong = ((image[0] > 127) != target.dense_masks().any(0)) & ~edge(target.dense_masks())
    assert int(wrong.sum()) <= 6  # a sliver at the border may be too thin for any mask
    assert target.boxes.tolist() == slow_boxes(target.dense_masks())
    assert len(target.boxes) == len(target.labels) == len(target.dense_masks())
    assert target.dense_masks().shape[1:] == image.shape[1:]
    assert image.dtype == torch.uint8


@pytest.mark.parametrize("name", ["right angles", "any angle", "scale", "large-scale jitter"])
def test_masks_and_image_are_aligned_to_subpixels(name: str) -> None:
    """Compare centers of mass, because edges would hide a shift within a pixel."""
    image, annotations = scene(ellipse((72, 64), (30.3, 36.8), (14, 9), 0.4)[None])
    shifts = []
    for seed in range(40):
        result, target = transform(**{**SHAPES[name], "crop_size": None, "crop_pad": False})(
            image, annotations, seeded(seed)
        )
        mask = target.dense_masks().float()
        near = F.max_pool2d(mask, 7, 1, 3)  # further away is the fill color
        shifts.append(center((result * near)[0]) - center(mask[0]))
    assert torch.stack(shifts).mean(0).abs().max() < 0.05
    assert torch.stack(shifts).abs().max() < 0.3


def center(weights: Tensor) -> Tensor:
    y, x = (torch.arange(length) + 0.5 for length in weights.shape)
    return torch.stack(((weights.sum(0) * x).sum(), (weights.sum(1) * y).sum())) / weights.sum()


# --- randomness ----------------------------------------------------------------


def colored(seed: int, size: tuple[int, int] = (60, 80)) -> tuple[Tensor, Annotations]:
    _, annotations = scene(rectangles((5, 5, 40, 30), (50, 20, 79, 55), size=size))
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=seeded(seed)), annotations


@pytest.mark.parametrize("name", FIELDS)
def test_items_depend_only_on_the_generator(name: str) -> None:
    items = Pair(colored(1), colored(2), colored(3))
    made = transform(**FIELDS[name])
    state = torch.get_rng_state()
    first = made(*items.items[0], seeded(3), items)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    again = made(*items.items[0], seeded(3), items)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1].dense_masks(), again[1].dense_masks())
    assert torch.equal(first[1].boxes, again[1].boxes)
    others = [made(*items.items[0], seeded(seed), items)[0] for seed in range(10, 20)]
    assert any(o.shape != first[0].shape or not torch.equal(o, first[0]) for o in others)


def test_workers_and_resuming_do_not_change_items(make_folder: MakeFolder) -> None:
    everything = {name: value for fields in FIELDS.values() for name, value in fields.items()}
    objects = [
        annotation(10 * i + k, i, segmentation=[[4 + 9 * k, 6, 12 + 9 * k, 6, 12 + 9 * k, 30]])
        for i in range(1, 7)
        for k in range(i % 3)
    ]
    rng = np.random.default_rng(0)
    pixels = {i: rng.integers(0, 255, (40, 44, 3), dtype=np.uint8) for i in range(1, 7)}
    folder = make_folder(objects, dict.fromkeys(pixels, (40, 44)), pixels)
    dataset = CocoInstances.open(folder, "train", transform(**everything))

    def epochs(workers: int, chosen: list[int]) -> list[Any]:
        loader: Any = train_loader(dataset, batch_size=2, workers=workers, seed=5)
        found = []
        for epoch in chosen:
            loader.batch_sampler.sampler.set_epoch(epoch)
            found.append(
                [(i.tolist(), t.dense_masks().tolist()) for b in loader for i, t in zip(*b, strict=True)]
            )
        return found

    alone = epochs(0, [0, 1])
    assert epochs(2, [0, 1]) == alone
    assert epochs(0, [1]) == alone[1:]
    assert alone[0] != alone[1]


# --- large-scale jitter --------------------------------------------------------


def test_large_scale_jitter() -> None:
    """Check large-scale jitter: fit the square, scale uniformly, crop or pad right and below."""
    made = transform(
        short_sides=(64,),
        long_side=64,
        scale_range=(0.1, 2.0),
        scale_draw="linear",
        crop_size=64,
        crop_pad=True,
    )
    generator = seeded()
    samples = [made.sample_geometry(no_objects((480, 640)), generator) for _ in range(500)]
    widths = np.array([geometry.resized[1] for geometry in samples])
    assert widths.min() < 10
    assert widths.max() > 120
    assert abs(widths.mean() - 1.05 * 64) < 3  # log-uniform would give 41
    assert all(abs(geometry.resized[0] - 0.75 * geometry.resized[1]) <= 1 for geometry in samples)
    for geometry in samples:
        left, top, right, bottom = geometry.window
        assert (right - left, bottom - top) == (64, 64)
        assert 0 <= left <= max(geometry.resized[1] - 64, 0)
        assert 0 <= top <= max(geometry.resized[0] - 64, 0)
    image, _ = made(*colored(0), generator)
    assert image.shape == (3, 64, 64)


def test_padding_has_the_mean_color_and_no_objects() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[0, :10], image[2] = 200, 77
    _, annotations = scene(rectangles((10, 5, 30, 20), size=(20, 30)))
    geometry = GeometricTransform((20, 30), (20, 30), (0, 0, 48, 48))
    result, target = geometry.image(image), geometry.target(annotations, 1)
    assert torch.equal(result[:, :20, :30], image)
    around = GeometricTransform((20, 30), (20, 30), (-8, -3, 48, 48))
    assert torch.equal(around.image(image)[:, 3:23, 8:38], image)
    assert around.target(annotations, 1).boxes.tolist() == [[18, 8, 38, 23]]
    for part in (result[:, 20:], result[:, :, 30:]):
        assert part.flatten(1).unique(dim=1).flatten().tolist() == [100, 0, 77]
    assert target.boxes.tolist() == [[10, 5, 30, 20]]
    assert target.dense_masks().shape == (1, 48, 48)


def test_without_padding_small_images_stay_small() -> None:
    samples = [transform(crop_size=64).sample_geometry(no_objects((20, 90)), seeded(s)) for s in range(5)]
    assert {geometry.window_size for geometry in samples} == {(20, 64)}


# --- rotation ------------------------------------------------------------------


def test_rotation_matches_right_angles() -> None:
    image, annotations = scene(rectangles((5, 10, 30, 25), (33, 30, 36, 39), size=(40, 40)))
    for turns in range(4):
        angled = GeometricTransform((40, 40), (40, 40), (0, 0, 40, 40), angle=90.0 * turns)
        turned = GeometricTransform((40, 40), (40, 40), (0, 0, 40, 40), turns=turns)
        assert torch.equal(angled.image(image), turned.image(image))
        one, other = angled.target(annotations, 1), turned.target(annotations, 1)
        assert torch.equal(one.dense_masks(), other.dense_masks())
        assert torch.equal(one.boxes, other.boxes)


def test_rotated_crop_shows_its_surroundings() -> None:
    """Check that corners show the image, and its mean color outside."""
    image = torch.full((3, 100, 100), 180, dtype=torch.uint8)
    assert (GeometricTransform((100, 100), (100, 100), (30, 30, 70, 70), angle=45).image(image) == 180).all()
    image[:, :, :50] = 60
    corner = GeometricTransform((100, 100), (100, 100), (60, 0, 100, 40), angle=45).image(image)
    assert corner.shape == (3, 40, 40)
    assert corner[:, 0, 0].min() > 130  # above the image: not black


@given(
    angle=st.floats(-180, 180), row=st.integers(-20, 30), column=st.integers(-20, 30),
    height=st.integers(1, 12), width=st.integers(1, 12),
)  # fmt: skip
@settings(deadline=None)
def test_rotated_patches_are_rotated_pixels(
    angle: float, row: int, column: int, height: int, width: int
) -> None:
    """Check a solid rectangle: a pixel belongs to it if its center, rotated back, lies inside."""
    size = (24, 30)
    found = np.zeros(size, bool)
    patch = rotate_crop(MaskCrop(np.ones((height, width), bool), row, column), angle, size)
    if patch is not None:
        pixels, top, left = patch
        assert top >= 0
        assert left >= 0
        found[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    y, x = y - size[0] / 2, x - size[1] / 2
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    back_x, back_y = x * cos - y * sin + size[1] / 2 - column, x * sin + y * cos + size[0] / 2 - row
    depth = np.minimum.reduce([back_x, width - back_x, back_y, height - back_y])
    assert found[depth > 1e-6].all()
    assert not found[depth < -1e-6].any()


def test_memory_follows_the_crop_not_the_image() -> None:
    """Transform 200 objects of a 36-megapixel image, whose dense masks would take 7 GB."""
    size = (6000, 6000)
    place = np.random.default_rng(0).uniform(50, 5900, (200, 2))
    polygons = [parse_segmentation([outline((x, y), (30, 40), 0.3)], size) for x, y in place]
    annotations = Annotations(np.zeros(200, np.int64), polygons, size, 1)
    geometry = GeometricTransform(size, size, (2900, 2900, 3156, 3156), angle=33.0)
    tracemalloc.start()
    target = geometry.target(annotations, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    assert target.dense_masks().untyped_storage().nbytes() == len(target) * 256 * 256


# --- configs -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"rotate": -1.0}, "rotate must be between 0 and 180"),
        ({"copy_paste": 1.5}, "copy_paste must be between 0 and 1"),
        ({"noise": 2.0}, "noise must be between 0 and 1"),
        ({"blur": -0.5}, "blur must be at least 0"),
        ({"gamma": float("inf")}, "gamma must be finite"),
        ({"min_box_side": float("nan")}, "min_box_side must be at least 0"),
        ({"scale_draw": "cubic"}, "scale_draw must be one of log, linear"),
        ({"crop_pad": True}, "crop_pad must be false if crop_size is null"),
    ],
)
def test_raises_on_invalid_values(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(BadInput, match=rule):
        DataConfig(**fields)


def test_defaults_match_the_paper() -> None:
    """Check section 4.1: short side 800, long side at most 1333, mirrored half of the time."""
    items = Pair(colored(1), colored(2))
    for seed in range(8):
        image, annotations = items.items[0]
        result, _ = TrainTransform(DataConfig())(image, annotations, seeded(seed), items)
        whole = GeometricTransform((60, 80), (800, 1066), (0, 0, 1066, 800)).image(image)
        assert torch.equal(result, whole) or torch.equal(result, whole.flip(-1))
    assert items.read == []
