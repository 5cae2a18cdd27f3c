"""`embedmask convert`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_line import fails
from golden_files import official_shapes

from embedmask.cli import main
from embedmask.weights.checkpoint import load_checkpoint


def test_raises_on_files_that_would_execute_code(tmp_path: Path, capsys: Any) -> None:
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return Path.touch, (trap,)  # type: ignore[return-value]

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"model": Trap()}))
    torch.save({"model": Trap()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        out = tmp_path / "o.safetensors"
        assert name in fails(capsys, "convert", tmp_path / name, "--out", out)
        assert not out.exists()
        assert not trap.exists()


def test_authors_checkpoint(tmp_path: Path) -> None:
    """Test the authors' layout: a state dict under "model", with prefixed names."""
    official = {f"module.{name}": torch.zeros(shape) for name, shape in official_shapes("v3", "r50").items()}
    torch.save({"model": official, "iteration": 90000}, tmp_path / "R50.pth")
    assert main(["convert", str(tmp_path / "R50.pth"), "--out", str(tmp_path / "o.safetensors")]) == 0
    checkpoint = load_checkpoint(tmp_path / "o.safetensors")
    assert checkpoint.config.coordinates
    assert len(checkpoint.class_names) == 80


def test_raises_on_other_files(tmp_path: Path, capsys: Any) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    out = tmp_path / "o.safetensors"
    fails(capsys, "convert", tmp_path / "other.pth", "--out", out)
    assert "safetensors" in fails(capsys, "convert", tmp_path / "other.pth", "--out", tmp_path / "o.pth")
    assert "no such" in fails(capsys, "convert", tmp_path / "absent.pth", "--out", out)
    assert not out.exists()
