"""Recipes by name or file, with overrides from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import fails

from embedmask.cli import main
from embedmask.config import MaskRCNNConfig, Recipe
from embedmask.config.bundled import recipe_names, resolve_recipe


class TestRecipes:
    def test_overrides_reach_every_section(self, recipe: str) -> None:
        changes = {"model": {"embed_dim": 4}, "data": {"short_sides": [64, 96]}, "train": {"lr": 1}}
        built = resolve_recipe(recipe, changes)
        assert (built.model.embed_dim, built.data.short_sides, built.train.lr) == (4, (64, 96), 1.0)
        assert built.model.channels == 32

    def test_other_fields_are_unchanged(self, recipe: str) -> None:
        assert resolve_recipe(recipe, {}) == Recipe.from_yaml(recipe)
        assert resolve_recipe(recipe, {"train": {"lr": 1}}).data.short_sides == ()

    def test_baseline_recipe_with_overrides(self) -> None:
        built = resolve_recipe("maskrcnn/r50_1x", {"model": {"anchor_sizes": [8, 16, 32, 64, 128]}})
        assert built.model == MaskRCNNConfig(anchor_sizes=(8, 16, 32, 64, 128))

    def test_raises_on_override_of_the_model_type(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        words = (
            "--config",
            "shapes",
            "--model.kind",
            "maskrcnn",
            "--data",
            shapes,
            "--out",
            tmp_path / "out",
        )
        assert "write model: maskrcnn" in fails(capsys, "train", *words)

    def test_max_steps_replaces_epochs(self, recipe: str) -> None:
        built = resolve_recipe(recipe, {"train": {"max_steps": 7}})
        assert (built.train.max_steps, built.train.epochs) == (7, None)

    def test_every_bundled_recipe_can_be_loaded(self) -> None:
        assert "nuclei" in recipe_names()
        for name in recipe_names():
            assert resolve_recipe(name, {}).train.batch_size >= 1

    def test_recipes_are_listed_with_a_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["recipes"]) == 0
        lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert list(lines) == recipe_names()
        assert lines["shapes"].startswith("Synthetic shapes of")

    @pytest.mark.parametrize("name", ["shapes", "finetune", "paper/r50_1x.yaml", "maskrcnn/nuclei"])
    def test_show_prints_all_fields(
        self, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["recipes", "--show", name]) == 0
        (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
        assert Recipe.from_yaml(tmp_path / "whole.yaml") == resolve_recipe(name, {})
        shown = yaml.safe_load((tmp_path / "whole.yaml").read_text())
        assert {"lr", "momentum", "clip_norm"} <= set(shown["train"])
        comment = (tmp_path / "whole.yaml").read_text().partition("\n")[0]
        assert re.fullmatch(
            r"# [\d.]+ million parameters, .* \d+ GFLOPs for an image of \d+ x \d+ px", comment
        )
        assert "--show nope" in fails(capsys, "recipes", "--show", "nope")

    def test_unknown_name_suggests_the_closest(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        line = fails(capsys, "train", "--config", "nucleii", "--data", shapes, "--out", tmp_path / "out")
        assert "did you mean 'nuclei'" in line

    @pytest.mark.parametrize(
        ("option", "nearest"),
        [
            ("--model.embed_dims", "embed_dim"),
            ("--train.learning", "warmup"),
            ("--data.short_side", "short_sides"),
            ("--augment.short_side", "short_sides"),
        ],
    )
    def test_unknown_field_suggests_the_closest(
        self, *, option: str, nearest: str, shapes: Path, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        out = tmp_path / "out"
        line = fails(capsys, "train", "--config", recipe, "--data", shapes, "--out", out, option, "3")
        assert option.partition(".")[2] in line
        if option != "--train.learning":
            assert f"did you mean '{nearest}'" in line
        assert not out.exists()

    def test_unknown_key_in_a_file_suggests_the_closest(
        self, shapes: Path, tmp_path: Path, capsys: Any
    ) -> None:
        (tmp_path / "r.yaml").write_text("model: {embed_dimm: 8}")
        line = fails(
            capsys, "train", "--config", tmp_path / "r.yaml", "--data", shapes, "--out", tmp_path / "out"
        )
        assert "did you mean 'embed_dim'" in line
        assert str(tmp_path / "r.yaml") in line

    def test_raises_on_invalid_value(self, shapes: Path, recipe: str, tmp_path: Path, capsys: Any) -> None:
        out = tmp_path / "out"
        words = ("train", "--config", recipe, "--data", shapes, "--out", out)
        assert "margin" in fails(capsys, *words, "--model.margin", "wide")
        assert "lr" in fails(capsys, *words, "--train.lr", "fast")
        assert not out.exists()

    @pytest.mark.parametrize("option", ["--data.repeat", "--augment.repeat", "--augment.repeat=0"])
    def test_data_fields_beside_the_folder(
        self, option: str, *, shapes: Path, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        value = [] if "=" in option else ["0"]
        words = ("train", "--config", recipe, "--data", shapes, "--out", tmp_path / "out")
        line = fails(capsys, *words, option, *value)
        assert line == "embedmask: --data: repeat must be at least 1, got 0"

    def test_raises_on_a_data_field_and_its_alias(
        self, shapes: Path, recipe: str, tmp_path: Path, capsys: Any
    ) -> None:
        words = ("train", "--config", recipe, "--data", shapes, "--out", tmp_path / "out")
        line = fails(capsys, *words, "--data.repeat", "2", "--augment.repeat=2")
        assert line.endswith(
            "--data.repeat and --augment.repeat are the same option; give --data.repeat only"
        )

    def test_raises_on_missing_config(self, shapes: Path, tmp_path: Path, capsys: Any) -> None:
        assert "--config is missing" in fails(capsys, "train", "--data", shapes, "--out", tmp_path / "out")
