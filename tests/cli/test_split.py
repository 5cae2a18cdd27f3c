"""Data sets without val: `--val-fraction` and `embedmask data split`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import fails
from PIL import Image

from embedmask.cli import main


@pytest.fixture
def no_val(shapes: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    shutil.copy(shapes / "train.json", folder / "result.json")
    for path in (shapes / "images").glob("train_*"):
        shutil.copy(path, folder / "images")
    return folder


def test_split_prints_warnings_and_reads_the_selected_page(
    no_val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((no_val / "result.json").read_text())
    path = no_val / "images" / content["images"][0]["file_name"]
    with Image.open(path) as image:
        image.save(path.with_suffix(".tif"), save_all=True, append_images=[image])
    path.unlink()
    content["images"][0]["file_name"] = path.with_suffix(".tif").name
    (no_val / "result.json").write_text(json.dumps(content))
    words = ["data", "split", str(no_val), "--val", "0.25", "--out"]
    assert main([*words, str(tmp_path / "new")]) == 0
    assert "several pages" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "page"), "--page", "0"]) == 0
    assert "several pages" not in capsys.readouterr().out
    assert "page 1 is requested" in fails(capsys, *words, tmp_path / "other", "--page", "1")
    assert not (tmp_path / "other").exists()


def test_training_without_val_suggests_fixes(
    no_val: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, "train", "--data", no_val, "--config", recipe, "--out", tmp_path / "run")
    assert "has no val split, only train; hold out images for it with --val-fraction 0.2" in line
    assert f"embedmask data split {no_val} --out NEW --val 0.2" in line
    assert not (tmp_path / "run").exists()
    assert main(["data", "check", str(no_val)]) == 2
    assert "--val-fraction" in capsys.readouterr().out


def test_train_resume_and_eval_hold_out_the_same_images(
    no_val: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", "--data", str(no_val), "--out", str(run), "--device", "cpu"]
    assert main([*words, "--config", recipe, "--val-fraction", "0.25"]) == 0
    out = capsys.readouterr().out
    assert (
        "Label Studio COCO export, result.json with images in images/; 2 of 8 images held out as val" in out
    )
    assert "val_fraction: 0.25" in (run / "recipe.yaml").read_text()
    assert main([*words, "--resume", "--train.epochs", "2"]) == 0
    first, resumed = json.loads((run / "environment.json").read_text())
    assert resumed["data"] == first["data"]
    capsys.readouterr()
    metrics = tmp_path / "metrics.json"
    weights = str(run / "last.safetensors")
    evaluate = ["eval", "--weights", weights, "--data", str(no_val), "--device", "cpu"]
    assert main([*evaluate, "--val-fraction", "0.25", "--json", str(metrics)]) == 0
    assert "held out as val" in capsys.readouterr().out
    assert set(json.loads(metrics.read_text())) >= {"segm/AP", "bbox/AP"}
    assert "has no val split" in fails(capsys, *evaluate)
    assert main(["data", "check", str(no_val), "--val-fraction", "0.25"]) == 0
    assert "val: Label Studio COCO export" in capsys.readouterr().out
    sheet = tmp_path / "val.png"
    assert (
        main(["data", "show", str(no_val), "--split", "val", "--val-fraction", "0.25", "--out", str(sheet)])
        == 0
    )
    assert capsys.readouterr().out.startswith("2 images of val")


def test_split_writes_a_data_set(no_val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    assert main(["data", "split", str(no_val), "--out", str(new), "--val", "0.25", "--test", "0.125"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{no_val}: Label Studio COCO export, result.json with images in images/"
    assert lines[1] == f"5 in train, 2 in val, 1 in test · 8 images linked, 0 copied · {new}"
    assert main(["data", "check", str(new)]) == 0
    assert "is not empty" in fails(capsys, "data", "split", no_val, "--out", new, "--val", "0.25")
    assert "already has a val split" in fails(capsys, "data", "split", new, "--out", tmp_path / "x")
    assert main(["data", "split", str(no_val), "--val", "0.25", "--copy"]) == 0
    assert capsys.readouterr().out.endswith(f"0 images linked, 8 copied · {no_val}-split\n")
    assert main(["data", "check", f"{no_val}-split"]) == 0


@pytest.mark.parametrize("fraction", ["1", "1.5", "-0.5"])
def test_raises_on_invalid_fraction(
    no_val: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fraction: str
) -> None:
    words = ["--data", no_val, "--out", tmp_path / "run", f"--val-fraction={fraction}"]
    assert "val_fraction" in fails(capsys, "train", "--config", recipe, *words)
    assert "fractions must be above 0" in fails(capsys, "data", "show", no_val, f"--val-fraction={fraction}")
    assert "fractions must be above 0" in fails(
        capsys, "data", "split", no_val, "--out", tmp_path / "new", f"--val={fraction}"
    )
