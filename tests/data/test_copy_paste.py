from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from embedmask.config import DataConfig
from embedmask.data.copy_paste import choose_objects, paste_objects, sample_corner
from embedmask.data.packed import Annotations
from embedmask.data.transforms import TrainTransform
from embedmask.structures import Target

from .images import Pair, rectangles, scene, seeded, slow_boxes


def item(
    *boxes: tuple[int, int, int, int], size: tuple[int, int] = (30, 40), value: int = 10
) -> tuple[Tensor, Target]:
    masks = torch.from_numpy(rectangles(*boxes, size=size))
    target = Target(torch.tensor(boxes).reshape(-1, 4).float(), torch.arange(len(boxes)), masks, value)
    return torch.full((3, *size), value, dtype=torch.uint8), target


def slow_paste(
    image: Tensor, target: Target, donor: tuple[Tensor, Target], corner: tuple[int, int]
) -> tuple[Tensor, list[tuple[int, list[list[bool]]]]]:
    """Paste pixel by pixel."""
    image, masks, pasted = (
        image.clone(),
        target.dense_masks().clone(),
        torch.zeros(len(donor[1]), *image.shape[1:]),
    )
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            row, column = y - corner[0], x - corner[1]
            if 0 <= row < donor[0].shape[1] and 0 <= column < donor[0].shape[2]:
                here = donor[1].masks[:, row, column]
                if here.any():
                    image[:, y, x], masks[:, y, x] = donor[0][:, row, column], False
                    pasted[here, y, x] = 1
    labels = [*target.labels.tolist(), *donor[1].labels.tolist()]
    found = zip(labels, [*masks, *pasted.bool()], strict=True)
    return image, [(label, mask.tolist()) for label, mask in found if mask.any()]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), own=st.integers(0, 3), its=st.integers(0, 3))
def test_pasting_matches_the_slow_reference(seed: int, own: int, its: int) -> None:
    rng = np.random.default_rng(seed)

    def random_item(count: int) -> tuple[Tensor, Target]:
        size = (int(rng.integers(3, 14)), int(rng.integers(3, 14)))
        masks = torch.from_numpy(rng.random((count, *size)) < 0.2)
        masks[:, 0, 0] = True
        image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
        boxes = torch.tensor(slow_boxes(masks)).reshape(-1, 4).float()
        return image, Target(boxes, torch.from_numpy(rng.integers(0, 9, count)), masks, 4)

    (image, target), donor = random_item(own), random_item(its)
    corner = sample_corner(tuple(image.shape[1:]), tuple(donor[0].shape[1:]), seeded(seed))  # type: ignore[arg-type]
    before = [t.clone() for t in (image, target.dense_masks(), donor[0], donor[1].masks)]
    mixed, found = paste_objects(image, target, donor, corner, 1)
    expected, objects = slow_paste(image, target, donor, corner)
    assert torch.equal(mixed, expected)
    assert list(zip(found.labels.tolist(), found.dense_masks().tolist(), strict=True)) == objects
    assert found.boxes.tolist() == slow_boxes(found.dense_masks())
    assert found.boxes.shape == (len(objects), 4)
    assert found.image_id == 4
    after = image, target.dense_masks(), donor[0], donor[1].masks
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_covered_objects_shrink_or_are_dropped() -> None:
    image, target = item((2, 2, 6, 6), (10, 10, 30, 20), (35, 0, 39, 5))
    donor = item((0, 0, 8, 8), (15, 8, 40, 25), value=200)
    mixed, found = paste_objects(image, target, donor, (0, 0), 1)
    # the first is hidden, the second keeps its left part and the strip above, the third is untouched
    assert found.labels.tolist() == [1, 2, 0, 1]
    assert found.boxes.tolist() == [[10, 10, 15, 20], [35, 0, 39, 5], [0, 0, 8, 8], [15, 8, 40, 25]]
    assert torch.equal(mixed[0] == 200, donor[1].masks.any(0))
    assert not (found.dense_masks()[0] & found.dense_masks()[3]).any()
    # the rest of the second is 5 px wide: too narrow here
    assert paste_objects(image, target, donor, (0, 0), 5.5)[1].labels.tolist() == [0, 1]


def test_objects_outside_are_cut_or_dropped() -> None:
    image, target = item(size=(20, 20))
    donor = item((0, 0, 10, 10), (25, 25, 40, 30), value=200)
    assert paste_objects(image, target, donor, (0, 0), 1)[1].boxes.tolist() == [[0, 0, 10, 10]]
    mixed, found = paste_objects(image, target, donor, (-8, -18), 1)
    assert found.boxes.tolist() == [[7, 17, 20, 20]]
    assert int((mixed[0] == 200).sum()) == 3 * 13


@given(st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 99))
def test_corners_leave_no_avoidable_gap(sizes: tuple[int, int, int, int], seed: int) -> None:
    height, width, own, its = sizes
    top, left = sample_corner((height, width), (own, its), seeded(seed))
    for start, length, other in ((top, height, own), (left, width, its)):
        if other <= length:
            assert 0 <= start <= length - other
        else:
            assert length - other <= start <= 0


def test_corners_reach_everywhere() -> None:
    assert {sample_corner((10, 8), (8, 10), seeded(s)) for s in range(200)} == {
        (top, left) for top in range(3) for left in range(-2, 1)
    }


def test_number_of_chosen_objects_is_uniform() -> None:
    _, annotations = scene(rectangles(*[(x, 0, x + 3, 3) for x in range(0, 40, 10)]))
    chosen = [choose_objects(annotations, seeded(s)) for s in range(600)]
    counts = np.bincount([len(c) for c in chosen], minlength=5) / len(chosen)
    assert (abs(counts - 1 / 5) < 0.06).all()
    each = np.bincount(np.concatenate([c.labels for c in chosen]), minlength=4) / len(chosen)
    assert (abs(each - 1 / 2) < 0.06).all()
    for c in chosen[:20]:
        assert [int(s.bounds()[0]) // 10 for s in c.segmentations] == c.labels.tolist()
        assert (c.size, c.image_id) == (annotations.size, annotations.image_id)


def transform(**fields: Any) -> TrainTransform:
    return TrainTransform(DataConfig(**{"short_sides": (), "flip_horizontal": 0.0, **fields}))


def test_empty_images_on_either_side() -> None:
    full = scene(rectangles((5, 5, 40, 30), (50, 20, 79, 55)))
    empty = (torch.zeros(3, 50, 90, dtype=torch.uint8), Annotations(np.zeros(0, np.int64), [], (50, 90), 12))
    made = transform(copy_paste=1.0)
    items = Pair(empty)
    result, target = made(*full, seeded(), items)
    assert torch.equal(result, full[0])
    assert len(target) == 2
    assert items.read == []  # it has no objects, so it is not decoded
    nothing, none = made(*empty, seeded(), items)
    assert torch.equal(nothing, empty[0])
    assert none.dense_masks().shape == (0, 50, 90)
    found = [made(*empty, seeded(seed), Pair(full))[1] for seed in range(20)]
    assert {len(t) for t in found} == {0, 1, 2}
    assert all(t.boxes.tolist() == slow_boxes(t.dense_masks()) for t in found)


def test_pasting_has_the_configured_probability() -> None:
    full = scene(rectangles((5, 5, 40, 30), (50, 20, 79, 55)))
    empty = (torch.zeros(3, 60, 80, dtype=torch.uint8), Annotations(np.zeros(0, np.int64), [], (60, 80), 12))
    made = transform(copy_paste=0.4)
    share = np.mean([len(made(*empty, seeded(seed), Pair(full))[1]) > 0 for seed in range(300)])
    # of two objects, none is chosen in a third of all cases
    assert abs(share - 0.4 * 2 / 3) < 0.08
    assert len(made(*empty, seeded())[1]) == 0


@pytest.mark.parametrize("fields", [{}, {"rotate": 90.0}, {"crop_size": 32, "crop_pad": True}])
def test_both_images_are_jittered(fields: dict[str, Any]) -> None:
    """Check that the size of pasted objects and of the image below both vary."""
    one, other = scene(rectangles((8, 8, 28, 28))), scene(rectangles((40, 20, 60, 40)))
    other[1].labels[:] = 7
    made = transform(copy_paste=1.0, scale_range=(0.4, 1.2), **fields)
    found = [made(*one, seeded(seed), Pair(other))[1] for seed in range(60)]
    for label in (0, 7):
        areas = [
            int(m.sum())
            for t in found
            for m, kind in zip(t.dense_masks(), t.labels, strict=True)
            if kind == label
        ]
        assert len(set(areas)) > 10
