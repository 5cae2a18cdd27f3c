"""All stages of section 3.6 together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import random_predictions, small_config

from embedmask import Postprocessor
from embedmask.inference.mask_decoding import decode_masks
from embedmask.inference.proposals import decode_proposals

SIZES = [(40, 56), (64, 33)]


def test_equals_separate_stages() -> None:
    cfg = small_config(embed_dim=4, max_detections=20)
    predictions = random_predictions((64, 64), images=2)
    originals = [(80, 112), (31, 17)]
    results = Postprocessor.from_config(cfg)(predictions, SIZES, originals)
    assert len(results) == 2
    for index, (actual, size, original) in enumerate(zip(results, SIZES, originals, strict=True)):
        proposals = decode_proposals(predictions, index, size, cfg, score_threshold=0.05, max_detections=20)
        masks = decode_masks(
            predictions.pixel_embed[index],
            proposals,
            stride=8,
            image_size=size,
            original_size=original,
            threshold=0.5,
            interpolation="prob",
        )
        scale = torch.tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
        assert len(actual) == len(proposals) > 0
        assert torch.allclose(actual.boxes, proposals.boxes * scale)
        assert torch.equal(actual.scores, proposals.scores)
        assert torch.equal(actual.proposal_embed, proposals.embed)
        assert torch.equal(actual.masks.to_dense(), masks.to_dense())
        assert (actual.scores.diff() <= 0).all()
        assert actual.masks.to_dense().shape == (len(actual), *original)


def test_boxes_scale_with_the_image_and_masks_follow() -> None:
    predictions = random_predictions((64, 64), seed=3)
    postprocess = Postprocessor.from_config(small_config(embed_dim=4))
    small, large = (postprocess(predictions, [(64, 64)], [(s, s)])[0] for s in (64, 192))
    assert torch.allclose(small.boxes * 3, large.boxes)
    areas = torch.tensor([small.masks.areas(), large.masks.areas()], dtype=torch.float32)
    big = areas[0] > 200
    assert big.any()
    assert ((areas[1] / areas[0])[big] - 9).abs().max() < 1.5


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_max_detections_is_a_setting(limit: int) -> None:
    cfg = small_config(embed_dim=4, candidate_threshold=0.0, pre_nms_topk=5000, nms_threshold=1.0)
    predictions = random_predictions((160, 160))
    actual = Postprocessor.from_config(cfg, max_detections=limit)(predictions, [(160, 160)], [(40, 40)])[0]
    assert len(actual) == len(actual.masks) == limit
    assert Postprocessor.from_config(cfg).max_detections == cfg.max_detections


def test_score_threshold_is_a_setting() -> None:
    cfg, predictions = small_config(embed_dim=4, nms_threshold=1.0), random_predictions((64, 64))
    sizes = ([(64, 64)], [(64, 64)])
    (few,), (many,) = (
        Postprocessor.from_config(cfg, 1000, threshold)(predictions, *sizes) for threshold in (0.6, 0.0)
    )
    assert 0 < len(few) < len(many)
    assert Postprocessor.from_config(cfg).score_threshold == cfg.candidate_threshold


def test_reference_masks_follow_the_config() -> None:
    predictions, sizes = random_predictions((64, 96), seed=1), ([(63, 93)], [(90, 131)])
    cfg = small_config(embed_dim=4, mask_frame="authors")
    (authors,) = Postprocessor.from_config(cfg)(predictions, *sizes)
    (exact,) = Postprocessor.from_config(cfg, reference_masks=False)(predictions, *sizes)
    (own,) = Postprocessor.from_config(replace(cfg, mask_frame="exact"))(predictions, *sizes)
    assert torch.equal(authors.boxes, exact.boxes)
    assert not torch.equal(authors.masks.to_dense(), exact.masks.to_dense())
    assert torch.equal(own.masks.to_dense(), exact.masks.to_dense())


def test_no_detections() -> None:
    cfg = small_config(embed_dim=4, candidate_threshold=1.0)
    actual = Postprocessor.from_config(cfg)(random_predictions((32, 32)), [(20, 30)], [(200, 300)])[0]
    assert len(actual) == 0
    assert actual.boxes.shape == (0, 4)
    assert actual.masks.to_dense().shape == (0, 200, 300)


def test_results_carry_no_graph() -> None:
    predictions = random_predictions((32, 32), requires_grad=True)
    actual = Postprocessor.from_config(small_config(embed_dim=4))(predictions, [(32, 32)], [(32, 32)])[0]
    assert len(actual) > 0
    assert not actual.boxes.requires_grad
    assert not actual.scores.requires_grad


def test_raises_on_missing_sizes() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Postprocessor.from_config(small_config(embed_dim=4))(random_predictions((32, 32)), [(32, 32)], [])


def test_boxes_end_with_the_image() -> None:
    """Check that boxes end with the image, although 35 px * (107 / 35) exceeds 107 in float32."""
    cfg = small_config(preset="fused", embed_dim=4)
    predictions = random_predictions((64, 64), margins=4)
    boxes = Postprocessor.from_config(cfg)(predictions, [(35, 35)], [(107, 107)])[0].boxes
    assert (boxes[:, 2:] == 107).any()
    assert boxes.max() <= 107
