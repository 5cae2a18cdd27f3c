"""The evaluation benchmark: the generated files, and the evaluation of both implementations."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import load_script

from embedmask.evaluation.coco import CocoEvaluator

benchmark = load_script("evaluation")


def test_generated_results_can_be_measured(tmp_path: Path) -> None:
    ground_truth, results = benchmark.generate(4, 30, 20)
    assert (len(ground_truth["images"]), len(ground_truth["annotations"])) == (4, 30)
    assert 60 <= len(results) <= 80  # results outside the image are left out
    evaluator = CocoEvaluator(ground_truth)
    evaluator.add(results)
    assert 0 < evaluator.compute()["boundary/AP"] < 1
    (tmp_path / "ground_truth.json").write_text(json.dumps(ground_truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    for work in (benchmark.evaluate_embedmask, benchmark.evaluate_library):
        figures = benchmark.measure(work, tmp_path)
        assert figures.keys() == {"seconds", "processor_seconds", "peak_gb"}
