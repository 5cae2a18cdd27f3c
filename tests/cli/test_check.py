"""`embedmask data check` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from embedmask.cli import main
from embedmask.data.shapes import make_shapes


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    make_shapes(tmp_path / "shapes", train=8, val=2, size=64, seed=0)
    return tmp_path / "shapes"


def test_a_sound_set(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, report = tmp_path / "counts.png", tmp_path / "report.json"
    assert main(["data", "check", str(shapes), "--out", str(picture), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "train: train.json beside images/\n8 pictures" in out
    assert "class" in out
    assert out.splitlines()[-1].startswith("0 errors, ")
    assert out.rstrip().endswith(": training can start")
    written = json.loads(report.read_text())
    assert written["fatal"] is False
    assert set(written["splits"]) == {"train", "val"}
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 100


@pytest.mark.parametrize("name", ["counts", "counts.abc"])
def test_a_name_that_is_no_picture_s_is_refused(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "new"
    assert main(["data", "check", str(shapes), "--quick", "--out", str(folder / name)]) == 2
    assert "not the name of a picture" in capsys.readouterr().err
    assert not folder.exists()


def test_errors_give_exit_code_2_and_long_lists_are_shortened(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((shapes / "images").glob("*"))[:7]:
        path.unlink()
    report = tmp_path / "report.json"
    assert main(["data", "check", str(shapes), "--json", str(report), "--quick"]) == 2
    out = capsys.readouterr().out
    assert "error: missing image, 7\n" in out
    assert out.count("no such file") == 5
    assert "... and 2 more (--json has all)" in out
    assert out.splitlines()[-1].startswith("7 errors, ")
    assert out.rstrip().endswith(": training would stop")
    missing = [p for p in json.loads(report.read_text())["problems"] if p["kind"] == "missing image"]
    assert len(missing) == 7


def test_warnings_give_exit_code_0(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(shapes), "--max-detections", "1", "--workers", "1"]) == 0
    assert "warning: crowded image" in capsys.readouterr().out


def test_degenerate_objects(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((shapes / "train.json").read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 9, 9]]
    (shapes / "train.json").write_text(json.dumps(content))
    assert main(["data", "check", str(shapes)]) == 2
    assert "error: degenerate polygon, 1" in capsys.readouterr().out
    assert main(["data", "check", str(shapes), "--degenerate", "drop"]) == 0
    assert "warning: degenerate polygon, 1" in capsys.readouterr().out


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
