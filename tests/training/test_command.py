"""Output and exit codes of `embedmask train`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_run import TINY

from embedmask.cli import main
from embedmask.synthetic.dataset import make_shapes
from embedmask.training.module import EmbedMaskModule


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the command without a results folder."""
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
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dry_run_prints_the_duration_and_writes_nothing(command: list[str], here: Path, capsys: Any) -> None:
    assert main([*command, "--dry-run"]) == 0
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
        (["--out", "new", "--train.early_stop", "0"], "early_stop must be at least 1, or null"),
        (["--out", "new", "--resume"], "no run to resume"),
    ],
)
def test_invalid_options_print_one_line(
    command: list[str], more: list[str], message: str, here: Path, capsys: Any
) -> None:
    assert main([*command, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(here.iterdir()) == []


def test_non_finite_loss_prints_one_line_and_exits_with_1(
    command: list[str], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        EmbedMaskModule, "compute_losses", lambda self, batch: {"box": torch.tensor(math.nan)}
    )
    assert main([*command, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("embedmask: step 1: the loss is not finite (total nan, box nan); images ")
    assert error.count("\n") == 1
