"""The script table2.py: cells and recipes, equal budgets, verdicts and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from command_line import save_eager
from evaluation_scenes import make_truth
from scripts import load_script
from tiny_run import TINY

from embedmask import Postprocessor
from embedmask.config import ModelConfig, Recipe
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.synthetic.dataset import make_shapes

table2 = load_script("table2")


def test_every_recipe_is_a_cell_with_the_papers_figures() -> None:
    recipes = {path.stem for path in table2.CELLS.glob("*.yaml")}
    assert recipes == set(table2.PAPER) == {cell for table in table2.TABLES for cell in table.cells}


def test_settings_are_in_the_papers_order() -> None:
    for table in table2.TABLES:
        figures = [table2.PAPER[cell][0] for cell in table.cells]
        assert figures == sorted(figures)


@pytest.mark.parametrize("dataset", table2.SETS)
def test_cells_differ_in_the_model_alone(dataset: str) -> None:
    recipes = [table2.recipe_of(cell, dataset, seed=5) for cell in table2.PAPER]
    assert len({(recipe.data, recipe.train) for recipe in recipes}) == 1
    assert recipes[0].train.seed == 5
    assert len({recipe.model for recipe in recipes}) == 10  # the best setting is in four tables


@pytest.mark.parametrize("dataset", table2.SETS)
def test_cells_keep_the_other_fields(dataset: str) -> None:
    pixel = table2.recipe_of("b_pixel", dataset).model
    base = table2.recipe_of("b_proposal", dataset).model
    assert pixel == dataclasses.replace(base, cluster_center="pixel")
    assert base.box_expansion == 1.0
    assert table2.recipe_of("d_box_1.2", dataset).model.box_expansion == 1.2


def test_equal_cells_share_their_runs() -> None:
    repeated = {cell for cell in table2.PAPER if table2.trained_as(cell, "shapes") == "a_predicted"}
    assert repeated == {"a_predicted", "b_proposal", "c_in_mask_iou", "d_box_1.0", "e_dim_32"}


def test_metrics_are_those_of_the_evaluation() -> None:
    metrics = CocoEvaluator(make_truth([], {1: (10, 10)}, [1])).compute()
    assert set(table2.BY_SIZE) <= set(metrics)


def test_masks_are_placed_as_in_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shapes(tmp_path, train=1, val=3, size=64, seed=0)
    frames = []

    def stand_in(recipe: Recipe, data: Path, out: Path, device: str) -> dict[str, float]:
        out.mkdir(parents=True)
        save_eager(data, out / "model.safetensors")
        return {"segm/AP": 2.0}

    def spy(config: ModelConfig, reference_masks: bool) -> Postprocessor:
        made = Postprocessor.from_config(config, reference_masks=reference_masks)
        frames.append(made.mask_frame)
        return made

    monkeypatch.setattr(table2, "train", stand_in)
    monkeypatch.setattr("embedmask.evaluation.run.make_postprocessor", spy)
    recipe = table2.recipe_of("a_hinge", "shapes", 1)
    table2.run_one("a_hinge", "shapes", recipe, runs=tmp_path / "runs", data=tmp_path, device="cpu")
    (found,) = table2.read_results(tmp_path / "runs", "shapes", "a_hinge")
    assert set(table2.BY_SIZE) <= found.keys()
    assert found["segm/AP"] <= 1
    assert frames == ["authors"]
    assert not list((tmp_path / "runs").glob("work_*"))


def test_verdicts() -> None:
    assert table2.verdict([0.30, 0.31, 0.30], [0.35, 0.36, 0.36]) == "holds (+5.3 ± 1.4)"
    assert table2.verdict([0.35, 0.36, 0.36], [0.30, 0.31, 0.30]) == "does not hold (-5.3 ± 1.4)"
    assert table2.verdict([0.30, 0.34, 0.32], [0.33, 0.31, 0.33]).startswith("spread can't tell")
    assert table2.verdict([0.30, 0.30, 0.30], [0.33, 0.31, 0.33]).startswith("spread can't tell")
    assert table2.verdict([0.3], [0.9]) == "one seed is not enough"


def test_report_of_unfinished_runs(tmp_path: Path) -> None:
    for seed, value in enumerate((0.2, 0.4)):
        file = table2.result_file(tmp_path, "shapes", "a_predicted", seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dict.fromkeys(table2.METRICS, value)))
    out = tmp_path / "page.md"
    table2.report(tmp_path, ["shapes"], out, "Introduction.")
    text = out.read_text()
    assert text.startswith("Introduction.\n\n## (a) margin")
    assert (
        "| mask loss, predicted margin | 33.3 / 54.0 / 35.0 / 15.8 / 36.6 / 47.7 "
        "| 30.0 ± 14.1 | 30.0 ± 14.1 | 30.0 ± 14.1 | - | - | - |"
    ) in text
    assert "| hinge loss, fixed margins | 30.0 / 52.0 / 30.2 / 13.8 / 33.1 / 43.4 |" + " - |" * 6 in text
    # the paper's claim about margins and scales
    claim = "mask loss, predicted margin above mask loss, constant margin for small objects (+1.1)"
    assert f"| {claim} | not measured |" in text
    assert "| in mask and IoU > 0.5 | 33.3 / 54.0 / 35.0 | 30.0 ± 14.1 | 30.0 ± 14.1 | 30.0 ± 14.1 |" in text


def test_sizes_are_compared_where_they_are_measured(tmp_path: Path) -> None:
    for cell, small in (("a_constant", 0.1), ("a_predicted", 0.2)):
        for seed in (0, 1, 2):
            file = table2.result_file(tmp_path, "shapes", cell, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            values = {
                **dict.fromkeys(table2.BY_SIZE, 0.3),
                table2.SMALL: small + seed / 1000,
                "segm/AP_large": None,
            }
            file.write_text(json.dumps(values))
    lines = table2.table_lines(table2.TABLES[0], tmp_path, ["shapes"])
    assert any(line.endswith("for small objects (+1.1) | holds (+10.0 ± 0.0) |") for line in lines)
    (row,) = [line for line in lines if line.startswith("| mask loss, predicted margin |")]
    assert row.endswith("| 20.1 ± 0.1 | 30.0 ± 0.0 | - |")


def test_verdicts_are_those_of_their_set(tmp_path: Path) -> None:
    for dataset, gain in (("shapes", 0.1), ("nuclei", -0.1)):
        for cell, value in (("a_constant", 0.3), ("a_predicted", 0.3 + gain)):
            for seed in (0, 1, 2):
                file = table2.result_file(tmp_path, dataset, cell, seed)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(dict.fromkeys(table2.BY_SIZE, value + seed / 1000)))
    lines = table2.table_lines(table2.TABLES[0], tmp_path, ["shapes", "nuclei"])
    steps = [line for line in lines if line.startswith("| mask loss, predicted margin above")]
    assert len(steps) == 2
    assert all(line.endswith("| holds (+10.0 ± 0.0) | does not hold (-10.0 ± 0.0) |") for line in steps)


def test_cells_on_coco_are_their_recipes() -> None:
    for cell in table2.PAPER:
        assert table2.recipe_of(cell, "coco") == Recipe.from_yaml(table2.CELLS / f"{cell}.yaml")
    changed = table2.recipe_of("b_pixel", "coco", 3, ["train.max_steps=2", "data.short_sides=[64]"])
    assert (changed.train.seed, changed.train.max_steps, changed.data.short_sides) == (3, 2, (64,))
    assert changed.model == table2.recipe_of("b_pixel", "coco").model
    with pytest.raises(BadInput, match=r"write SECTION\.FIELD=VALUE"):
        table2.recipe_of("b_pixel", "coco", 0, ["max_steps=2"])


@pytest.mark.slow
def test_few_steps_on_coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run two cells that share a model and one that does not, on a tiny set in COCO's layout."""
    make_shapes(tmp_path / "shapes", train=4, val=2, size=64, seed=0)
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (tmp_path / "shapes" / f"{split}.json").rename(coco / "annotations" / f"instances_{split}2017.json")
        (coco / f"{split}2017").symlink_to(tmp_path / "shapes" / "images")
    monkeypatch.setattr(
        table2, "PAPER", {cell: table2.PAPER[cell] for cell in ("a_predicted", "b_pixel", "b_proposal")}
    )
    small = (
        TINY["model"] | TINY["train"] | {"max_steps": 1, "batch_size": 2, "epochs": None, "ema_decay": None}
    )
    sections = [("model", TINY["model"]), ("train", TINY["train"])]
    changes = [
        f"{section}.{name}={json.dumps(small[name])}" for section, fields in sections for name in fields
    ]
    changes = [change for change in changes if not change.startswith("train.epochs")]
    words = ["run", "--data", "coco", "--coco", str(coco), "--seeds", "1", "--runs", str(tmp_path / "runs")]
    extra = [word for change in [*changes, "data.short_sides=[]"] for word in ("--override", change)]
    monkeypatch.setattr("sys.argv", ["table2.py", *words, *extra, "--device", "cpu"])
    table2.main()
    results = sorted(path.name for path in (tmp_path / "runs" / "results" / "coco").iterdir())
    assert results == ["a_predicted_0.json", "b_pixel_0.json"]
    assert len(table2.read_results(tmp_path / "runs", "coco", "b_proposal")) == 1
