"""`embedmask train` as it is typed: what it prints, where, and its exit code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_run import TINY

from embedmask.cli import main
from embedmask.data.shapes import make_shapes
from embedmask.training.module import EmbedMaskModule


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command without a results folder."""
    folder = tmp_path_factory.mktemp("command")
    make_shapes(folder / "shapes", train=6, val=2, size=64, seed=0)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return [
        "train",
        "--config",
        str(folder / "tiny.yaml"),
        "--data",
        str(folder / "shapes"),
        "--device",
        "cpu",
    ]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dry_run_says_how_long_and_writes_nothing(typed: list[str], here: Path, capsys: Any) -> None:
    assert main([*typed, "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "the run takes about" in printed.out
    assert "4 steps, 2 evaluations of 2 images" in printed.out
    assert printed.err == ""
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "missing: out"),
        (["--out", "new", "--devices", "0"], "--devices must be at least 1"),
        (["--out", "new", "--train.accumulate", "3"], "accumulate must be a divisor of batch_size 4"),
        (["--out", "new", "--train.early_stop", "0"], "early_stop must be above 0"),
        (["--out", "new", "--resume"], "no run to resume"),
    ],
)
def test_what_cannot_be_is_one_line(
    typed: list[str], more: list[str], message: str, here: Path, capsys: Any
) -> None:
    assert main([*typed, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_a_stopped_training_is_one_line_and_code_1(
    typed: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        EmbedMaskModule, "compute_losses", lambda self, batch: {"box": torch.tensor(math.nan)}
    )
    assert main([*typed, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("embedmask: step 1: the loss is not finite (total nan, box nan); images ")
    assert error.count("\n") == 1
