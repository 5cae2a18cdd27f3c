"""The runtime's masks are those of `embedmask.inference`, and its run lengths those of COCO."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedmask import ModelConfig
from embedmask import runtime_masks as masks
from embedmask.export.metadata import settings_from
from embedmask.inference.mask_decoding import decode_masks
from embedmask.inference.proposals import Proposals
from embedmask.inference.rescoring import rescore_by_masks
from embedmask.masks import RunMasks
from embedmask.structures import Instances

NAMES = [str(index) for index in range(3)]


def proposals(count: int, dims: int, seed: int, size: tuple[int, int]) -> Proposals:
    rng = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=rng) * torch.tensor([size[1] * 0.8, size[0] * 0.8])
    boxes = torch.cat([corners, corners + 1 + torch.rand(count, 2, generator=rng) * 40], 1)
    boxes = torch.minimum(boxes, torch.tensor([size[1], size[0]] * 2).float())
    scores = torch.rand(count, generator=rng).sort(descending=True).values
    labels = torch.arange(count) % 3
    embed = torch.randn(count, dims, generator=rng)
    return Proposals(boxes, scores, labels, embed, torch.rand(count, 1, generator=rng) * 0.2 + 0.02)


@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
@pytest.mark.parametrize("original", [(90, 131), (64, 96), (33, 50)])
def test_masks_equal_those_of_the_predictor(preset: str, original: tuple[int, int]) -> None:
    config = ModelConfig.preset(preset, num_classes=3)
    settings = settings_from(config, NAMES, dense_masks=False)
    margin, min_margin = config.mask_reach
    image_size, padded = (61, 95), (64, 96)
    found = proposals(12, 4, 1, image_size)
    p = torch.randn(4, padded[0] // 8, padded[1] // 8, generator=torch.Generator().manual_seed(2))
    expected = decode_masks(
        p, found, stride=8, image_size=image_size, original_size=original, threshold=config.mask_threshold,
        interpolation=config.mask_interpolation, frame="exact", margin=margin, min_margin=min_margin,
    )  # fmt: skip
    columns: Any = (found.boxes.numpy(), found.embed.numpy(), found.margin.numpy())
    runs = masks.decode_masks(p.numpy(), *columns, settings, image_size=image_size, original_size=original)
    assert int(expected.areas().sum()) > 100
    differing = sum(
        int((masks.to_dense(own, original) != dense).sum())
        for own, dense in zip(runs, expected.to_dense().numpy(), strict=True)
    )
    assert differing <= 1  # rounding may decide a pixel on the threshold


def test_rescoring_equals_that_of_the_predictor() -> None:
    found, size = proposals(12, 4, 3, (60, 60)), (60, 60)
    rng = np.random.default_rng(0)
    dense = np.zeros((12, *size), bool)
    for mask, (x1, y1, x2, y2) in zip(dense, found.boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.8
    dense[4] = False
    runs = RunMasks.from_dense(torch.from_numpy(dense))
    expected = rescore_by_masks(Instances(found.boxes, found.scores, found.labels, runs))
    scores = masks.rescored(
        found.boxes.numpy(),
        found.scores.numpy(),
        found.labels.numpy(),
        [masks.encode(m, (0, 0), 60) for m in dense],
        size,
    )
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(scores[order], expected.scores.numpy(), rtol=1e-5)
    assert found.labels.numpy()[order].tolist() == expected.labels.tolist()


def test_rescoring_holds_one_dense_mask() -> None:
    count, side = 20, 1000
    corners = np.arange(count) * 20
    runs = [masks.encode(np.ones((10, 10), bool), (at, at), side) for at in corners.tolist()]
    boxes = np.stack([corners, corners, corners + 10, corners + 10], 1).astype(np.float32)
    tracemalloc.start()
    scores = masks.rescored(boxes, np.ones(count, np.float32), np.arange(count), runs, (side, side))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores.tolist() == [1] * count
    assert peak < 1.5 * side * side


def threshold_settings() -> masks.Settings:
    config = ModelConfig.preset("paper", num_classes=2, default_score_threshold=0.3)
    return settings_from(config, ["a", "b"], dense_masks=False)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [(None, [0.3, 0.3]), (0.5, [0.5, 0.5]), ([0.4, 1], [0.4, 1]), ({"b": 0.6}, [0.3, 0.6])],
)
def test_thresholds(requested: Any, expected: list[float]) -> None:
    assert threshold_settings().thresholds(requested).tolist() == np.float32(expected).tolist()


@pytest.mark.parametrize(
    ("requested", "line"),
    [
        (float("nan"), "score_threshold nan: this file serves 0.05 to 1"),
        ([0.5, float("nan")], "score_threshold nan: this file serves 0.05 to 1"),
        ([0.5, 1.5], "score_threshold 1.5: this file serves 0.05 to 1"),
        ({"a": 0.01}, "score_threshold 0.01: this file serves 0.05 to 1"),
        ([0.5], r"score_threshold \[0.5\]: pass a number, or 2: one per class"),
        ([0.1, 0.2, 0.3], r"score_threshold \[0.1, 0.2, 0.3\]: pass a number, or 2: one per class"),
        ([0.1, [0.2]], "pass a number, or 2: one per class"),
        ("high", "score_threshold high: pass a number, or 2: one per class"),
        ({"a": "x"}, "pass a number, or 2: one per class"),
        ({"c": 0.5}, "score_threshold: the model has no class 'c'"),
    ],
)
def test_bad_thresholds(requested: Any, line: str) -> None:
    with pytest.raises(masks.BadFile, match=line):
        threshold_settings().thresholds(requested)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths(mask: np.ndarray) -> None:
    size = (mask.shape[0], mask.shape[1])
    runs = masks.encode(mask, (0, 0), size[0])
    expected = RunMasks.from_dense(torch.from_numpy(mask)[None])
    assert np.array_equal(masks.to_dense(runs, size), mask)
    assert masks.to_rle(runs, size) == expected.to_coco_rle()[0]
    assert list(masks.tight_box(runs, size[0])) == expected.boxes()[0].tolist()


def test_long_run_lengths() -> None:
    """Counts of several groups of five bits, and differences below zero."""
    mask = np.zeros((700, 300), bool)
    mask[100:650, 20:280] = True
    mask[300:302, 30:270] = False
    expected = RunMasks.from_dense(torch.from_numpy(mask)[None]).to_coco_rle()[0]
    assert masks.to_rle(masks.encode(mask, (0, 0), 700), (700, 300)) == expected


def test_settings_hold_the_limits_of_the_config() -> None:
    config = replace(ModelConfig.preset("ijcai21", num_classes=3), default_score_threshold=(0.3, 0.4, 0.5))
    settings = settings_from(config, NAMES, dense_masks=True)
    assert (settings.score_thresholds, settings.dense_masks) == ([0.3, 0.4, 0.5], True)
    assert (settings.upsampling, settings.interpolation, settings.mask_threshold) == (2, "log_prob", 0.53)


@given(arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 5))))
def test_best_detection_keeps_the_pixels_of_a_label_image(dense: np.ndarray) -> None:
    count, size = len(dense), dense.shape[1:]
    runs = [masks.encode(mask, (0, 0), size[0]) for mask in dense]
    scores, boxes, labels = np.ones(count, np.float32), np.zeros((count, 4), np.float32), np.zeros(count, int)
    image = masks.Result(boxes, scores, labels, runs, size, ("a",)).label_image()
    expected = np.where(dense.any(0), dense.argmax(0) + 1, 0) if count else np.zeros(size)
    np.testing.assert_array_equal(image, expected)
    assert image.dtype == np.uint16
