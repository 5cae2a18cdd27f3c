"""`embedmask data check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails
from PIL import Image

from embedmask.cli import main
from embedmask.synthetic.dataset import make_shapes


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    make_shapes(tmp_path / "shapes", train=8, val=2, size=64, seed=0)
    return tmp_path / "shapes"


def test_valid_data_set(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, report = tmp_path / "counts.png", tmp_path / "report.json"
    assert main(["data", "check", str(shapes), "--out", str(image), "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "train: train.json beside images/\n8 images" in out
    classes = [line.split() for line in out.splitlines() if line.startswith(("class", "all"))]
    assert classes[0] == ["class", "small", "medium", "large", "all"]
    for total in (row for row in classes if row[0] == "all"):
        assert int(total[4]) == sum(map(int, total[1:4])) > 0
    assert out.splitlines()[-1].startswith("0 errors, ")
    assert out.rstrip().endswith(": training can start")
    written = json.loads(report.read_text())
    assert written["fatal"] is False
    assert set(written["splits"]) == {"train", "val"}
    with Image.open(image) as drawn:
        assert drawn.width > drawn.height > 100


def test_raises_on_no_detections(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(shapes), "--max-detections", "0"]) == 2
    assert "--max-detections 0: use at least 1" in capsys.readouterr().err


def test_raises_on_out_that_is_not_an_image_name(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    assert main(["data", "check", str(shapes), "--quick", "--out", str(folder / "counts.abc")]) == 2
    assert "not the name of an image" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("name", ["counts.png", "folder"])
def test_raises_on_out_that_cannot_be_written_before_the_check(
    name: str, shapes: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    line = fails(capsys, "data", "check", shapes, "--out", tmp_path / "file" / name)
    assert "file is a file, not a folder" in line
    assert capsys.readouterr().out == ""


def test_out_folder_has_counts_and_contact_sheets(shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "check.v1"
    out.mkdir()
    assert main(["data", "check", str(shapes), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"counts.png", "train.png", "val.png"}
    with Image.open(out / "train.png") as train, Image.open(out / "val.png") as val:
        assert train.width > 4 * 300  # four columns of 320 px
        assert val.width < 3 * 330
        assert train.height > 2 * 300
        assert len(train.getcolors(2**24) or []) > 1000


def test_problems_are_drawn(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((shapes / "train.json").read_text())
    first, second = content["annotations"][:2]
    first.update(segmentation=[[10, 10, 30, 30, 30, 10, 10, 30]], bbox=[10, 10, 20, 20])
    second.update(segmentation=[[40, 10, 90, 10, 90, 30, 40, 30]], bbox=[40, 10, 50, 20])
    (shapes / "train.json").write_text(json.dumps(content))
    out = tmp_path / "check"
    assert main(["data", "check", str(shapes), "--out", str(out)]) == 0
    out_text = capsys.readouterr().out
    assert "warning: self-crossing polygon, 1\n" in out_text
    assert f"train.json: annotation {first['id']} of image {first['image_id']}" in out_text
    assert "reaches 26 px beyond its image [64, 64]" in out_text
    with Image.open(out / "problems.png") as drawn:
        pixels = np.asarray(drawn).astype(int)
    red = (np.abs(pixels - (255, 40, 40)).max(-1) == 0).nonzero()
    assert len(red[0]) > 500  # outlines
    assert red[1].max() - red[1].min() > 320  # in both tiles
    white = (pixels == 255).all(-1)
    assert white[30:-1, 330:].any(0).any()  # the border of the image that the second object leaves


def test_unreadable_images_are_left_out_of_contact_sheets(shapes: Path, tmp_path: Path) -> None:
    for path in sorted((shapes / "images").iterdir()):
        path.write_bytes(path.read_bytes()[:200])
    out = tmp_path / "check"
    assert main(["data", "check", str(shapes), "--out", str(out)]) == 2
    assert {path.name for path in out.iterdir()} == {"counts.png"}


def test_exif_option(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted((shapes / "images").iterdir())[0]
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif)
    assert main(["data", "check", str(shapes)]) == 0
    out = capsys.readouterr().out
    assert "warning: EXIF orientation, 1\n" in out
    assert f"{path}: EXIF orientation 3" in out
    assert main(["data", "check", str(shapes), "--exif", "stored"]) == 0
    assert "EXIF" not in capsys.readouterr().out
    sheets = {}
    for name, words in {
        "auto": (),
        "stored": ("--exif", "stored"),
        "data": ("--config", "shapes", "--data.exif", "stored", "--data.rotate90", "false"),
        "augment": ("--config", "shapes", "--augment.exif", "stored", "--augment.rotate90", "false"),
    }.items():
        sheet = tmp_path / f"{name}.png"
        assert main(["data", "show", str(shapes), "--count", "1", "--out", str(sheet), *words]) == 0
        sheets[name] = sheet.read_bytes()
    assert sheets["auto"] != sheets["stored"] != sheets["data"]
    assert sheets["data"] == sheets["augment"]
    assert main(["data", "check", str(shapes), "--exif", "sideways"]) == 2
    assert "--exif cannot be 'sideways', expected one of auto, upright, stored" in capsys.readouterr().err


def test_errors_exit_with_code_2_and_lists_are_shortened(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((shapes / "images").glob("*"))[:7]:
        path.unlink()
    report = tmp_path / "report.json"
    assert main(["data", "check", str(shapes), "--json", str(report), "--quick"]) == 2
    out = capsys.readouterr().out
    assert "error: missing image, 7\n" in out
    assert out.count("no such file") == 5
    assert "... and 2 more (--json lists all)" in out
    assert out.splitlines()[-1].startswith("7 errors, ")
    assert out.rstrip().endswith(": training would stop")
    missing = [p for p in json.loads(report.read_text())["problems"] if p["kind"] == "missing image"]
    assert len(missing) == 7


def test_warnings_exit_with_code_0(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_raises_on_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
