"""The script mask_margin.py: at a model's own margin it measures the AP of evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import save_eager
from scripts import load_script

from embedmask import Predictor
from embedmask.data.coco import CocoInstances
from embedmask.evaluation.run import evaluate_weights
from embedmask.synthetic.dataset import make_shapes

mask_margin = load_script("mask_margin")


def test_own_margin_gives_the_ap_of_evaluation(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=1, val=3, size=64, seed=0)
    weights = save_eager(tmp_path, tmp_path / "model.safetensors")
    dataset = CocoInstances.open(tmp_path, "val")
    predictor = Predictor.load(weights, device="cpu", precision="float32")
    own, _ = predictor.model.config.mask_reach
    measured = mask_margin.measure(predictor, dataset, [own, 0.9])
    expected = evaluate_weights(weights, dataset, device="cpu", precision="float32")
    for name in mask_margin.METRICS:
        assert measured[own][0][name] == pytest.approx(expected[name], abs=1e-6, nan_ok=True)
    assert all(seconds > 0 for _, seconds in measured.values())
