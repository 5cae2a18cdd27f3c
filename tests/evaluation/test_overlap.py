"""Boundary AP: equality with a slow implementation and with the library."""

from __future__ import annotations

import numpy as np
import pytest
from evaluation_scenes import Mask, as_annotation, as_result, ellipse, make_truth, measured, rle, scene
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.overlap import boundaries, boundary_band
from embedmask.masks import RunMasks

masks = arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans())
blocks = masks.map(lambda mask: np.kron(mask[:8, :8], np.ones((5, 4), dtype=bool)))


# --- boundaries -----------------------------------------------------------------------------------


def slow_boundary(mask: Mask, width: int) -> Mask:
    """Return the pixels within `width` steps (8 neighbors) of one outside the mask; outside the image is outside."""
    padded = np.pad(mask, width)
    eroded = np.ones_like(mask)
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            eroded &= padded[width + dy :, width + dx :][: mask.shape[0], : mask.shape[1]]
    return mask & ~eroded


def slow_boundary_iou(a: Mask, b: Mask) -> float:
    width = boundary_band(a.shape)
    edge_a, edge_b = slow_boundary(a, width), slow_boundary(b, width)
    iou, edge_iou = ((x & y).sum() / (x | y).sum() for x, y in ((a, b), (edge_a, edge_b)))
    return float(min(iou, edge_iou))


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [(120, 160), (201, 97), (30, 31)])
def test_boundary_ap_of_one_object_is_its_boundary_iou(size: tuple[int, int], shift: int) -> None:
    h, w = size
    mask = ellipse(size, (h / 2, w / 3), (h / 2.5, w / 3))  # touches the left border
    found = ellipse(size, (h / 2 + shift, w / 3), (h / 2.5, w / 3))
    iou = slow_boundary_iou(mask, found)
    metrics = measured(
        make_truth([as_annotation(1, 1, 2, mask)], {1: size}, [2]), [as_result(1, 2, found, 0.9)]
    )
    thresholds = 0.5 + 0.05 * np.arange(10)
    assert np.abs(thresholds - iou).min() > 1e-6
    assert metrics["boundary/AP"] == pytest.approx((thresholds <= iou).mean())
    assert metrics["boundary/AP50"] == (iou >= 0.5)
    assert metrics["boundary/AP75"] == (iou >= 0.75)
    assert metrics["boundary/AP"] <= metrics["segm/AP"]


@settings(max_examples=80, deadline=None)
@given(st.one_of(masks, blocks))
def test_boundary_equals_slow_boundary(mask: Mask) -> None:
    edges = boundaries(RunMasks.from_rle([rle(mask)], mask.shape))
    assert (edges.to_dense()[0].numpy() == slow_boundary(mask, boundary_band(mask.shape))).all()


@pytest.mark.parametrize("size", [(30, 40), (75, 100), (90, 120), (333, 500), (480, 640), (1200, 1600)])
def test_width_of_the_band_equals_the_library(size: tuple[int, int]) -> None:
    """Includes sizes where 2 % of the diagonal is a half-integer: 75 x 100 (diagonal 125) and 90 x 120 (150)."""
    band = boundary_band(size)
    mask = np.zeros(size, dtype=bool)
    mask[1:-1, 1:-1] = True
    expected = mask_api.decode(mask_api.rleToBoundary(rle(mask))).astype(bool)
    assert int(expected[size[0] // 2, : size[1] // 2].sum()) == min(band, size[1] // 2 - 1)


@pytest.mark.parametrize("seed", range(4))
def test_boundary_ap_equals_the_library(seed: int) -> None:
    """The library rasterizes boundaries over the whole image; the figures are bit-for-bit equal."""
    ground_truth, results = scene(seed)
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    curves = evaluator.curves()["boundary"]
    index = COCO(ground_truth, use_deepcopy=True)
    found = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    expected = COCOeval_faster(index, index.loadRes(found), "boundary")
    expected.params.maxDets = [100]
    expected.evaluate()
    expected.accumulate()
    assert 0 < curves.ap() < 1
    assert (curves.precision == expected.eval["precision"][..., -1]).all()
    assert (curves.recall == expected.eval["recall"][..., -1]).all()
