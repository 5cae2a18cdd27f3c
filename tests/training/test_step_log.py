"""Rows of `steps.csv`, also of a resumed run, and lines of progress."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import tiny

from embedmask.config import Recipe, override
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import step_log
from embedmask.training.fit import train
from embedmask.training.step_log import StepLog


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=6, val=1, size=64, seed=0)
    return folder


def recipe(**changes: Any) -> Recipe:
    base = tiny()
    values = {"batch_size": 2, "max_steps": None, "epochs": 2, "workers": 0, "eval_every": 2, **changes}
    return Recipe(model=base.model, data=base.data, train=override(base.train, values, where="train"))


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "steps.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_step_has_a_row(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    lines: list[str] = []
    train(recipe(), shapes, out, device="cpu", report=lines.append)
    rows = rows_of(out)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row["epoch"] for row in rows] == ["1"] * 3 + ["2"] * 3
    assert all(float(row["seconds"]) > 0 and float(row["images_per_second"]) > 0 for row in rows)
    metrics = list(csv.DictReader((out / "metrics.csv").open()))
    means = [sum(float(row["loss/total"]) for row in rows[i : i + 3]) / 3 for i in (0, 3)]
    assert means == pytest.approx([float(row["loss/total"]) for row in metrics], rel=1e-4)
    assert not any(line.startswith("step ") for line in lines)  # it took less than a minute


def test_resumed_run_appends_to_its_rows(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(recipe(epochs=1, eval_every=1), shapes, out, device="cpu", report=lambda line: None)
    text = (out / "steps.csv").read_text()
    (out / "steps.csv").write_text(
        text + text.splitlines()[-1].replace("3,", "4,", 1) + "\n3,2"
    )  # a step after the checkpoint, and an incomplete row
    train(recipe(), shapes, out, resume=True, device="cpu", report=lambda line: None)
    rows = rows_of(out)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert (out / "steps.csv").read_text().startswith(text)


def test_accumulated_parts_share_a_row(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(recipe(epochs=1, accumulate=2), shapes, out, device="cpu", report=lambda line: None)
    assert [row["step"] for row in rows_of(out)] == ["1", "2", "3"]


@pytest.mark.parametrize("length", [{"epochs": 1}, {"epochs": None, "max_steps": 3}])
def test_progress_line(
    length: dict[str, Any], shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_log, "LINE_SECONDS", 0.0)
    lines: list[str] = []
    train(recipe(**length), shapes, tmp_path / "run", device="cpu", report=lines.append)
    parts = [line.split(" · ") for line in lines if line.startswith("step ")]
    assert [line[0] for line in parts] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert parts[0][1].startswith("loss ")
    assert parts[0][3].endswith(" images/s")
    assert parts[2][-1] == "0 s left"


def test_images_of_an_incomplete_batch_are_counted(shapes: Path, tmp_path: Path) -> None:
    train(recipe(batch_size=4), shapes, tmp_path / "run", device="cpu")
    images = [float(row["images_per_second"]) * float(row["seconds"]) for row in rows_of(tmp_path / "run")]
    assert images == pytest.approx([4, 2, 4, 2], rel=1e-4)


def test_other_ranks_store_nothing(tmp_path: Path) -> None:
    log, module = StepLog(tmp_path / "steps.csv", None), SimpleNamespace()
    trainer: Any = SimpleNamespace(is_global_zero=False, global_step=0, accumulate_grad_batches=1)
    log.on_train_start(trainer, module)  # type: ignore[arg-type]
    before = repr(vars(log))
    for batch_idx in range(3):
        log.on_train_batch_end(trainer, module, {"losses": {"total": 1.0}, "lr": 0.1}, None, batch_idx)  # type: ignore[arg-type]
    assert repr(vars(log)) == before
    assert list(tmp_path.iterdir()) == []
