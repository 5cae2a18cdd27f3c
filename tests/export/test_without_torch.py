"""The runtime where torch is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from PIL import Image

import embedmask
from embedmask.runtime import main
from export.conftest import Exported, scene

SRC = Path(embedmask.__file__).parents[1]
BLOCKED = (
    "torch",
    "torchvision",
    "timm",
    "supervision",
    "scipy",
    "tifffile",
    "jsonargparse",
    "yaml",
    "safetensors",
)
SCRIPT = f"""
import runpy, sys
for name in {BLOCKED}: sys.modules[name] = None
sys.argv = ["embedmask.runtime", *sys.argv[1:]]
runpy.run_module("embedmask.runtime", run_name="__main__")
"""


def prepare(files: Exported, folder: Path) -> list[str]:
    """Write an image and the expected results; return the words of the command."""
    Image.fromarray(scene(90, 131)).save(folder / "photo.png")
    words = [str(files.onnx), str(folder / "photo.png"), "--score-threshold", "0.05", "--out"]
    assert main([*words, str(folder / "expected")]) == 0
    return [*words, str(folder / "out")]


def check(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert done.returncode == 0, done.stderr
    found, expected = (
        json.loads((folder / name / "predictions.json").read_text()) for name in ("out", "expected")
    )
    assert found == expected
    assert len(found) >= 5
    photo = {"id": 1, "file_name": str(folder / "photo.png"), "height": 90, "width": 131}
    images = json.loads((folder / "out" / "images.json").read_text())
    assert images["images"] == [photo]
    assert [category["id"] for category in images["categories"]][:1] == [1]


def test_with_blocked_imports(files: Exported, tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, *prepare(files, tmp_path)]
    check(subprocess.run(words, capture_output=True, text=True, check=False), tmp_path)


@pytest.mark.parametrize("command", [["runtime.py"], ["-m", "copied.runtime"]])
def test_copied_files(files: Exported, tmp_path: Path, command: list[str]) -> None:
    """Beside each other, as scripts or in a package of any name."""
    folder = tmp_path / "copied" if "-m" in command else tmp_path
    folder.mkdir(exist_ok=True)
    for name in ("runtime.py", "runtime_file.py", "runtime_masks.py"):
        shutil.copy(SRC / "embedmask" / name, folder)
    words = [sys.executable, *command, *prepare(files, tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    check(done, tmp_path)


@pytest.mark.slow
def test_in_a_clean_environment(files: Exported, tmp_path: Path) -> None:
    """Only what docs/export.md installs; needs a package index."""
    venv.create(tmp_path / "env", with_pip=True)
    python = str(tmp_path / "env" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("no package index")
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    assert subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 1
    words = [python, "-m", "embedmask.runtime", *prepare(files, tmp_path)]
    check(subprocess.run(words, capture_output=True, text=True, check=False, env=environment), tmp_path)
