"""The figures of the paper by command: files, panels, ground truth and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command_line import fails, save_eager
from PIL import Image

from embedmask import Predictor
from embedmask.cli import main
from embedmask.config import ReadOptions, override
from embedmask.data.coco import CocoInstances
from embedmask.figures import (
    MAX_PANEL,
    PANEL,
    GroundTruthImages,
    color_ramp,
    compare_models,
    outline,
    scale_panel,
)
from embedmask.inference.explain import explain
from embedmask.synthetic.dataset import make_shapes
from embedmask.visualize import GAP
from embedmask.weights.checkpoint import load_checkpoint, model_title, save


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=2, val=3, size=64, seed=0)
    return folder


@pytest.fixture(scope="module")
def eager(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_eager(shapes, tmp_path_factory.mktemp("weights") / "eager.safetensors")


@pytest.fixture(scope="module")
def images(shapes: Path) -> list[Path]:
    dataset = CocoInstances.open(shapes, "val")
    return [dataset.image_path(index) for index in range(3)]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_explain_writes_every_panel(eager: Path, images: list[Path], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "figure"
    words = ["explain", str(images[0]), "--weights", str(eager), "--out", str(out)]
    assert main([*words, "--score-threshold", "0", "--max-detections", "6", "--instances", "4"]) == 0
    assert capsys.readouterr().out == f"6 detections, 4 probability maps · {out / 'figure1.png'}\n"
    panels = ("image", "proposal_embed", "pixel_embed", "margin")
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.png" for name in (*panels, "figure1", "instances")),
        "explanation.json",
    }
    assert {pixels(out / f"{name}.png").shape for name in panels} == {(64, 64, 3)}
    found = json.loads((out / "explanation.json").read_text())
    assert np.array(found["components"]).shape == (3, 8)
    assert len(found["instances"]) == 6
    check_proposal_colors(Predictor.load(eager, device="cpu"), images[0], pixels(out / "proposal_embed.png"))


def test_image_without_detections_has_no_probability_maps(
    eager: Path, images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "figure"
    words = ["explain", str(images[0]), "--weights", str(eager), "--out", str(out), "--score-threshold", "1"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("0 detections, 0 probability maps")
    assert not (out / "instances.png").exists()
    assert (out / "figure1.png").is_file()


def check_proposal_colors(predictor: Predictor, image: Path, drawn: np.ndarray) -> None:
    explained = explain(predictor, image, 0.0, 6)
    masks, colors = np.asarray(explained.detections.mask), explained.proposal_colors()
    for index, mask in enumerate(masks):
        others = np.delete(masks, index, axis=0).any(0)
        inner = mask & ~others & ~outline(mask)
        assert (drawn[inner] == colors[index]).all()
        outside = ~masks.any(0)
        assert (np.ptp(drawn[outside].astype(int), axis=-1) == 0).all()  # gray


def test_explain_leaves_other_folders_alone(
    eager: Path, images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "mine.txt").touch()
    line = fails(capsys, "explain", images[0], "--weights", eager, "--out", tmp_path)
    assert "the folder is not empty" in line
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    words = ("explain", images[0], "--weights", eager, "--out", tmp_path / "new", "--instances", "0")
    assert "instances 0: use at least 1" in fails(capsys, *words)
    assert not (tmp_path / "new").exists()


def test_compare_has_a_row_per_image_and_a_column_per_model(
    eager: Path, shapes: Path, images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "figure3.png"
    words = ["compare", *map(str, images), "--weights", str(eager), str(eager), "--out", str(out)]
    assert main([*words, "--data", str(shapes)]) == 0
    assert capsys.readouterr().out == f"images 3, models 2 · {out}\n"
    sheet = pixels(out)
    width = (sheet.shape[1] - 2 * GAP) // 3
    first, second, third = (sheet[:, i * (width + GAP) :][:, :width] for i in range(3))
    assert np.array_equal(second, third)
    assert not np.array_equal(first, second)


def test_ground_truth_is_that_of_the_file(shapes: Path, images: list[Path], tmp_path: Path) -> None:
    truth = GroundTruthImages.open(shapes, "val")
    drawn = [truth.draw(path) for path in images]
    for path, panel in zip(images, drawn, strict=True):
        changed = (panel != pixels(path)).any(-1)
        dataset = truth.dataset
        index = [dataset.image_path(i) for i in range(3)].index(path)
        boxes = dataset.annotations(index).boxes
        inside = np.zeros(changed.shape, bool)
        for x1, y1, x2, y2 in boxes.astype(int):
            inside[y1 : y2 + 1, x1 : x2 + 1] = True
        assert changed[inside].mean() > 0.3


def test_ground_truth_is_of_the_page_that_the_model_reads(eager: Path, tmp_path: Path, capsys: Any) -> None:
    """Page 0 has no object, page 1 one; the model reads page 1."""
    for kind in ("images", "masks"):
        (tmp_path / "set/val" / kind).mkdir(parents=True)
    levels = np.random.default_rng(0).integers(0, 255, (2, 60, 70), dtype=np.uint8)
    labels = np.zeros((2, 60, 70), np.uint16)
    labels[1, 10:40, 20:50] = 1
    path = tmp_path / "set/val/images/a.tif"
    tifffile.imwrite(path, levels)
    tifffile.imwrite(tmp_path / "set/val/masks/a.tif", labels)
    checkpoint = load_checkpoint(eager)
    checkpoint.model.config = override(checkpoint.config, {"image_page": 1}, where="test")
    save(checkpoint.model, tmp_path / "page1.safetensors", class_names=checkpoint.class_names)
    words = [
        "compare",
        str(path),
        "--data",
        str(tmp_path / "set"),
        "--out",
        str(tmp_path / "a.png"),
        "--weights",
    ]
    assert main([*words, str(tmp_path / "page1.safetensors")]) == 0
    assert "page" not in capsys.readouterr().out.replace("page1", "")
    truth = GroundTruthImages.open(tmp_path / "set", "val", ReadOptions(page=1)).draw(path)
    shown = scale_panel(truth, PANEL, MAX_PANEL)
    sheet = pixels(tmp_path / "a.png")
    assert np.array_equal(sheet[-shown.shape[0] :, : shown.shape[1]], shown)
    assert main([*words, str(eager)]) == 0
    warnings = capsys.readouterr().out.splitlines()[:-1]
    assert warnings
    assert all("page 0 is used" in line for line in warnings)
    line = fails(capsys, *words, eager, tmp_path / "page1.safetensors", lines=len(warnings))
    assert "page1.safetensors: reads page 1 of images, " in line


def test_single_model_fills_the_columns(eager: Path, images: list[Path]) -> None:
    four = compare_models([*images, *images], [eager], device="cpu")
    two = compare_models([*images, *images], [eager], columns=2, device="cpu")
    assert four.shape[1] > 1.9 * two.shape[1]
    assert two.shape[0] > 1.4 * four.shape[0]


def test_raises_on_invalid_comparisons(
    eager: Path, shapes: Path, images: list[Path], tmp_path: Path, capsys: Any
) -> None:
    stranger = tmp_path / "other.png"
    Image.open(images[0]).save(stranger)
    out = tmp_path / "out.png"
    words = ("--weights", eager, "--out", out)
    assert "other.png: not an image of" in fails(capsys, "compare", stranger, *words, "--data", shapes)
    assert "columns 0: use at least 1" in fails(capsys, "compare", images[0], *words, "--columns", "0")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "test2017").symlink_to((shapes / "images").resolve())
    content = {
        name: own
        for name, own in json.loads((shapes / "val.json").read_text()).items()
        if name != "annotations"
    }
    (tmp_path / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(content))
    test_dev = ("--data", tmp_path, "--split", "test-dev")
    assert "no annotations to draw" in fails(capsys, "compare", images[0], *words, *test_dev)
    assert "missing: weights" in fails(capsys, "compare", images[0], "--out", out)
    assert "none.png" in fails(capsys, "compare", tmp_path / "none.png", *words)
    assert not out.exists()


def test_titles_tell_models_apart() -> None:
    paths = [
        Path("runs/a/model.safetensors"),
        Path("runs/b/last.safetensors"),
        Path("nuclei"),
        Path("x/y.safetensors"),
    ]
    assert [model_title(path) for path in paths] == ["a", "b", "nuclei", "y"]


def test_small_panels() -> None:
    ramp = color_ramp(np.array([0.0, 0.5, 1.0]))
    assert ramp.tolist() == [[68, 1, 84], [33, 145, 140], [253, 231, 37]]
    panel = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(scale_panel(panel, 6, 9, smooth=False), panel.repeat(3, 0).repeat(3, 1))
    assert scale_panel(panel, 1, 2) is panel
    mask = np.ones((3, 4), bool)
    assert outline(mask).sum() == 10
