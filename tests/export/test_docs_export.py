"""docs/export.md: its lines without torch, and its commands with a model file, run on an exported file."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from embedmask import cli
from embedmask.runtime import main
from export.conftest import Exported, scene

TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
LINES = [
    line for _, block in re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]


def test_lines_without_torch_run(files: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").symlink_to(files.onnx)
    Image.fromarray(scene(90, 131)).save("photo.png")
    (command,) = [line for line in LINES if line.startswith("python -m embedmask.runtime ")]
    assert main(shlex.split(command)[3:]) == 0
    assert Path("results/predictions.json").is_file()
    assert Path("results/labels/photo.png").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["masks"].shape[1:] == (90, 131)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_commands_with_a_model_file_run(
    files: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that need neither a data set nor the released model, in their order."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(files.weights, "model.safetensors")
    Path("photos").mkdir()
    Image.fromarray(scene(90, 131)).save("photos/a.png")
    begin = ("embedmask export model.safetensors", "embedmask predict")
    commands = [line for line in LINES if line.startswith(begin) and "--int8" not in line]
    assert [cli.main(shlex.split(line)[1:]) for line in commands] == [0] * 4
    assert all(Path(name).is_file() for name in ("model.onnx", "dense.onnx", "model.xml", "model.bin"))
    assert Path("results/predictions.json").is_file()
