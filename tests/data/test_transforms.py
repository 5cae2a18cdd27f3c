from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedmask.config import DataConfig
from embedmask.config.detector import Rounding
from embedmask.data.coco import CocoInstances
from embedmask.data.colors import change_colors
from embedmask.data.geometry import GeometricTransform
from embedmask.data.transforms import EvalTransform, TrainTransform, resized_size
from embedmask.structures import Target

from .images import no_objects, rectangles, scene, seeded, slow_boxes

GOLDEN = Path(__file__).parents[1] / "golden"
# width, height, short side, long side -> height, width, by the authors' code
RESIZED = """640 480 800 1333 800 1066 | 480 640 800 1333 1066 800 | 500 375 640 1333 640 853
640 427 800 1333 800 1199 | 640 427 240 400 240 359 | 333 500 800 1333 1201 800
1000 200 800 1333 267 1335 | 200 1000 640 1333 1335 267 | 800 800 800 1333 800 800
1333 800 800 1333 800 1333 | 612 612 640 1333 640 640 | 640 361 800 1333 752 1333
51 640 240 400 401 32 | 1024 31 240 400 12 396 | 502 1141 800 1333 1331 586
70 588 240 400 403 48 | 924 927 800 1333 802 800 | 465 841 640 1333 1157 640
1363 508 800 1333 497 1333 | 1148 234 240 400 82 402"""


@pytest.mark.parametrize("row", [tuple(map(int, r.split())) for r in RESIZED.replace("\n", "|").split("|")])
def test_resized_size_matches_the_authors(row: tuple[int, ...]) -> None:
    width, height, short_side, long_side, new_height, new_width = row
    assert resized_size((height, width), short_side, long_side) == (new_height, new_width)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((288, 224), (309, 240)),
        ((256, 320), (240, 300)),
        ((100, 333), (120, 400)),
        ((3, 900), (1, 400)),
        ((240, 241), (240, 241)),
    ],
)
def test_nearest_size_keeps_to_the_long_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Include two rows of the authors' second repository."""
    assert resized_size(size, 240, 400, "nearest") == expected


def test_resized_size_agrees_with_all_reference_rows(shared: Path) -> None:
    with np.load(shared / "golden" / "visible" / "layers.npz") as layers:
        rows = layers["resize.w_h_min_max_oh_ow"].tolist()
    assert len(rows) > 50
    for width, height, short_side, long_side, *expected in rows:
        assert list(resized_size((height, width), short_side, long_side)) == expected


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 1500), st.integers(1, 1500))
def test_resized_size_always_has_pixels(height: int, width: int, short_side: int, extra: int) -> None:
    new_height, new_width = resized_size((height, width), short_side, short_side + extra)
    assert min(new_height, new_width) >= 1
    assert (new_height <= new_width) == (height <= width) or new_height == new_width


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1, 5000), (1, 1333)),
        ((5000, 1), (1333, 1)),
        ((3, 4000), (1, 1333)),
        ((2, 9000), (1, 1333)),
        ((1, 1), (800, 800)),
        ((1, 1333), (1, 1333)),
    ],
)
def test_thin_images_keep_within_the_long_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(size, 800, 1333) == expected
    masks = np.ones((1, *size), bool)
    image, target = EvalTransform(800, 1333)(*scene(masks), seeded())
    assert tuple(image.shape[1:]) == expected
    assert target.boxes.tolist() == [[0, 0, expected[1], expected[0]]]


orientations = st.fixed_dictionaries(
    {
        "flip_horizontal": st.booleans(),
        "flip_vertical": st.booleans(),
        "turns": st.integers(0, 3),
    }
)


@settings(deadline=None)
@given(turned=orientations, seed=st.integers(0, 1000))
def test_image_masks_and_boxes_move_together(turned: dict[str, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 20, 31)) < 0.02
    masks[np.arange(3), rng.integers(0, 20, 3), rng.integers(0, 31, 3)] = True
    image, annotations = scene(masks)
    left, top = int(rng.integers(0, 10)), int(rng.integers(0, 10))
    window = (left, top, left + int(rng.integers(5, 20)), top + int(rng.integers(5, 10)))
    geometry = GeometricTransform((20, 31), (20, 31), window, **turned)  # type: ignore[arg-type]
    result, target = geometry.image(image), geometry.target(annotations, min_box_side=1)
    assert torch.equal(result[0] > 0, target.dense_masks().any(0))
    assert target.dense_masks().shape[-2:] == result.shape[-2:]
    assert target.boxes.tolist() == slow_boxes(target.dense_masks())


def test_orientation_follows_its_definition() -> None:
    image, annotations = scene(rectangles((10, 20, 30, 25)))
    for geometry, box in [
        (GeometricTransform((60, 80), (60, 80), (0, 0, 80, 60)), [10, 20, 30, 25]),
        (GeometricTransform((60, 80), (60, 80), (0, 0, 80, 60), flip_horizontal=True), [50, 20, 70, 25]),
        (GeometricTransform((60, 80), (60, 80), (0, 0, 80, 60), flip_vertical=True), [10, 35, 30, 40]),
        (GeometricTransform((60, 80), (60, 80), (0, 0, 80, 60), turns=1), [20, 50, 25, 70]),
        (GeometricTransform((60, 80), (60, 80), (5, 10, 25, 50)), [5, 10, 20, 15]),
        (GeometricTransform((60, 80), (120, 240), (0, 0, 240, 120)), [30, 40, 90, 50]),
    ]:
        assert geometry.target(annotations, 1).boxes.tolist() == [box]
        x1, y1, x2, y2 = box
        result = geometry.image(image)
        assert (result[:, y1 + 1 : y2 - 1, x1 + 2 : x2 - 2] > 200).all()
        assert abs(int((result[0] > 127).sum()) - (x2 - x1) * (y2 - y1)) == 0


def test_crops_do_not_share_memory_with_the_image() -> None:
    image, annotations = scene(rectangles((10, 20, 30, 25)))
    for geometry in (
        GeometricTransform((60, 80), (60, 80), (4, 8, 20, 30)),
        GeometricTransform((60, 80), (60, 80), (4, 8, 20, 30), turns=2),
        GeometricTransform((60, 80), (90, 120), (4, 8, 20, 30)),
    ):
        result, masks = geometry.image(image), geometry.target(annotations, 1).masks
        assert result.untyped_storage().nbytes() == result.numel()
        assert masks.pixels.untyped_storage().nbytes() == masks.pixels.numel()


def test_small_objects_are_dropped() -> None:
    _, annotations = scene(rectangles((0, 0, 10, 10), (38, 38, 50, 50), (60, 5, 61, 25)))
    geometry = GeometricTransform((60, 80), (60, 80), (0, 0, 40, 40))
    assert geometry.target(annotations, 1).labels.tolist() == [0, 1]  # the third is outside
    assert geometry.target(annotations, 2).boxes.tolist() == [[0, 0, 10, 10], [38, 38, 40, 40]]
    assert geometry.target(annotations, 2.5).labels.tolist() == [0]
    assert GeometricTransform.whole((60, 80), (60, 80)).target(annotations, 1.5).labels.tolist() == [0, 1]
    assert len(GeometricTransform((60, 80), (60, 80), (62, 52, 70, 60)).target(annotations, 1)) == 0


def test_training_items_depend_only_on_the_generator() -> None:
    image, annotations = scene(rectangles((5, 5, 40, 30), (50, 20, 79, 55)))
    config = DataConfig(
        short_sides=(48, 64), long_side=100, scale_range=(0.8, 1.3), crop_size=40, flip_vertical=0.5,
        rotate90=True, color_jitter=0.5, invert=0.5,
    )  # fmt: skip
    transform = TrainTransform(config)
    first, again, other = (transform(image, annotations, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1].dense_masks(), again[1].dense_masks())
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    transform(image, annotations, seeded(5))
    assert torch.equal(state, torch.get_rng_state())


def test_training_rounds_as_the_model() -> None:
    """480 x 641 px to a short side of 640: the long side is 854.67 px."""
    config = DataConfig(short_sides=(640,), long_side=1333, flip_horizontal=0)
    sizes = {
        rounding: TrainTransform(config, rounding).sample_size((480, 641), seeded())
        for rounding in get_args(Rounding)
    }
    assert sizes == {"down": (640, 854), "nearest": (640, 855)}


def test_crops_lie_inside_and_reach_everywhere() -> None:
    transform = TrainTransform(DataConfig(short_sides=(), crop_size=32, flip_horizontal=0))
    generator = seeded()
    samples = [transform.sample_geometry(no_objects((34, 90)), generator).window for _ in range(400)]
    assert {(right - left, bottom - top) for left, top, right, bottom in samples} == {(32, 32)}
    assert {top for _, top, _, _ in samples} == {0, 1, 2}
    assert min(left for left, *_ in samples) == 0
    assert max(right for _, _, right, _ in samples) == 90
    assert transform.sample_geometry(no_objects((20, 50)), generator).window_size == (
        20,
        32,
    )  # a small image is used whole, not padded


def test_crops_around_objects_favor_crowded_regions() -> None:
    """Each crop contains a center; five objects at the right are chosen five times as often as one at the left."""
    crowd = [(180 + k, 10 * k, 186 + k, 10 * k + 6) for k in range(5)]
    _, annotations = scene(rectangles((10, 20, 20, 40), *crowd, size=(64, 200)))
    transform = TrainTransform(DataConfig(short_sides=(), crop_size=32, crop_objects=1.0, flip_horizontal=0))
    generator = seeded()
    samples = [transform.sample_geometry(annotations, generator).window for _ in range(600)]
    assert {(right - left, bottom - top) for left, top, right, bottom in samples} == {(32, 32)}
    assert all(0 <= left <= 168 and 0 <= top <= 32 for left, top, _, _ in samples)
    left_ones = [(left, top) for left, top, _, _ in samples if left < 100]
    assert 0.1 < len(left_ones) / len(samples) < 0.24
    assert all(left <= 15 < left + 32 and top <= 30 < top + 32 for left, top in left_ones)
    assert (min(left_ones)[0], max(left_ones)[0]) == (0, 15)
    # half of the crops are anywhere: some lie between the objects
    mixed = TrainTransform(DataConfig(short_sides=(), crop_size=32, crop_objects=0.5, flip_horizontal=0))
    windows = [mixed.sample_geometry(annotations, generator).window for _ in range(600)]
    assert not any(15 < left < 148 for left, *_ in samples)
    assert 0.3 < np.mean([15 < left < 148 for left, *_ in windows]) < 0.5
    assert TrainTransform(DataConfig(crop_size=32, crop_objects=1.0)).sample_geometry(
        no_objects((40, 50)), generator
    ).window_size == (32, 32)


def test_samples_cover_their_range() -> None:
    config = DataConfig(short_sides=(30, 60), scale_range=(0.5, 2), flip_vertical=0.5, rotate90=True)
    generator = seeded()
    samples = [TrainTransform(config).sample_geometry(no_objects((60, 80)), generator) for _ in range(300)]
    heights = np.array([geometry.resized[0] for geometry in samples])
    assert heights.min() < 18
    assert heights.max() > 110
    assert (
        abs(np.log(heights).mean() - np.log(np.sqrt(30 * 60))) < 0.1
    )  # log-uniform: centered in the logarithm
    assert {geometry.turns for geometry in samples} == {0, 1, 2, 3}
    for name in ("flip_horizontal", "flip_vertical"):
        assert 0.4 < np.mean([getattr(geometry, name) for geometry in samples]) < 0.6


def test_default_recipe_resizes_and_sometimes_mirrors() -> None:
    samples = [
        TrainTransform(DataConfig()).sample_geometry(no_objects((480, 640)), seeded(seed))
        for seed in range(60)
    ]
    assert {geometry.resized for geometry in samples} == {(800, 1066)}
    assert {geometry.window for geometry in samples} == {(0, 0, 1066, 800)}
    assert {geometry.flip_horizontal for geometry in samples} == {True, False}
    assert not any(geometry.flip_vertical or geometry.turns for geometry in samples)


def test_colors_stay_uint8_and_zero_strength_is_identity() -> None:
    image = torch.randint(0, 256, (3, 17, 13), dtype=torch.uint8, generator=seeded())
    assert torch.equal(change_colors(image, 0, 0, seeded()), image)
    assert torch.equal(change_colors(image, 0, 1, seeded()), 255 - image)
    changed = change_colors(image, 0.5, 0, seeded(1))
    assert changed.dtype == torch.uint8
    assert changed.shape == image.shape
    assert not torch.equal(changed, image)
    assert torch.equal(changed, change_colors(image, 0.5, 0, seeded(1)))


def test_gray_images_stay_gray() -> None:
    image = torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(3, 16, 16)
    for seed in range(5):
        changed = change_colors(image, 1.0, 0.5, seeded(seed))
        assert torch.equal(changed[0], changed[1])
        assert torch.equal(changed[1], changed[2])


def test_eval_transform_is_the_whole_image_resized() -> None:
    image, annotations = scene(rectangles((10, 20, 30, 40)))
    transform = EvalTransform(90, 1333)
    result, target = transform(image, annotations, seeded())
    assert result.shape == (3, 90, 120)
    assert torch.equal(result, transform.image(image))
    assert target.boxes.tolist() == [[15, 30, 45, 60]]
    result, same = EvalTransform.full_size()(image, annotations, seeded())
    assert torch.equal(result, image)
    assert same.boxes.tolist() == [[10, 20, 30, 40]]


def reference_folder(data: dict[str, np.ndarray], folder: Path) -> CocoInstances:
    content = json.loads(bytes(data["coco_json"]).decode())
    (folder / "images").mkdir()
    for image in content["images"]:
        Image.fromarray(data[f"image{image['id']}_rgb"]).save(folder / "images" / image["file_name"])
    (folder / "train.json").write_text(json.dumps(content))
    return CocoInstances.open(folder, "train")


BGR_MEAN = np.array([102.9801, 115.9465, 122.7717]).reshape(3, 1, 1)


def test_items_agree_with_the_authors(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "golden" / "visible" / "data.npz") as file:
        data = dict(file)
    dataset = reference_folder(data, tmp_path)
    short_side, long_side = int(data["min_size"]), int(data["max_size"])
    compared = 0
    for image_id in (4, 9, 30):
        index = dataset.image_ids.index(image_id)
        size = resized_size(dataset.sizes[index], short_side, long_side)
        for flip in (0, 1):
            geometry = GeometricTransform(
                dataset.sizes[index], size, (0, 0, size[1], size[0]), flip_horizontal=bool(flip)
            )
            result, target = (
                geometry.image(dataset.image(index)),
                geometry.target(dataset.annotations(index), 1),
            )
            key = f"id{image_id}.flip{flip}"
            if f"{key}.image" in data:
                rgb = (data[f"{key}.image"] + BGR_MEAN)[::-1]
                np.testing.assert_allclose(result.numpy(), rgb, atol=1e-3)
            compared += compare_objects(data, key, target, size)
    assert compared >= 10


def compare_objects(data: dict[str, np.ndarray], key: str, target: Target, size: tuple[int, int]) -> int:
    """Compare each of the authors' objects with the one of this package; a sliver at the border may exist only here.

    The authors mirror corners to W - 1 - x instead of W - x, so their mirrored masks lie one column further left.
    """
    shape = data[f"{key}.masks_shape"].tolist()
    packed = data[f"{key}.masks_packed"]
    masks = np.unpackbits(packed, axis=1)[:, : shape[1] * shape[2]].reshape(shape).astype(bool)
    shift = 1 if key.endswith("flip1") else 0
    for mask, box, label in zip(masks, data[f"{key}.boxes"], data[f"{key}.labels"], strict=True):
        (match,) = np.flatnonzero(target.labels.numpy() == label - 1)
        own = target.dense_masks()[match].numpy()[:, shift:]
        height = box[3] - box[1]
        assert (own != mask[:, : size[1] - shift]).sum() <= shift * 0.2 * height
        inclusive = (box + np.array([0, 0, 1, 1])).clip(0, [size[1], size[0]] * 2)
        assert np.abs(target.boxes[match].numpy() - inclusive).max() <= 2
    return len(masks)


@pytest.mark.parametrize("size", [(96, 64), (40, 23), (33, 90)])
def test_resize_is_the_bilinear_filter_of_pillow(size: tuple[int, int]) -> None:
    """Pillow's filter, which the authors used, averages over all pixels that an output pixel covers."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for short_side in (15, 50, 120):
        resized = EvalTransform(short_side, 1333).image(torch.from_numpy(pixels).permute(2, 0, 1))
        height, width = resized_size(size, short_side, 1333)
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        assert np.array_equal(resized.permute(1, 2, 0).numpy(), expected)


def test_resized_image_equals_the_authors() -> None:
    with np.load(GOLDEN / "resize.npz") as file:
        rgb, expected = file["rgb"], file["resized"]
    transform = EvalTransform(96, 160)
    assert np.array_equal(transform.image(torch.from_numpy(rgb).permute(2, 0, 1)).permute(1, 2, 0), expected)
