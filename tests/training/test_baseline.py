"""Training, evaluation and prediction of the baseline by the same commands as EmbedMask."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_models import rectangles, small_baseline

from embedmask.cli import main
from embedmask.config import Recipe, model_to_dict
from embedmask.config.detector import IMAGENET_MEAN, IMAGENET_STD
from embedmask.inference.predictor import Predictor
from embedmask.model.build import build_model
from embedmask.weights.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow  # the training takes half a minute

SIZE = (64, 64)
BOXES = [[8.0, 8.0, 40.0, 40.0], [36.0, 30.0, 60.0, 60.0]]
MODEL = small_baseline(
    backbone="test_resnet", num_classes=2, image_short_side=64, image_long_side=64,
    image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD,
)  # fmt: skip
RECIPE = {
    "model": model_to_dict(MODEL),
    "data": {"short_sides": [], "repeat": 12, "flip_horizontal": 0.0},
    "train": {
        "batch_size": 1,
        "max_steps": None,
        "epochs": 3,
        "optimizer": "adamw",
        "lr": 0.002,
        "milestones": [],
        "warmup_steps": 0,
        "pretrained": False,
        "precision": "float32",
        "workers": 0,
        "eval_every": 3,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data set whose train and val have one image, of a red and a green rectangle."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "images").mkdir()
    pixels = np.full((*SIZE, 3), 30, np.uint8)
    annotations = []
    for channel, (x1, y1, x2, y2) in enumerate(BOXES):
        pixels[int(y1) : int(y2), int(x1) : int(x2), channel] = 220
        corners = [x1, y1, x2, y1, x2, y2, x1, y2]
        annotations.append({
            "id": channel + 1, "image_id": 5, "category_id": 3 + channel, "segmentation": [corners],
            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
        })  # fmt: skip
    Image.fromarray(pixels).save(folder / "images" / "one.png")
    values = {
        "images": [{"id": 5, "file_name": "one.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "red"}, {"id": 4, "name": "green"}],
        "annotations": annotations,
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baseline")
    (out / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    words = ["train", "--config", str(out / "recipe.yaml"), "--data", str(folder), "--out", str(out / "run")]
    assert main([*words, "--model.max_detections", "7", "--device", "cpu"]) == 0
    return out / "run"


def test_training_fits_the_image(run: Path) -> None:
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    terms = ("classification", "box", "mask", "objectness", "rpn_box")
    totals = [float(row["loss/total"]) for row in rows]
    assert totals == pytest.approx([sum(float(row[f"loss/{term}"]) for term in terms) for row in rows], 1e-4)
    assert totals[-1] < 0.5 * totals[0]
    assert json.loads((run / "metrics.json").read_text())["segm/AP"] > 0.2


def test_recipe_of_the_run_reproduces_it(run: Path) -> None:
    recipe = Recipe.from_yaml(run / "recipe.yaml")
    checkpoint = load_checkpoint(run / "model.safetensors")
    built = build_model(replace(MODEL, max_detections=7)).config  # with the pixels that the backbone expects
    chosen = checkpoint.config.default_score_threshold
    assert chosen is None or 0 <= chosen <= 1
    assert recipe.model == replace(checkpoint.config, default_score_threshold=None) == built
    assert checkpoint.class_names == ["red", "green"]


def test_eval_reproduces_the_ap_of_training(run: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "metrics.json"
    words = ["eval", "--weights", str(run / "model.safetensors"), "--data", str(folder), "--json", str(out)]
    assert main([*words, "--device", "cpu", "--precision", "float32"]) == 0
    trained = json.loads((run / "metrics.json").read_text())
    evaluated = json.loads(out.read_text())
    assert {name: evaluated[name] for name in ("segm/AP", "bbox/AP", "boundary/AP")} == {
        name: trained[name] for name in ("segm/AP", "bbox/AP", "boundary/AP")
    }


def test_predict_writes_results(run: Path, folder: Path, tmp_path: Path) -> None:
    words = ["predict", str(folder / "images" / "one.png"), "--weights", str(run / "model.safetensors")]
    assert main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert 1 <= len(results) <= 7


@pytest.mark.parametrize("side", [64, 128])
def test_predicted_masks_match_the_rectangles(run: Path, folder: Path, side: int) -> None:
    """Check files of the network's size and larger ones, which are resized (`image_short_side` 64)."""
    predictor = Predictor.load(run / "model.safetensors", device="cpu", precision="float32")
    image = Image.open(folder / "images" / "one.png").resize((side, side), Image.Resampling.NEAREST)
    (instances,) = predictor.predict_instances([torch.from_numpy(np.array(image)).permute(2, 0, 1)])
    scale = side / SIZE[0]
    expected = rectangles([[scale * x for x in box] for box in BOXES], (side, side), classes=2).masks
    masks = instances.masks.to_dense()
    overlaps = (masks[:, None] & expected).flatten(2).sum(2) / (masks[:, None] | expected).flatten(2).sum(2)
    assert overlaps.max(0).values.min() > 0.5
    assert instances.labels[overlaps.argmax(0)].tolist() == [0, 1]
