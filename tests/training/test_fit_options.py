"""Options of the training: evaluations, time limits, the weights that are kept, accumulation, clipping."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from safetensors.torch import load_file
from tiny_run import tiny
from torch import Tensor

from embedmask.config import Recipe
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.inference.engines import Network, make_network
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import fit
from embedmask.training.callbacks import BEST_METRIC, ResultsFolder
from embedmask.training.module import EmbedMaskModule


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=10, val=3, size=64, seed=0)
    return folder


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_evaluation_uses_the_saved_weights(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema_decay: float | None
) -> None:
    """Check that an evaluation copies the (averaged) weights that it saves, and drops the copy."""
    weights, modules = [], []

    def record(model: Detector, dtype: torch.dtype) -> Network:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})
        return make_network(model, dtype=dtype)

    class Recorded(EmbedMaskModule):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            modules.append(self)

    monkeypatch.setattr("embedmask.training.module.make_network", record)
    monkeypatch.setattr(fit, "EmbedMaskModule", Recorded)
    fit.train(tiny(epochs=2, ema_decay=ema_decay), shapes, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "last.safetensors")
    assert len(weights) == 2
    assert not torch.equal(weights[0]["head.box.weight"], weights[1]["head.box.weight"])
    assert all(torch.equal(weights[1][name], value) for name, value in saved.items())
    assert modules[0].detect is None


def test_run_is_evaluated_at_the_end_if_no_epoch_was(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny(epochs=None, max_steps=2, eval_every=5, ema_decay=None)
    lines: list[str] = []
    metrics = fit.train(recipe, shapes, tmp_path / "run", report=lines.append)
    assert metrics["steps"] == 2
    assert "segm/AP" in metrics
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert row["segm/AP"]
    assert [line.split()[0] for line in lines[2:]] == ["epoch", "score", "mask"]  # the epoch is reported once
    assert "the only evaluated, step 2" in lines[-1]


@pytest.mark.parametrize(("minutes", "evaluated"), [(60, [4]), (1e-9, [2, 4]), (None, [2, 4])])
def test_evaluations_wait_for_the_clock(
    shapes: Path, tmp_path: Path, minutes: float | None, evaluated: list[int]
) -> None:
    """The interval in epochs still holds, and the last weights are evaluated however little time has passed."""
    recipe = tiny(epochs=4, eval_every=2, eval_minutes=minutes, ema_decay=None)
    fit.train(recipe, shapes, tmp_path / "run")
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [int(row["epoch"]) for row in rows if row["segm/AP"]] == evaluated


def test_time_limit_stops_the_run_after_an_evaluation(shapes: Path, tmp_path: Path) -> None:
    metrics = fit.train(tiny(epochs=500, max_minutes=0.001), shapes, tmp_path / "run")
    assert metrics["steps"] < 100
    assert "segm/AP" in metrics


@pytest.mark.parametrize(
    ("keep", "ap", "origin"), [("best", 0.3, "best of 3 evaluations, step 6"), ("last", 0.2, "last, step 9")]
)
def test_origin_of_the_saved_weights_is_reported(
    keep: str, ap: float, origin: str, *, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = iter([0.1, 0.3, 0.2])
    monkeypatch.setattr(
        ResultsFolder, "_measure", lambda self, results: {BEST_METRIC: next(aps), "bbox/AP": 0}
    )
    out, lines = tmp_path / "run", []
    metrics = fit.train(tiny(epochs=3, keep=keep), shapes, out, report=lines.append)
    assert (out / "model.safetensors").read_bytes() == (out / f"{keep}.safetensors").read_bytes()
    assert (out / "best.safetensors").read_bytes() != (out / "last.safetensors").read_bytes()
    assert metrics[BEST_METRIC] == json.loads((out / "metrics.json").read_text())[BEST_METRIC] == ap
    assert f"{metrics['kept']}, step {metrics['kept_step']}" == origin
    assert f" · {origin} · " in lines[-1]


def test_early_stop_counts_evaluations_without_improvement(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aps = iter([0.1, 0.3, 0.2, 0.3, 0.5])
    monkeypatch.setattr(
        ResultsFolder, "_measure", lambda self, results: {BEST_METRIC: next(aps), "bbox/AP": 0}
    )
    recipe = tiny(epochs=9, early_stop=2)
    metrics = fit.train(recipe, shapes, tmp_path / "run")
    assert (metrics["epochs"], metrics[BEST_METRIC]) == (4, 0.3)
    assert fit.train(recipe, shapes, tmp_path / "run", resume=True)["epochs"] == 4


def test_accumulation_with_reduced_precision_trains(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny(accumulate=2, precision="bfloat16", epochs=1, clip_norm=1.0)
    assert fit.train(recipe, shapes, tmp_path / "run")["steps"] == 3
    (row,) = csv.DictReader((tmp_path / "run" / "metrics.csv").open())
    assert 0 < float(row["loss/total"]) < 20


def test_last_step_of_an_epoch_is_the_mean_of_fewer_parts(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a gradient of 1 in every part, each step changes the bias by the learning rate."""

    def bias(module: EmbedMaskModule, batch: Any) -> dict[str, Tensor]:
        del batch
        return {"classification": module.model.head.class_logits.bias.sum()}

    monkeypatch.setattr(EmbedMaskModule, "compute_losses", bias)
    recipe = tiny(
        accumulate=2, batch_size=4, epochs=1, optimizer="sgd", momentum=0.0, weight_decay=0, bias_lr_factor=1,
        clip_norm=None, ema_decay=None,
    )  # fmt: skip
    fit.train(recipe, shapes, tmp_path / "run", device="cpu")
    rates = [float(row["lr"]) for row in csv.DictReader((tmp_path / "run" / "steps.csv").open())]
    model = build_model(Recipe.from_yaml(tmp_path / "run" / "recipe.yaml").model)
    last = load_file(tmp_path / "run" / "last.safetensors")["head.class_logits.bias"]
    parts = -(-len(CocoInstances.open(shapes, "train")) // 2)
    assert parts % 2 == 1, "an even number of parts would test nothing"
    assert len(rates) == (parts + 1) // 2
    torch.testing.assert_close(last, model.head.class_logits.bias.detach() - sum(rates))


def test_gradient_clipping_bounds_the_step(shapes: Path, tmp_path: Path) -> None:
    for name, norm in (("free", None), ("bound", 1e-12)):
        fit.train(tiny(epochs=1, ema_decay=None, weight_decay=0, clip_norm=norm), shapes, tmp_path / name)
    free, bound = (load_file(tmp_path / name / "last.safetensors") for name in ("free", "bound"))
    name = "head.class_logits.bias"  # initialized to one value
    assert bound[name].unique().numel() == 1
    assert free[name].unique().numel() > 1


def test_raises_on_float16_on_the_cpu(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="use bfloat16 or float32"):
        fit.train(tiny(precision="float16"), shapes, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_raises_on_a_removed_folder(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(fit, "TensorBoardLogger", lambda *args, **options: DummyLogger())

    def report(line: str) -> None:
        if line.startswith("epoch 1"):
            shutil.rmtree(out)

    with pytest.raises(BadInput, match=r"run.*: removed during training"):
        fit.train(tiny(epochs=2), shapes, out, device="cpu", report=report)
