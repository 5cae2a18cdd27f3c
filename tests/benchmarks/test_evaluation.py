"""The evaluation benchmark: what it generates is what it says, and both sides can measure it."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import load_script

from embedmask.evaluation.coco import CocoEvaluator

benchmark = load_script("evaluation")


def test_generated_results_can_be_measured(tmp_path: Path) -> None:
    truth, results = benchmark.generate(4, 30, 20)
    assert (len(truth["images"]), len(truth["annotations"])) == (4, 30)
    assert 60 <= len(results) <= 80  # what lies outside the image is left out
    evaluator = CocoEvaluator(truth)
    evaluator.add(results)
    assert 0 < evaluator.compute()["boundary/AP"] < 1
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    for work in (benchmark.ours, benchmark.library):
        figures = benchmark.measure(work, tmp_path)
        assert figures.keys() == {"seconds", "processor_seconds", "peak_gb"}
