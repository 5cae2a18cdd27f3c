"""Conversion of instances to `sv.Detections` and COCO results, for masks of any position and shape."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmask.inference.results import coco_results, compact_masks, to_detections
from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Instances


@st.composite
def run_masks(draw: st.DrawFn) -> RunMasks:
    """Generate up to five masks in a small image; crops may be empty or fill the image."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    crops = []
    for _ in range(draw(st.integers(0, 5))):
        y, x = draw(st.integers(0, height)), draw(st.integers(0, width))
        size = (draw(st.integers(0, height - y)), draw(st.integers(0, width - x)))
        bits = draw(st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]))
        crops.append(MaskCrop(np.array(bits, dtype=bool).reshape(size), y, x))
    return RunMasks.from_crops(crops, (height, width))


def blocks(shape: tuple[int, int], corners: list[tuple[int, int]], frame: tuple[int, int]) -> RunMasks:
    return RunMasks.from_crops([MaskCrop(np.ones(shape, bool), y, x) for y, x in corners], frame)


def instances(masks: RunMasks) -> Instances:
    count = len(masks)
    boxes = torch.tensor([[1.5, 2.0, 4.0, 7.25]]).repeat(count, 1)
    return Instances(boxes, torch.linspace(0.9, 0.1, count), torch.arange(count) % 3, masks)


@given(run_masks())
@settings(deadline=None)
def test_compact_masks_equal_dense(masks: RunMasks) -> None:
    compact = compact_masks(masks)
    dense = masks.to_dense().numpy()
    assert compact.shape == dense.shape
    assert np.array_equal(compact.to_dense(), dense)
    assert compact.area.tolist() == masks.areas().tolist()
    assert all(np.array_equal(compact[i], dense[i]) for i in range(len(dense)))
    assert all(all(counts[1:]) for counts in compact._rles), "no run without pixels"


def test_memory_does_not_grow_with_the_image() -> None:
    """Check a thousand masks of an image, which would take 100 GB as dense masks."""
    masks = blocks((3, 3), [(9000, 9000)] * 1000, (10_000, 10_000))
    assert compact_masks(masks).area.tolist() == [9] * 1000
    assert mask_api.area(masks.select([0]).to_coco_rle()).tolist() == [9]


def test_detections() -> None:
    masks = blocks((2, 3), [(1, 2)] * 4, (10, 20))
    actual = to_detections(instances(masks), ["a", "b", "c"])
    assert len(actual) == 4
    assert actual.xyxy.dtype == np.float32
    assert actual.class_id is not None
    assert actual.class_id.dtype == np.int64
    assert actual.class_id.tolist() == [0, 1, 2, 0]
    assert actual.data["class_name"].tolist() == ["a", "b", "c", "a"]
    assert actual.confidence is not None
    assert actual.confidence.tolist() == pytest.approx([0.9, 0.1 + 1.6 / 3, 0.1 + 0.8 / 3, 0.1])
    assert actual.mask is not None
    assert actual.mask.shape == (4, 10, 20)
    assert len(actual[actual.confidence > 0.5]) == 2


def test_no_detections() -> None:
    masks = blocks((1, 1), [], (5, 6))
    actual = to_detections(instances(masks), ["a", "b", "c"])
    assert actual.is_empty()
    assert actual.mask is not None
    assert actual.mask.shape == (0, 5, 6)
    assert np.asarray(actual.mask).shape == (0, 5, 6)
    assert actual.xyxy.shape == (0, 4)
    assert len(actual.data["class_name"]) == 0


def test_coco_results() -> None:
    masks = blocks((2, 3), [(1, 2), (0, 0)], (10, 20))
    results = coco_results(instances(masks), image_id=7, category_ids=[90, 3, 5])
    assert json.loads(json.dumps(results)) == results
    assert [r["category_id"] for r in results] == [90, 3]
    assert {r["image_id"] for r in results} == {7}
    assert results[0]["bbox"] == [1.5, 2.0, 2.5, 5.25]
    assert mask_api.toBbox([r["segmentation"] for r in results]).tolist() == [[2, 1, 3, 2], [0, 0, 3, 2]]
    assert coco_results(instances(masks.select([])), 7, [1]) == []
