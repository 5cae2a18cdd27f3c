"""The script detectors.py: equal budgets, recipes of each detector, and the page of unfinished runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from scripts import BENCHMARKS, load_script

from embedmask.config import MaskRCNNConfig, Recipe

sys.path.append(str(BENCHMARKS))  # its scripts import each other
detectors = load_script("detectors")


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


def test_steps_are_kept_apart(tmp_path: Path) -> None:
    recipe: Recipe = detectors.recipe_of("tal", "nuclei", 0, steps=3)
    assert recipe.train.max_steps == 3
    short = detectors.result_file(tmp_path, "nuclei", "tal", 0, 3)
    assert short != detectors.result_file(tmp_path, "nuclei", "tal", 0)
    short.parent.mkdir(parents=True)
    short.write_text(json.dumps({"segm/AP": 0.1}))
    assert detectors.table_lines(tmp_path, "nuclei", 3) == []


def test_page_of_unfinished_runs(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    detectors.write_page(tmp_path, 3, out)
    assert out.read_text().startswith("# Detectors\n")
    assert "there is no table" in out.read_text()
    for name, values in {"fcos": (0.2, 0.4), "tal": (0.3, 0.5), "maskrcnn": (0.35,)}.items():
        for seed, value in enumerate(values):
            file = detectors.result_file(tmp_path, "nuclei", name, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({**dict.fromkeys(detectors.METRICS, value), "core_minutes": 12.0}))
    detectors.write_page(tmp_path, 3, out)
    text = out.read_text()
    assert "| fcos | 30.0 ± 14.1 | 30.0 ± 14.1 | 30.0 ± 14.1 | 12.0 |" in text
    assert "| tal | holds (+10.0 ± 0.0) | holds (+10.0 ± 0.0) | holds (+10.0 ± 0.0) |" in text
    assert "| maskrcnn | +15.0, one seed |" in text
    assert "| retinanet | - | - | - | - |" in text
    assert "## shapes" not in text
