"""The results folder's rows and lines, and the moving average's rule."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from embedmask.training.callbacks import RisingDecay, summary_line, write_csv


def test_csv_keeps_columns_that_come_late(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_csv([{"epoch": 1, "loss/total": 2.5}, {"epoch": 2, "loss/total": 2.0, "segm/AP": 0.25}], path)
    rows = list(csv.DictReader(path.open()))
    assert rows[0] == {"epoch": "1", "loss/total": "2.5", "segm/AP": ""}
    assert rows[1] == {"epoch": "2", "loss/total": "2", "segm/AP": "0.25"}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_summary_line_is_one_line_with_loss_and_ap() -> None:
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


def test_summary_line_without_evaluation_names_no_ap() -> None:
    assert "AP" not in summary_line({"epoch": 1.0, "step": 1.0, "seconds": 1.0, "loss/total": 1.0})


def test_decay_rises_to_its_bound() -> None:
    decay = RisingDecay(0.9)
    average, current = torch.zeros(1), torch.ones(1)
    early = decay(average, current, 1)
    late = decay(average, current, 10_000)
    assert early.item() == pytest.approx(1 - 2 / 11)
    assert late.item() == pytest.approx(0.1)


def test_average_of_counters_is_the_newest() -> None:
    newest = RisingDecay(0.9)(torch.tensor(3), torch.tensor(8), 5)
    assert newest.item() == 8
