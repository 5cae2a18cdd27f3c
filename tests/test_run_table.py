"""Tables of runs: rows by recipe and data, means and spreads over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import fails
from evaluation_scenes import make_truth

from embedmask.cli import main
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.run_table import COLUMNS, markdown_table, summarize_runs


def write_run(
    folder: Path, seed: int, ap: float, *, lr: float = 0.01, data: str = "a", images: str = "b",
    machine: str = "c", changes: dict[str, Any] | None = None, **metrics: Any,
) -> Path:  # fmt: skip
    """Write the files of a finished run; `--resume` made the changes to its training."""
    folder.mkdir(parents=True)
    recipe = {"model": {"embed_dim": 8}, "data": {}, "train": {"lr": lr, "seed": seed}}
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, "data": {"train": data}}))
    last = {**recipe, "train": {**recipe["train"], **(changes or {})}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(last))
    numbers = {"segm/AP": ap, "seconds": 1800.0, "kept": "last", "segm/AP_large": None, **metrics}
    (folder / "metrics.json").write_text(json.dumps(numbers))
    now = {"seed": seed, "machine": {"processor": machine}, "data": {"train": {"image files": images}}}
    (folder / "environment.json").write_text(json.dumps([{"seed": -1}, now]))
    return folder


def test_seeds_share_a_row(tmp_path: Path) -> None:
    aps = (0.30, 0.33, 0.36)
    runs = [
        write_run(tmp_path / f"big_seed{seed}", seed, ap, images_per_second=4) for seed, ap in enumerate(aps)
    ]
    other = write_run(tmp_path / "small", 0, 0.2, lr=0.02)
    rows = summarize_runs([runs[0], other, *runs[1:]])
    assert [row["name"] for row in rows] == ["big", "small"]
    assert rows[0]["seeds"] == [0, 1, 2]
    found = rows[0]["metrics"]["segm/AP"]
    assert found["values"] == list(aps)
    assert (found["mean"], found["spread"]) == (statistics.mean(aps), statistics.stdev(aps))
    assert rows[1]["metrics"]["segm/AP"] == {"mean": 0.2, "spread": None, "values": [0.2]}
    assert rows[0]["metrics"]["hours"]["mean"] == 0.5
    assert "segm/AP_large" not in rows[0]["metrics"]
    assert [start["seed"] for start in rows[0]["environments"]] == [0, 1, 2]
    assert markdown_table(rows).splitlines() == [
        "| run | seeds | mask AP | hours | images/s |",
        "| --- | --- | --- | --- | --- |",
        "| big | 0, 1, 2 | 33.0 ± 3.0 | 0.50 ± 0.00 | 4.00 ± 0.00 |",
        "| small | 0 | 20.0 | 0.50 | - |",
    ]


def test_columns_are_metrics_of_a_run() -> None:
    truth = make_truth([], {1: (10, 10)}, [1])
    known = {*CocoEvaluator(truth).compute(), "seconds_per_step", "images_per_second", "peak_gib", "hours"}
    assert set(COLUMNS) <= known


def test_different_machines_are_told(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"r_{seed}", seed, 0.2, machine=f"m{seed}") for seed in (0, 1)]
    last = markdown_table(summarize_runs(runs)).splitlines()[-1]
    assert last == "r: its runs differ in machine, versions or commit; --json lists them."


def test_other_data_is_another_row(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 0, 0.2, data=name) for name in ("a", "b")]
    assert len(summarize_runs(runs)) == 2
    assert len(summarize_runs([runs[0], runs[0]])) == 1
    # equal annotations, other images
    assert len(summarize_runs([runs[0], write_run(tmp_path / "c", 1, 0.2, data="a", images="x")])) == 2


def test_runs_of_different_length_are_different_rows(tmp_path: Path) -> None:
    longer = {"epochs": 48}
    runs = [
        write_run(tmp_path / "short", 0, 0.3, steps=1200),
        write_run(tmp_path / "long", 1, 0.4, changes=longer, steps=4800),
        write_run(tmp_path / "long_2", 2, 0.4, changes=longer, steps=4800),
        write_run(tmp_path / "being_extended", 3, 0.3, changes=longer, steps=1200),
    ]
    assert [row["seeds"] for row in summarize_runs(runs)] == [[0], [1, 2], [3]]


@pytest.mark.parametrize("end", ["early_stop", "max_minutes"])
def test_runs_that_end_by_themselves_share_a_row(end: str, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), seed, 0.3, changes={end: 3}, steps=100 + seed) for seed in (0, 1)]
    assert len(summarize_runs(runs)) == 1


def test_raises_on_the_same_run_twice(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 4, 0.2) for name in ("a", "b")]
    with pytest.raises(BadInput, match=r"/a and .*/b have the same recipe, data and seed"):
        summarize_runs(runs)


def test_command_prints_and_writes(tmp_path: Path, capsys: Any) -> None:
    runs = [str(write_run(tmp_path / f"r_{seed}", seed, 0.2 + seed / 10)) for seed in (0, 1)]
    out, table = tmp_path / "table.json", tmp_path / "table.md"
    assert main(["report", *runs, "--json", str(out), "--out", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "| r | 0, 1 | 25.0 ± 7.1 |" in printed
    assert table.read_text() == printed
    assert json.loads(out.read_text()) == summarize_runs([Path(run) for run in runs])


def test_raises_on_other_folders(tmp_path: Path, capsys: Any) -> None:
    assert "not a finished run, it has no run.json" in fails(capsys, "report", tmp_path)
    (tmp_path / "a.json").write_text("{}")
    assert fails(capsys, "report", tmp_path / "a.json").endswith(
        "a.json: is a file; choose the folder of a run"
    )
    run = write_run(tmp_path / "run", 0, 0.2)
    (run / "metrics.json").unlink()
    assert fails(capsys, "report", run).endswith("run: not a finished run, it has no metrics.json")
    (run / "metrics.json").write_text("{")
    assert "metrics.json: cannot be read" in fails(capsys, "report", run)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "{}"),
        ("run.json", "[]"),
        ("metrics.json", "{}"),
        ("recipe.yaml", "{}"),
        ("environment.json", "[]"),
        ("environment.json", "[1]"),
    ],
)
def test_raises_on_damaged_files(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", 0, 0.5)
    (run / name).write_text(content)
    line = fails(capsys, "report", run)
    assert line.startswith(f"embedmask: {run}: ")
    assert "damaged" in line
