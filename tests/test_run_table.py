"""Tables of runs: rows by recipe and data, means and spreads over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from command_line import fails

from embedmask.cli import main
from embedmask.errors import BadInput
from embedmask.run_table import markdown_table, summarize_runs


def write_run(
    folder: Path, seed: int, ap: float, *, lr: float = 0.01, data: str = "a", **metrics: Any
) -> Path:
    """Write the files of a finished run."""
    folder.mkdir(parents=True)
    recipe = {"model": {"embed_dim": 8}, "data": {}, "train": {"lr": lr, "seed": seed}}
    (folder / "run.json").write_text(json.dumps({"recipe": recipe, "data": {"train": data}}))
    numbers = {"segm/AP": ap, "seconds": 1800.0, "kept": "last", "segm/APl": None, **metrics}
    (folder / "metrics.json").write_text(json.dumps(numbers))
    (folder / "environment.json").write_text(json.dumps([{"seed": -1}, {"seed": seed}]))
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
    assert "segm/APl" not in rows[0]["metrics"]
    assert rows[0]["environments"] == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert markdown_table(rows).splitlines() == [
        "| run | seeds | mask AP | hours | images/s |",
        "| --- | --- | --- | --- | --- |",
        "| big | 0, 1, 2 | 33.0 ± 3.0 | 0.50 ± 0.00 | 4.00 ± 0.00 |",
        "| small | 0 | 20.0 | 0.50 | - |",
    ]


def test_other_data_is_another_row(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 0, 0.2, data=name) for name in ("a", "b")]
    assert len(summarize_runs(runs)) == 2
    assert len(summarize_runs([runs[0], runs[0]])) == 1


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
    run = write_run(tmp_path / "run", 0, 0.2)
    (run / "metrics.json").unlink()
    assert fails(capsys, "report", run).endswith("run: not a finished run, it has no metrics.json")
    (run / "metrics.json").write_text("{")
    assert "metrics.json: cannot be read" in fails(capsys, "report", run)
