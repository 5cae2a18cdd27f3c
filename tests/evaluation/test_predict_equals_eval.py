"""Predictor and `embedmask predict` return the results that `embedmask eval` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedmask import Predictor
from embedmask.cli import main
from embedmask.data.coco import CocoInstances
from embedmask.evaluation import run
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.inference.results import coco_results

SIDE = 96
SETTINGS: dict[str, Any] = {"device": "cpu", "precision": "float32"}


def write_nuclei(folder: Path, count: int = 4) -> Path:
    """Write images of soft bright discs of varying contrast, some of which touch, with their label images."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for name in ("images", "masks"):
        (folder / "val" / name).mkdir(parents=True)
    for number in range(count):
        image, labels = rng.normal(12, 2, (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint16)
        for label in range(1, 15):
            (cx, cy), radius = rng.uniform(8, SIDE - 8, 2), rng.uniform(5, 12)
            distance = np.hypot(x - cx, y - cy) / radius
            image += rng.uniform(10, 120) * np.clip(1.4 - distance, 0, 1)
            labels[distance < 1] = label
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "val" / "images" / f"{number}.png")
        Image.fromarray(labels).save(folder / "val" / "masks" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nuclei(tmp_path_factory.mktemp("data") / "nuclei")


@pytest.fixture(scope="module")
def measured(nuclei: Path) -> CocoEvaluator:
    """Return the evaluator that `embedmask eval` uses."""
    evaluators: list[CocoEvaluator] = []

    class Recorded(CocoEvaluator):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            evaluators.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CocoEvaluator", Recorded)
        run.evaluate_weights(Path("nuclei"), CocoInstances.open(nuclei, "val"), **SETTINGS)
    return evaluators[0]


@pytest.mark.parametrize("threshold", [None, 0.23, 0.5, 0.6])
def test_predictor_returns_the_results_that_eval_measures(
    nuclei: Path, measured: CocoEvaluator, threshold: float | None
) -> None:
    dataset = CocoInstances.open(nuclei, "val")
    predictor = Predictor.load("nuclei", **SETTINGS)
    (level,) = predictor.model.config.score_thresholds(threshold)
    evaluator = CocoEvaluator(dataset.ground_truth, predictor.model.config.max_detections)
    streamed = predictor.predict_stream(
        map(dataset.image_path, range(len(dataset))), score_threshold=threshold
    )
    for image_id, result in zip(dataset.image_ids, streamed, strict=True):
        assert result.instances is not None
        evaluator.add(coco_results(result.instances, image_id, dataset.category_ids))
    expected = [result for result in measured.results if result["score"] >= level]
    assert len(expected) > 5
    assert len(evaluator.results) == len(expected)
    for found, other in zip(evaluator.results, expected, strict=True):
        assert found["score"] == pytest.approx(other["score"], abs=1e-4)
        assert found["bbox"] == pytest.approx(other["bbox"], abs=0.01)
    key = "matching/mAP"
    assert matching_metrics(evaluator, level)[key] == pytest.approx(
        matching_metrics(measured, level)[key], abs=1e-6
    )


def test_predict_and_eval_agree(nuclei: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`embedmask predict` with its defaults, against `embedmask eval` with its own."""
    common = ["--weights", "nuclei", "--device", "cpu", "--precision", "float32"]
    metrics, out = tmp_path / "metrics.json", tmp_path / "out"
    assert main(["eval", "--data", str(nuclei), "--json", str(metrics), *common]) == 0
    images = nuclei / "val" / "images"
    assert main(["predict", str(images), "--out", str(out), "--no-draw", *common]) == 0
    capsys.readouterr()
    dataset = CocoInstances.open(nuclei, "val")
    names = {
        row["id"]: Path(row["file_name"]).name
        for row in json.loads((out / "images.json").read_text())["images"]
    }
    own = {dataset.image_path(i).name: image_id for i, image_id in enumerate(dataset.image_ids)}
    evaluator = CocoEvaluator(dataset.ground_truth, 1000)
    results = json.loads((out / "predictions.json").read_text())
    category = dataset.category_ids[0]
    evaluator.add(
        {**row, "image_id": own[names[row["image_id"]]], "category_id": category} for row in results
    )
    found, expected = matching_metrics(evaluator, 0.0), json.loads(metrics.read_text())
    for name, value in found.items():
        assert expected[name] == pytest.approx(value, abs=1e-6), name
    assert 0.2 < found["matching/mAP"] < 1
    assert min(row["score"] for row in results) >= 0.35
