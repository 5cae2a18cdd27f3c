"""Rows and lines of the results folder, and the decay of the moving average."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_scenes import as_annotation, as_result, ellipse, make_truth
from lightning.pytorch.trainer.states import TrainerFn
from tiny_run import tiny

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.training import callbacks
from embedmask.training.callbacks import (
    BEST_METRIC,
    ResultsFolder,
    read_evaluation,
    summary_line,
    update_average,
    write_csv,
)
from embedmask.training.module import EmbedMaskModule
from embedmask.weights.checkpoint import load, load_checkpoint, save


def test_csv_includes_columns_of_later_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_csv([{"epoch": 1, "loss/total": 2.5}, {"epoch": 2, "loss/total": 2.0, "segm/AP": 0.25}], path)
    rows = list(csv.DictReader(path.open()))
    assert rows[0] == {"epoch": "1", "loss/total": "2.5", "segm/AP": ""}
    assert rows[1] == {"epoch": "2", "loss/total": "2", "segm/AP": "0.25"}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_summary_line_contains_loss_and_ap() -> None:
    row = {
        "epoch": 3.0,
        "step": 30.0,
        "seconds": 12.3,
        "loss/total": 1.5,
        "loss/mask": 0.25,
        "segm/AP": 0.512,
    }
    line = summary_line(row)
    assert "\n" not in line
    for part in ("epoch 3", "step 30", "1.500", "mask 0.250", "mask AP 51.2", "12 s"):
        assert part in line


def test_summary_line_without_evaluation_has_no_ap() -> None:
    assert "AP" not in summary_line({"epoch": 1.0, "step": 1.0, "seconds": 1.0, "loss/total": 1.0})


def fitting_trainer(**attributes: Any) -> Any:
    """Return the part of a trainer in training that `ResultsFolder` reads, with the given attributes."""
    return SimpleNamespace(
        strategy=SimpleNamespace(broadcast=lambda value: value),
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        loggers=[],
        **attributes,
    )


def test_image_evaluated_by_two_processes_counts_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    added: list[dict[str, Any]] = []
    evaluator: Any = SimpleNamespace(reset=added.clear, add=added.extend, compute=lambda: {"segm/AP": 0.5})
    trainer = fitting_trainer(global_step=1, is_global_zero=False)
    choice = SimpleNamespace(metrics=dict)
    monkeypatch.setattr(callbacks, "choose_thresholds", lambda evaluator, per_class: choice)
    results = ResultsFolder(tmp_path, tiny(), evaluator, ["one"], lambda line: None)
    module: Any = None
    rows = {7: [{"image_id": 7}, {"image_id": 7}], 9: [{"image_id": 9}], 8: []}
    results.on_validation_batch_end(trainer, module, {"results": list(rows.items())}, None, 0)
    monkeypatch.setattr(callbacks, "gather", lambda items: [*items, items[0]])
    results.on_validation_epoch_end(trainer, module)
    assert [row["image_id"] for row in added] == [7, 7, 9]
    assert results.best == {"segm/AP": 0.5}


def test_decay_rises_to_its_maximum() -> None:
    early, late, current = [torch.zeros(1)], [torch.zeros(1), torch.zeros(2)], [torch.ones(1), torch.ones(2)]
    update_average(0.9, early, current[:1], 1)
    update_average(0.9, late, current, torch.tensor(10_000))
    assert early[0].item() == pytest.approx(1 - 2 / 11)
    assert torch.cat(late).tolist() == pytest.approx([0.1] * 3)


def test_integer_buffers_are_copied() -> None:
    newest = [torch.tensor(3)]
    update_average(0.9, newest, [torch.tensor(8)], 5)
    assert newest[0].item() == 8


def test_resumed_run_reads_the_metrics_of_newer_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeat evaluations after a checkpoint: the best file stays, and early stopping is not affected."""
    module = EmbedMaskModule(tiny({"num_classes": 1}, early_stop=1), [1])
    trainer = fitting_trainer(is_global_zero=True, should_stop=False)

    def evaluate(results: ResultsFolder, step: int, ap: float) -> None:
        trainer.global_step = step
        monkeypatch.setattr(results, "_measure", lambda _: {BEST_METRIC: ap, "segm/AP_large": math.nan})
        results.on_validation_epoch_end(trainer, module)
        results.on_train_epoch_end(trainer, module)

    killed, resumed = (ResultsFolder(tmp_path, module.recipe, None, ["one"], print) for _ in range(2))
    evaluate(killed, 2, 0.3)
    checkpoint = copy.deepcopy(killed.state_dict())
    evaluate(killed, 4, 0.4)
    evaluate(killed, 6, 0.6)
    best = (tmp_path / "best.safetensors").read_bytes()
    resumed.load_state_dict(checkpoint)
    evaluate(resumed, 4, 0.4)
    evaluate(resumed, 6, 0.6)
    assert not trainer.should_stop
    assert resumed.kept == killed.kept
    assert (resumed.kept["kept"], resumed.kept["kept_step"]) == ("best of 3 evaluations", 6)
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_best_file_holds_the_weights_and_their_evaluation(tmp_path: Path) -> None:
    model, evaluation = (
        EmbedMaskModule(tiny({"num_classes": 1}), [1]).model,
        {"step": 3, "metrics": {"a": 0.1}},
    )
    last, best = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    save(model, last, class_names=["é"])
    save(model, best, class_names=["é"], metadata={callbacks.EVALUATION: json.dumps(evaluation)})
    assert read_evaluation(best) == evaluation
    assert read_evaluation(last) is None
    assert read_evaluation(tmp_path / "missing.safetensors") is None
    first, second = (load(path).state_dict() for path in (last, best))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("model", "train", "expected"),
    [
        ({}, {}, (0.7, 0.7)),
        ({}, {"class_thresholds": True}, (0.5, 0.7)),
        ({"default_score_threshold": 0.2}, {"class_thresholds": True}, (0.2, 0.2)),
    ],
)
def test_best_score_threshold_is_stored(
    tmp_path: Path, model: dict[str, Any], train: dict[str, Any], expected: tuple[float, float]
) -> None:
    """Class 1 has a correct result of 0.8 and a wrong one of 0.2; class 2 the same with 0.8 and 0.6."""
    trainer = fitting_trainer(global_step=1, is_global_zero=True, should_stop=False)
    mask, wrong = ellipse((40, 50), (20, 12), (8, 8)), ellipse((40, 50), (20, 38), (8, 8))
    gts = [as_annotation(number, 1, number, mask) for number in (1, 2)]
    results = [
        as_result(1, category, found, score)
        for category, found, score in ((1, mask, 0.8), (1, wrong, 0.2), (2, mask, 0.8), (2, wrong, 0.6))
    ]
    recipe = tiny({"num_classes": 2, **model}, **train)
    evaluator = CocoEvaluator(make_truth(gts, {1: (40, 50)}, [1, 2]))
    folder, module = (
        ResultsFolder(tmp_path, recipe, evaluator, ["one", "two"], print),
        EmbedMaskModule(recipe, [1, 2]),
    )
    folder.on_validation_batch_end(trainer, module, {"results": [(1, results)]}, None, 0)
    folder.on_validation_epoch_end(trainer, module)
    folder.on_train_epoch_end(trainer, module)
    for name in ("last", "best"):
        config = load_checkpoint(tmp_path / f"{name}.safetensors").config
        assert config.score_thresholds() == pytest.approx(expected)
