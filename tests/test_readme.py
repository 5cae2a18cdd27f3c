"""The Python of README and docs/predicting.md runs as it stands, and their commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedmask.cli.commands import COMMANDS
from embedmask.cli.parser import build_parser

ROOT = Path(__file__).parents[1]
README, PREDICTING = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/predicting.md")
)


def python_of(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def commands_of(text: str) -> list[str]:
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    lines = [line.split("#")[0].strip() for kind, block in blocks if not kind for line in block.splitlines()]
    return [line for line in lines if line.startswith("embedmask ")]


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other: the README leaves a model for the page on prediction."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "a.jpg", "b.png", "slide.tif"):
        Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save(name)
    names: dict[str, object] = {}
    exec(python_of(README), names)
    assert hasattr(names["detections"], "xyxy")
    assert (tmp_path / "model.safetensors").is_file()
    exec(python_of(PREDICTING), names)
    assert names["with_embeddings"].shape[1:] == (32,)


@pytest.mark.parametrize("line", commands_of(README) + commands_of(PREDICTING))
def test_commands_are_understood(line: str) -> None:
    build_parser(COMMANDS).parse_args(shlex.split(line)[1:])


def test_each_command_is_shown() -> None:
    assert {line.split()[1] for line in commands_of(README)} == set(COMMANDS)


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    missing = [link for link in links if not (Path(__file__).parents[1] / link).exists()]
    assert not missing
