"""Packed annotations are restored unchanged and measured like single ones."""

from __future__ import annotations

import numpy as np
import pytest

from embedmask.data.packed import CHUNK, GroundTruth, PackedAnnotations
from embedmask.data.segmentation import Polygons, RunLengths, Segmentation, pixel_area

SIZE = (7, 10)


def ground_truth(masks: list[Segmentation], image_id: int, rng: np.random.Generator) -> GroundTruth:
    count = len(masks)
    return GroundTruth(
        rng.integers(0, 80, count),
        masks,
        SIZE,
        image_id,
        rng.random(count) < 0.3,
        rng.random(count),
        rng.random((count, 4)).astype(np.float32),
    )


def random_items(seed: int = 0) -> list[GroundTruth]:
    rng = np.random.default_rng(seed)
    items = []
    for number in range(20):
        masks: list[Segmentation] = []
        for kind in rng.integers(0, 2, rng.integers(0, 4)):
            if kind:
                parts = [rng.uniform(0, 7, (rng.integers(3, 9), 2)) for _ in range(rng.integers(1, 4))]
                masks.append(Polygons([part.astype(np.float32) for part in parts]))
            else:
                masks.append(RunLengths(np.array([9, 30, 31]), SIZE))
        items.append(ground_truth(masks, number * 7, rng))
    return items


def test_packed_annotations_are_restored() -> None:
    items = random_items()
    packed = PackedAnnotations(items)
    assert len(packed) == 20
    for index in (*range(20), -1):
        actual, expected = packed[index], items[index]
        assert (actual.size, actual.image_id) == (expected.size, expected.image_id)
        for column in ("labels", "crowd", "areas", "boxes"):
            np.testing.assert_array_equal(getattr(actual, column), getattr(expected, column))
        for mask, expected_mask in zip(actual.segmentations, expected.segmentations, strict=True):
            if isinstance(mask, Polygons) and isinstance(expected_mask, Polygons):
                for part, other in zip(mask.parts, expected_mask.parts, strict=True):
                    np.testing.assert_array_equal(part, other)
            else:
                assert isinstance(mask, RunLengths)
                assert isinstance(expected_mask, RunLengths)
                np.testing.assert_array_equal(mask.counts, expected_mask.counts)
                assert mask.size == expected_mask.size


def test_no_annotations() -> None:
    packed = PackedAnnotations([])
    assert len(packed) == 0
    bounds, areas = packed.measure()
    assert (bounds.shape, areas.shape, packed.owners.shape) == ((0, 4), (0,), (0,))


def shoelace(points: np.ndarray) -> float:
    following = np.roll(points, -1, axis=0)
    return abs(float((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())) / 2


@pytest.mark.parametrize("chunk", [1, 3, CHUNK])
def test_measure_agrees_with_single_masks(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr("embedmask.data.packed.CHUNK", chunk)
    items = random_items(1)
    packed = PackedAnnotations(items)
    bounds, areas = packed.measure()
    masks = [(place, mask) for place, item in enumerate(items) for mask in item.segmentations]
    assert packed.owners.tolist() == [place for place, _ in masks]
    for number, (_, mask) in enumerate(masks):
        left, top, right, bottom = mask.bounds()
        np.testing.assert_allclose(bounds[number], [left, top, min(right, 10), min(bottom, 7)])
        expected = mask.area() if isinstance(mask, RunLengths) else sum(map(shoelace, mask.parts))
        assert areas[number] == pytest.approx(expected, abs=1e-4)
        same, size = packed.mask(number)
        assert (same.bounds(), size) == (mask.bounds(), SIZE)


def test_without_crowds() -> None:
    for item in random_items(2):
        objects = item.without_crowds()
        assert len(objects) == (~item.crowd).sum()
        np.testing.assert_array_equal(objects.labels, item.labels[~item.crowd])
        assert objects.segmentations == [
            m for m, c in zip(item.segmentations, item.crowd, strict=True) if not c
        ]
        assert (objects.boxes.shape, objects.areas.shape) == ((len(objects), 4), (len(objects),))


def test_unknown_areas_are_counted_in_pixels() -> None:
    bow_tie = Polygons([np.array([[1, 1], [5, 5], [5, 1], [1, 5]], dtype=np.float32)])
    runs = RunLengths(np.array([9, 30, 31]), SIZE)
    item = ground_truth([bow_tie, runs, runs], 3, np.random.default_rng(0))
    item.areas[:] = np.nan, np.nan, 12.5
    assert item.known_areas() == [pixel_area(bow_tie, SIZE), 30, 12.5]
    assert item.known_areas()[0] > 5
