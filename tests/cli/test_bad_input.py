"""Invalid data and weights: one line that names the item, and no files written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import copy_with, fails, two_points

from embedmask.synthetic.dataset import make_shapes


def rle(height: int, width: int) -> dict[str, Any]:
    return {"size": [height, width], "counts": [0, height * width]}


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "missing image": lambda a: a["annotations"][0].update(image_id=987654),
    "missing category": lambda a: a["annotations"][0].update(category_id=987654),
    "polygon of 2 points": lambda a: a["annotations"][0].update(segmentation=[[1, 1, 5, 5]]),
    "two points": two_points,
    "mask of another size": lambda a: a["annotations"][0].update(segmentation=rle(7, 9)),
    "missing image file": lambda a: a["images"][0].update(file_name="absent.jpg"),
    "no annotations": lambda a: a.pop("annotations"),
}


class TestBadData:
    @pytest.mark.parametrize("case", CHANGES)
    def test_train_raises_and_writes_nothing(
        self, case: str, shapes: Path, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        data, out = copy_with(shapes, tmp_path, CHANGES[case]), tmp_path / "out"
        line = fails(capsys, "train", "--config", recipe, "--data", data, "--out", out)
        assert str(data) in line
        assert not out.exists()

    @pytest.mark.parametrize("case", CHANGES)
    def test_eval_raises_and_writes_nothing(
        self, case: str, shapes: Path, eager: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data, out = copy_with(shapes, tmp_path, CHANGES[case]), tmp_path / "m.json"
        assert str(data) in fails(capsys, "eval", "--weights", eager, "--data", data, "--json", out)
        assert not out.exists()

    def test_raises_on_missing_folder_and_split(
        self, shapes: Path, eager: Path, tmp_path: Path, capsys: Any
    ) -> None:
        assert "absent" in fails(capsys, "eval", "--weights", eager, "--data", tmp_path / "absent")
        assert "test" in fails(capsys, "eval", "--weights", eager, "--data", shapes, "--split", "test")
        assert "absent" in fails(capsys, "data", "show", tmp_path / "absent", "--out", tmp_path / "s.png")

    def test_raises_on_annotations_that_are_not_json(
        self, shapes: Path, eager: Path, tmp_path: Path, capsys: Any
    ) -> None:
        data = copy_with(shapes, tmp_path, lambda a: None)
        (data / "val.json").write_text('{"images": [')
        assert "val.json" in fails(capsys, "eval", "--weights", eager, "--data", data)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_raises_on_truncated_image_in_training(
        self, workers: int, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        data, out = tmp_path / "data", tmp_path / "out"
        make_shapes(data, train=4, val=1, size=64, seed=1)
        name = json.loads((data / "train.json").read_text())["images"][0]["file_name"]
        path = data / "images" / name
        path.write_bytes(path.read_bytes()[:400])
        words = ("train", "--config", recipe, "--data", data, "--out", out, "--train.workers", workers)
        assert Path(name).name in fails(capsys, *words, lines=2)
        assert not out.exists()


class TestBadWeights:
    def test_raises_on_truncated_weights(
        self, eager: Path, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        half = tmp_path / "half.safetensors"
        half.write_bytes(eager.read_bytes()[: eager.stat().st_size // 2])
        assert "half.safetensors" in fails(capsys, "eval", "--weights", half, "--data", shapes)
        out = tmp_path / "out"
        assert "half.safetensors" in fails(
            capsys, "predict", shapes / "images", "--weights", half, "--out", out
        )
        assert not out.exists()

    def test_raises_on_missing_weights_and_torch_files(
        self, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        assert "absent" in fails(capsys, "eval", "--weights", tmp_path / "absent", "--data", shapes)
        torch.save({"model": {"w": torch.zeros(1)}}, tmp_path / "w.pth")
        assert "convert" in fails(capsys, "eval", "--weights", tmp_path / "w.pth", "--data", shapes)


def test_unwritable_json_is_found_before_the_work(
    shapes: Path, eager: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def work(*args: Any, **options: Any) -> None:
        raise AssertionError("the work began")

    for name in ("evaluation.run.evaluate_weights", "data.check.check_folder", "benchmark.compare.compare"):
        monkeypatch.setattr(f"embedmask.{name}", work)
    for words in (["eval", "--weights", eager, "--data", shapes], ["data", "check", shapes], ["bench"]):
        assert "is a folder; choose the name of a file" in fails(capsys, *words, "--json", tmp_path)
