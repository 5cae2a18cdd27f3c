"""A requested score threshold applies to final scores: it equals filtering the results of the lowest threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from predictors import NAMES, same
from small_models import small_baseline, small_config

from embedmask import Predictor
from embedmask._supervision import sv
from embedmask.config import PRESETS, DetectorConfig, ModelConfig
from embedmask.errors import BadInput
from embedmask.model.build import build_model
from embedmask.structures import ImageBatch

SCORES = ("product", "root")
CONFIGS: dict[str, DetectorConfig] = {
    f"{preset}, {score}{', rescored' if rescored else ''}": small_config(
        preset=preset, score=score, rescore_masks=rescored, image_short_side=64, image_long_side=128,
        max_detections=60,
        embed_channels=None if PRESETS[preset].get("embed_channels") is None else 16,
    )
    for preset in PRESETS
    for score in SCORES
    for rescored in (False, True)
}  # fmt: skip
CONFIGS["Mask R-CNN"] = small_baseline(max_detections=12)


@torch.no_grad()
def spread_scores(model: Any) -> None:
    """Make untrained class scores vary between 0 and 1, and boxes cover several cells."""
    layer = model.head.class_logits if hasattr(model, "head") else model.roi_heads.box_predictor.cls_score
    layer.bias.zero_()
    layer.weight.normal_(std=0.4)
    if hasattr(model, "head"):
        model.head.box.bias.fill_(2.0)


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    torch.manual_seed(0)
    model = build_model(CONFIGS[request.param])
    spread_scores(model)
    made = Predictor(model, NAMES, device="cpu", precision="float32")
    if isinstance(made.model.config, ModelConfig):
        made.network = cached(made.network)
    return made


def cached(network: Any) -> Any:
    """Cache the results of a network by batch, since thresholds apply after it."""
    known: dict[bytes, Any] = {}

    def run(batch: ImageBatch) -> Any:
        key = batch.tensors.numpy().tobytes()
        if key not in known:
            known[key] = network(batch)
        return known[key]

    return run


def random_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 93, 3), dtype=np.uint8)


def levels(everything: sv.Detections) -> list[float]:
    """Return thresholds between the scores and equal to some of them; an equal score passes."""
    assert everything.confidence is not None
    on = everything.confidence[[len(everything) // 4, len(everything) // 2]].tolist()
    return [*on, *np.quantile(everything.confidence, (0.6, 0.9)).tolist(), 0.3, 1.0]


@pytest.mark.parametrize("options", [{}, {"max_detections": 7}, {"tile": 64, "overlap": 16}], ids=str)
def test_threshold_filters_final_scores(predictor: Predictor, options: dict[str, Any]) -> None:
    everything = predictor(random_image(), score_threshold=0.0, **options)
    assert everything.confidence is not None
    assert len(everything) >= 3
    for threshold in levels(everything):
        expected = everything[everything.confidence >= np.float32(threshold)]
        assert same(predictor(random_image(), score_threshold=threshold, **options), expected), threshold


def test_all_methods_filter_alike(predictor: Predictor) -> None:
    image = torch.from_numpy(random_image()).permute(2, 0, 1)
    threshold = levels(predictor(image, score_threshold=0.0))[0]
    expected = predictor(image, score_threshold=threshold).confidence
    (actual,) = predictor.predict_instances([image], score_threshold=threshold)
    (streamed,) = predictor.predict_stream([image], score_threshold=threshold)
    assert streamed.instances is not None
    np.testing.assert_array_equal(actual.scores, expected)
    np.testing.assert_array_equal(streamed.instances.scores, expected)


@pytest.mark.parametrize(("score", "expected"), [("product", 0.35), ("root", 0.35**2)])
def test_candidate_threshold(score: str, expected: float) -> None:
    """Check that the threshold saves time and loses no result."""
    threshold = ModelConfig.preset("paper", score=score).candidate_threshold_for(0.35)
    assert expected * (1 - 1e-5) < threshold < expected


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "0.5"])
def test_raises_on_invalid_threshold(value: Any) -> None:
    with pytest.raises(BadInput, match="score_threshold must be"):
        ModelConfig.preset("fused").candidate_threshold_for(value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.array([0.5, 0.5]), {"a": np.float64(0.5), "b": 0.5}])
def test_numbers_of_numpy_are_thresholds(value: Any) -> None:
    config = ModelConfig.preset("paper", num_classes=2)
    assert config.score_thresholds(value, ["a", "b"]) == (0.5, 0.5)
    with pytest.raises(BadInput, match=r"must be a number between 0 and 1, got '0\.3'"):
        config.score_thresholds("0.3")
