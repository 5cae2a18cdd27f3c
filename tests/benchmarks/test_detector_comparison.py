"""The script detectors.py: equal budgets, recipes of each detector, and the page of unfinished runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scripts import load_script
from tiny_run import tiny
from torchvision.ops import box_iou

from embedmask import Target
from embedmask.config import MaskRCNNConfig, Recipe
from embedmask.config.model_types import model_from_dict
from embedmask.synthetic.dataset import make_shapes

detectors = load_script("detectors")
retinanet_baseline = sys.modules["retinanet_baseline"]  # imported by detectors.py


@pytest.mark.parametrize("dataset", detectors.SETS)
def test_detectors_differ_in_the_model_alone(dataset: str) -> None:
    recipes = {name: detectors.recipe_of(name, dataset, 5) for name in (*detectors.DETECTORS, "maskrcnn")}
    assert len({(recipe.data, recipe.train) for recipe in recipes.values()}) == 1
    assert recipes["tal"].train.seed == 5
    fcos = recipes["fcos"].model
    assert dataclasses.replace(recipes["tal"].model, detector="fcos", box_weight=1.0) == fcos
    assert recipes["fcos, task-aligned"].model.assigner_name == "task_aligned"
    baseline = recipes["maskrcnn"].model
    assert isinstance(baseline, MaskRCNNConfig)
    assert (baseline.backbone, baseline.channels) == (fcos.backbone, fcos.channels)


def test_retinanet_beside_torchvision() -> None:
    ours, alone, baseline = (
        detectors.recipe_of(name, "nuclei", 2, steps=4)
        for name in (*detectors.OURS, detectors.RETINANET_BASELINE)
    )
    assert (ours.data, ours.train) == (alone.data, alone.train) == (baseline.data, baseline.train)
    assert (alone.model.mask_weight, alone.model.smooth_weight) == (0, 0)
    assert ours.model.tower_convs == 4
    for name in (
        "backbone",
        "channels",
        "strides",
        "anchor_scales",
        "anchor_ratios",
        "norm_groups",
        "image_norm",
    ):
        assert getattr(ours.model, name) == getattr(baseline.model, name)


def test_steps_are_kept_apart(tmp_path: Path) -> None:
    recipe: Recipe = detectors.recipe_of("tal", "nuclei", 0, steps=3)
    assert recipe.train.max_steps == 3
    short = detectors.result_file(tmp_path, "nuclei", "tal", 0, 3)
    assert short != detectors.result_file(tmp_path, "nuclei", "tal", 0)
    short.parent.mkdir(parents=True)
    short.write_text(json.dumps({"segm/AP": 0.1}))
    assert detectors.table_lines(tmp_path, "nuclei", 3) == []


def write_results(runs: Path, detector: str, values: Sequence[float]) -> None:
    """Write results of seeds 0, 1, ... on nuclei, with the same value of every metric."""
    for seed, value in enumerate(values):
        file = detectors.result_file(runs, "nuclei", detector, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        metrics = dict.fromkeys((*detectors.METRICS, "bbox/AP50", "bbox/AP75"), value)
        file.write_text(json.dumps({**metrics, "core_minutes": 12.0 if seed else None}))


def test_page_of_unfinished_runs(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    detectors.write_page(tmp_path, 3, out)
    assert out.read_text().startswith("# Detectors\n")
    assert "there is no table" in out.read_text()
    for name, values in {"fcos": (0.2, 0.4), "tal": (0.3, 0.5), "maskrcnn": (0.35,)}.items():
        write_results(tmp_path, name, values)
    detectors.write_page(tmp_path, 3, out)
    text = out.read_text()
    assert "| fcos | 30.0 ± 14.1 | 30.0 ± 14.1 | 30.0 ± 14.1 | 12.0 |" in text
    assert "| tal | holds (+10.0 ± 0.0) | holds (+10.0 ± 0.0) | holds (+10.0 ± 0.0) |" in text
    assert "| maskrcnn | +15.0, one seed |" in text
    assert "| retinanet | - | - | - | - |" in text
    assert "## shapes" not in text
    assert "torchvision" not in text[text.index("## nuclei") :]
    write_results(tmp_path, "retinanet, four convolutions", (0.3, 0.5))
    write_results(tmp_path, detectors.RETINANET_BASELINE, (0.3, 0.49))
    lines = detectors.table_lines(tmp_path, "nuclei", 3)
    assert lines[-2].startswith(
        "| retinanet, four convolutions, above torchvision's | spread can't tell (+0.5 ± "
    )


@pytest.mark.slow
def test_torchvision_retinanet_trains(tmp_path: Path) -> None:
    """A finished run leaves its metrics alone."""
    make_shapes(tmp_path / "data", train=4, val=2, size=64)
    values = {"kind": "torchvision_retinanet", "backbone": "resnet10t", "frozen_stages": 0, "channels": 32}
    model = model_from_dict({**values, "backbone_norm": "batch", "image_short_side": None}, where="test")
    recipe = dataclasses.replace(tiny(max_steps=2, epochs=None), model=model)
    file = tmp_path / "run_0.json"
    detectors.run_one(recipe, tmp_path / "data", file)
    metrics = json.loads(file.read_text())
    assert metrics["steps"] == 2
    assert metrics["core_minutes"] > 0
    assert not file.with_suffix(".work").exists()


@pytest.mark.slow
def test_torchvision_retinanet_learns_boxes() -> None:
    """Its losses fall on one image, whose box it then finds."""
    torch.manual_seed(0)
    config = retinanet_baseline.RetinaNetConfig(
        num_classes=2,
        backbone="resnet10t",
        frozen_stages=0,
        backbone_norm="batch",
        channels=32,
        image_short_side=None,
    )
    model = retinanet_baseline.TorchvisionRetinaNet(config)
    image = torch.full((3, 64, 64), 20, dtype=torch.uint8)
    image[:, 16:40, 8:32] = 220
    target = Target(
        torch.tensor([[8.0, 16, 32, 40]]), torch.tensor([1]), torch.zeros(1, 64, 64, dtype=torch.bool)
    )
    batch = model.preprocess([image])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch, [target]).total.backward()
        optimizer.step()
    with torch.inference_mode():
        (found,) = model(batch, score_threshold=0.05, nms_threshold=0.5, max_detections=100)
    assert found["labels"][0] == 1
    assert box_iou(found["boxes"][:1], target.boxes) > 0.8
    assert found["masks"].shape[1:] == (1, 28, 28)
