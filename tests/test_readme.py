"""The README's Python runs as it stands, and its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedmask.cli.commands import COMMANDS
from embedmask.cli.parser import build_parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("#")[0].strip() for language, block in BLOCKS if not language for line in block.splitlines()
]
COMMAND_LINES = [line for line in LINES if line.startswith("embedmask ")]


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for language, block in BLOCKS if language == "python"]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save("photo.jpg")
    names: dict[str, object] = {}
    exec(code, names)
    assert hasattr(names["detections"], "xyxy")
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_are_understood(line: str) -> None:
    build_parser(COMMANDS).parse_args(shlex.split(line)[1:])


def test_each_command_is_shown() -> None:
    assert {line.split()[1] for line in COMMAND_LINES} == set(COMMANDS)


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    missing = [link for link in links if not (Path(__file__).parents[1] / link).exists()]
    assert not missing
