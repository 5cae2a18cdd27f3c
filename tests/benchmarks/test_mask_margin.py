"""The script mask_margin.py: at a model's own margin it measures the AP of evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import make_findable, save_eager
from scripts import load_script

from embedmask import Predictor
from embedmask.data.coco import CocoInstances
from embedmask.evaluation.run import evaluate_weights
from embedmask.synthetic.dataset import make_shapes

mask_margin = load_script("mask_margin")


def test_own_margin_gives_the_ap_of_evaluation(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_shapes(data, train=1, val=3, size=64, seed=0)
    weights = save_eager(data, tmp_path / "model.safetensors")
    dataset = CocoInstances.open(make_findable(data, weights), "val")
    predictor = Predictor.load(weights, device="cpu", precision="float32")
    own, _ = predictor.model.config.mask_reach
    measured = mask_margin.measure(predictor, dataset, [own, 0.0])
    expected = evaluate_weights(weights, dataset, device="cpu", precision="float32")
    for name in mask_margin.METRICS:
        assert measured[own][0][name] == pytest.approx(expected[name], abs=1e-6)
    assert measured[own][0]["segm/AP"] > measured[0.0][0]["segm/AP"]
    assert all(seconds > 0 for _, seconds in measured.values())
