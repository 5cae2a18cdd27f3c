"""The script table2.py: cells and recipes, equal budgets, verdicts and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from scripts import load_script

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


def test_verdicts() -> None:
    assert table2.verdict([0.30, 0.31, 0.30], [0.35, 0.36, 0.36]) == "holds (+5.3 ± 1.4)"
    assert table2.verdict([0.35, 0.36, 0.36], [0.30, 0.31, 0.30]) == "does not hold (-5.3 ± 1.4)"
    assert table2.verdict([0.30, 0.34, 0.32], [0.33, 0.31, 0.33]).startswith("spread can't tell")
    assert table2.verdict([0.30, 0.30, 0.30], [0.33, 0.31, 0.33]).startswith("spread can't tell")
    assert table2.verdict([0.3], [0.9]) == "one seed says nothing"


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
        "| mask loss, predicted margin | 33.3 / 54.0 / 35.0 | 30.0 ± 14.1 | 30.0 ± 14.1 | 30.0 ± 14.1 |"
        in text
    )
    assert "| hinge loss, fixed margins | 30.0 / 52.0 / 30.2 | - | - | - |" in text
