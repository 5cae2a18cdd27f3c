"""Decoding and NMS against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import inference as slow
from small_models import random_predictions, small_config

from embedmask import Predictions
from embedmask.inference.proposals import Proposals, decode_proposals
from embedmask.locations import flatten_levels


def decode(
    predictions: Predictions,
    index: int,
    size: tuple[int, int],
    *,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    box_offset: float = 0.0,
    **options: Any,
) -> Proposals:
    cfg = small_config(box_offset=box_offset, **options)
    limits = {"score_threshold": score_threshold, "max_detections": max_detections}
    return decode_proposals(predictions, index, size, cfg, **limits)


def assert_equal_to_loop(
    predictions: Predictions, index: int, size: tuple[int, int], **options: Any
) -> Proposals:
    actual = decode(predictions, index, size, **options)
    expected = slow.decode_proposals(predictions, index, size, **options)
    assert len(actual) == len(expected)
    assert actual.scores.tolist() == pytest.approx([e[0] for e in expected], rel=1e-5)
    assert actual.labels.tolist() == [e[1] for e in expected]
    for box, entry in zip(actual.boxes.tolist(), expected, strict=True):
        assert box == pytest.approx(entry[2], abs=1e-3)
    # q and s belong to the location of the box
    for row, (_, _, _, level, cell) in enumerate(expected):
        assert torch.equal(actual.embed[row], predictions.proposal_embed[level][index].flatten(1)[:, cell])
        assert torch.equal(actual.margin[row], predictions.proposal_margin[level][index].flatten(1)[:, cell])
    return actual


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 50), st.integers(1, 50)),
    st.sampled_from([0.05, 0.3, 0.99]),
    st.sampled_from([0.0, 1.0]),
    st.tuples(st.sampled_from(["product", "root"]), st.booleans()),
)
def test_equals_loop(
    seed: int, size: tuple[int, int], score_threshold: float, box_offset: float, version: tuple[str, bool]
) -> None:
    predictions = random_predictions(size, images=2, seed=seed, margins=4)
    for index in range(2):
        assert_equal_to_loop(
            predictions,
            index,
            size,
            score_threshold=score_threshold,
            pre_nms_topk=3 if seed % 2 else 1000,
            nms_threshold=0.5,
            max_detections=12,
            box_offset=box_offset,
            score=version[0],
            clip_before_nms=version[1],
        )


@pytest.mark.parametrize("box_offset", [0.0, 1.0])
def test_boxes_are_clipped_to_image(box_offset: float) -> None:
    predictions = random_predictions((64, 96), seed=2)
    actual = decode(predictions, 0, (37, 51), score_threshold=0.0, box_offset=box_offset)
    assert len(actual) > 20
    assert actual.boxes.min() == 0
    assert actual.boxes[:, 2].max() == 51 - box_offset
    assert actual.boxes[:, 3].max() == 37 - box_offset
    assert (actual.boxes[:, 2:] > actual.boxes[:, :2]).all()
    assert (actual.scores.diff() <= 0).all()


def test_no_detections() -> None:
    actual = decode(random_predictions((40, 40)), 0, (40, 40), score_threshold=1.0)
    assert len(actual) == 0
    assert actual.boxes.shape == (0, 4)
    assert actual.embed.shape == (0, 4)
    assert actual.margin.shape == (0, 1)


def test_image_of_one_pixel() -> None:
    predictions = random_predictions((32, 32))
    predictions.box_ltrb = [torch.full_like(level, 200) for level in predictions.box_ltrb]
    # boxes that end on their last pixel have no width here
    assert len(decode(predictions, 0, (1, 1), score_threshold=0.0, box_offset=1.0)) == 0
    actual = decode(predictions, 0, (1, 1), score_threshold=0.0)
    assert len(actual) == 3  # one per class: the box is the same at every location
    assert actual.boxes.tolist() == [[0, 0, 1, 1]] * 3
    assert sorted(actual.labels.tolist()) == [0, 1, 2]


def test_a_thousand_detections() -> None:
    predictions = random_predictions((256, 256), classes=2, seed=4)
    predictions.box_ltrb = [b.clamp(max=3) for b in predictions.box_ltrb]
    options = {"score_threshold": 0.0, "pre_nms_topk": 3000, "max_detections": 1000}
    actual = decode(predictions, 0, (256, 256), **options)
    assert len(actual) == 1000
    scores = (
        flatten_levels(predictions.class_logits).sigmoid()
        * flatten_levels(predictions.centerness_logits).sigmoid()
    )
    assert actual.scores[0] == pytest.approx(scores.max().item())


def test_equal_boxes_of_two_classes() -> None:
    predictions = random_predictions((8, 8), classes=2, strides=(8,))
    predictions.class_logits = [torch.full((1, 2, 1, 1), 3.0)]
    predictions.box_ltrb = [torch.full((1, 4, 1, 1), 3.0)]
    actual = decode(predictions, 0, (8, 8), nms_threshold=0.0)
    assert actual.boxes.tolist() == [[1, 1, 7, 7]] * 2
    assert sorted(actual.labels.tolist()) == [0, 1]
