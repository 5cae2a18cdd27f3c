"""Code blocks of README and docs: the Python code runs, and the commands are valid."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import resolve
from PIL import Image

from embedmask.cli import main
from embedmask.cli.commands import COMMANDS
from embedmask.synthetic.dataset import make_shapes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README, PREDICTING, TRAIN, FIGURES, MICROSCOPY = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/predicting.md", "docs/train.md", "docs/figures.md", "docs/microscopy.md")
)


def python_of(text: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return code


def commands_of(text: str) -> list[str]:
    blocks = re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)
    lines = [line.split("#")[0].strip() for kind, block in blocks if not kind for line in block.splitlines()]
    return [line for line in lines if line.startswith("embedmask ")]


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run both blocks in order: README writes the model that docs/predicting.md loads."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "a.jpg", "b.png", "slide.tif"):
        Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save(name)
    names: dict[str, object] = {}
    exec(python_of(README), names)
    assert hasattr(names["detections"], "xyxy")
    assert (tmp_path / "model.safetensors").is_file()
    exec(python_of(PREDICTING), names)
    assert names["with_embeddings"].shape[1:] == (32,)
    exec(python_of(FIGURES), names)
    assert names["p"].shape[0] == names["q"].shape[1] == 16
    assert set(names["panels"]) == {"image", "proposal_embed", "pixel_embed", "margin"}


def test_python_of_microscopy_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((60, 80, 3), 128, np.uint8)).save("cells.png")
    exec(python_of(MICROSCOPY), {})
    assert json.loads((tmp_path / "cells.geojson").read_text())["type"] == "FeatureCollection"


@pytest.mark.parametrize(
    "line", [line for page in PAGES for line in commands_of(page.read_text(encoding="utf-8"))]
)
def test_commands_name_known_options_recipes_and_fields(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    resolve(line)


def test_steps_of_docs_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run every command of docs/train.md in order, on fewer and smaller images and for two steps."""
    monkeypatch.chdir(tmp_path)
    make_shapes(tmp_path / "animals", train=4, val=2, size=64)
    # stands in for the file of the package, with timm's names
    backbone = timm.create_model("tf_efficientnet_lite0")
    torch.save(backbone.state_dict(), tmp_path / "efficientnet-lite0-57934424.pth")
    smaller = {"400": "16", "60": "4", "128": "64", "256": "64", "[224, 256, 288]": "[64]"}
    for line in commands_of(TRAIN):
        words = [smaller.get(word, word) for word in shlex.split(line)[1:]]
        if words[0] == "train":
            words += ["--train.epochs", "null", "--train.max_steps", "2", "--train.workers", "0"]
            words += ["--train.batch_size", "4"]
        assert main(words) == 0, line
    assert "training can start" in capsys.readouterr().out
    for made in (
        "look/train.png",
        "runs/objects/model.safetensors",
        "runs/report/index.html",
        "found/predictions.json",
        "runs/animals/model.safetensors",
        "runs/animals_report/index.html",
    ):
        assert (tmp_path / made).is_file(), made


def test_readme_shows_every_command() -> None:
    assert {line.split()[1] for line in commands_of(README)} == set(COMMANDS)


def test_links_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    missing = [link for link in links if not (Path(__file__).parents[1] / link).exists()]
    assert not missing
