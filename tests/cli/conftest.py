"""Fixtures of the command line: a small data set, a recipe and a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_line import copy_with, make_findable, save_eager
from tiny_run import TINY

from embedmask.cli import main

RECIPE = {
    **TINY,
    "train": {"batch_size": 4, "max_steps": None, "epochs": 1, "pretrained": False, "workers": 0},
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert main(["data", "shapes", str(folder), "--train", "8", "--val", "3", "--size", "64"]) == 0
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


@pytest.fixture(scope="session")
def eager(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that has detections in every image."""
    return save_eager(shapes, tmp_path_factory.mktemp("weights") / "eager.safetensors")


@pytest.fixture(scope="session")
def findable(shapes: Path, eager: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set with objects in val that the eager model finds."""
    return make_findable(copy_with(shapes, tmp_path_factory.mktemp("findable"), lambda content: None), eager)
