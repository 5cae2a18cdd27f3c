"""The released models as a user meets them: by name, on images that they have not seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]

from embedmask import EmbedMask, ModelConfig, Predictor, load
from embedmask.cli import main
from embedmask.config import Recipe
from embedmask.data.coco import CocoInstances
from embedmask.evaluation.run import evaluate_weights
from embedmask.weights.released import find_weights, models_folder, released_names

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "nuclei"
CENTERS = (
    (40, 50, 14, 10),
    (60, 50, 9, 12),
    (110, 40, 12, 12),
    (150, 120, 16, 9),
    (60, 140, 10, 10),
    (82, 140, 11, 11),
)
"""x, y and half axes, px; the first two and the last two touch."""


@pytest.fixture(scope="module")
def scene() -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """Blurred bright ellipses with noise on a dark ground, and their masks."""
    y, x = np.mgrid[:192, :192] + 0.5
    masks = [((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1 for cx, cy, a, b in CENTERS]
    light = sum(value * mask for value, mask in zip((70, 45, 60, 50, 65, 40), masks, strict=True))
    noise = np.random.default_rng(0).normal(0, 1.5, (192, 192))
    gray = (gaussian_filter(light.astype(float), 1.2) + 8 + noise).clip(0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, 2), masks


NAMES = ("nuclei", "nuclei_all")


def test_they_are_small_enough_to_come_with_the_package() -> None:
    assert released_names() == [*NAMES]
    for name in NAMES:
        assert find_weights(name).stat().st_size <= 30_000_000
        assert (models_folder() / f"{name}.md").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_they_are_the_models_of_their_recipes(name: str) -> None:
    recipe = Recipe.from_yaml(models_folder().parent / "configs" / f"{name}.yaml")
    config = load(name).config
    assert isinstance(config, ModelConfig)
    assert isinstance(recipe.model, ModelConfig)
    assert config.default_score_threshold == 0.35  # chosen on val, as training does
    assert (
        replace(config, default_score_threshold=None)
        == EmbedMask(ModelConfig(**{**vars(recipe.model), "num_classes": 1})).config
    )


@pytest.mark.parametrize("name", NAMES)
def test_they_find_touching_nuclei(
    scene: tuple[NDArray[np.uint8], list[NDArray[np.bool_]]], name: str
) -> None:
    image, masks = scene
    found = Predictor.load(name, device="cpu")(image)
    assert len(found) == len(masks)
    assert set(found.data["class_name"]) == {"nucleus"}
    dense = np.asarray(found.mask)
    for mask in masks:
        ious = [(one & mask).sum() / (one | mask).sum() for one in dense]
        assert max(ious) > 0.8


def test_predict_by_name(scene: tuple[NDArray[np.uint8], list[NDArray[np.bool_]]], tmp_path: Path) -> None:
    Image.fromarray(scene[0]).save(tmp_path / "cells.png")
    words = ["predict", str(tmp_path / "cells.png"), "--weights", "nuclei", "--out", str(tmp_path / "found")]
    assert main([*words, "--format", "labels", "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert len(results) == len(CENTERS)
    assert (
        np.unique(np.asarray(Image.open(tmp_path / "found" / "labels" / "cells.png"))).size
        == len(CENTERS) + 1
    )
    assert all(coco_mask.decode(one["segmentation"]).any() for one in results)


def part_of_val(folder: Path, key: str, value: str, step: int = 1) -> CocoInstances:
    """Return every `step`-th val image whose record has the value."""
    content = json.loads((SHARED / "val.json").read_text())
    chosen = [image for image in content["images"] if image.get(key) == value][::step]
    ids = {image["id"] for image in chosen}
    content |= {"images": chosen, "annotations": [a for a in content["annotations"] if a["image_id"] in ids]}
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "images").symlink_to(SHARED / "images")
    return CocoInstances.open(folder, "val")


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"NEEDS {SHARED}: real nuclei stay untried")
@pytest.mark.parametrize("name", NAMES)
def test_figures_on_some_images_of_val(tmp_path: Path, name: str) -> None:
    """Every sixth; the figures of all of them are in docs/results.md."""
    dataset = part_of_val(tmp_path, "stardist_dsb2018", "train", step=6)
    metrics = evaluate_weights(Path(name), dataset, device="cpu")
    assert metrics["matching/mAP"] > 0.72
    assert metrics["segm/AP"] > 0.68


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"NEEDS {SHARED}: real nuclei stay untried")
def test_nuclei_all_knows_histology(tmp_path: Path) -> None:
    dataset = part_of_val(tmp_path, "modality", "histology", step=2)
    assert evaluate_weights(Path("nuclei_all"), dataset, device="cpu")["segm/AP"] > 0.3
