"""Recipe files: round trips, presets, model types, invalid files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from messages import refused

from embedmask.config import (
    DataConfig,
    MaskRCNNConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    read_yaml,
    to_dict,
)

RECIPES = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_recipes_exist() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_round_trip(path: Path, tmp_path: Path) -> None:
    assert path.read_text().startswith("# ")  # the summary in `embedmask recipes`
    recipe = Recipe.from_yaml(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(recipe.to_dict(), sort_keys=False), encoding="utf-8")
    assert Recipe.from_yaml(copy) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_list_only_differences_from_the_defaults(path: Path) -> None:
    values = read_yaml(path)
    model = values.get("model") or {}
    model = {"kind": model} if isinstance(model, str) else model
    values["model"] = {name: value for name, value in model.items() if name != "kind"}
    start = {"preset": values["preset"]} if "preset" in values else {"model": model.get("kind", "embedmask")}
    default = Recipe.from_mapping(start, where="")
    for section in ("model", "data", "train"):
        base = to_dict(getattr(default, section))
        same = [name for name, value in (values.get(section) or {}).items() if base[name] == value]
        assert same == [], f"{section}: already the default"


def test_recipe_starts_from_its_preset() -> None:
    recipe = Recipe.from_mapping({"preset": "ijcai21", "model": {"num_classes": 3}, "train": None}, where="")
    assert recipe.model == ModelConfig.preset("ijcai21", num_classes=3)
    assert (recipe.data, recipe.train) == (DataConfig(), TrainConfig())


@pytest.mark.parametrize("model", ["maskrcnn", {"kind": "maskrcnn"}])
def test_recipe_selects_the_model_type(model: Any) -> None:
    recipe = Recipe.from_mapping({"model": model}, where="")
    assert recipe.model == MaskRCNNConfig()
    assert recipe.train == TrainConfig()
    assert Recipe.from_mapping(yaml.safe_load(yaml.safe_dump(recipe.to_dict())), where="") == recipe


def test_embedmask_is_the_default_model_type() -> None:
    assert Recipe.from_mapping({"model": "embedmask"}, where="") == Recipe()
    assert "kind" not in Recipe().to_dict()["model"]
    chosen = Recipe.from_mapping({"preset": "ijcai21", "model": {"kind": "embedmask"}}, where="")
    assert chosen.model == ModelConfig.preset("ijcai21")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "maskrcn"}, "unknown model type 'maskrcn' (did you mean 'maskrcnn'?)"),
        ({"model": {"kind": 3}}, "unknown model type 3"),
        ({"model": {"kind": "maskrcnn", "anchors": [1]}}, "did you mean 'anchor_sizes'?"),
        ({"model": {"kind": "maskrcnn", "embed_dim": 8}}, "unknown field 'embed_dim'"),
        ({"model": "maskrcnn", "preset": "paper"}, "omit preset"),
    ],
)
def test_raises_on_invalid_model_type(values: dict[str, Any], message: str) -> None:
    found = refused(Recipe.from_mapping, values, where="a.yaml")
    assert "a.yaml" in found
    assert message in found


@pytest.mark.parametrize("name", ["shapes", "nuclei"])
def test_baseline_recipes_share_data_and_solver(name: str) -> None:
    folder = Path(__file__).parents[1] / "configs"
    embedmask_recipe, baseline = (
        Recipe.from_yaml(folder / part / f"{name}.yaml") for part in ("", "maskrcnn")
    )
    assert (baseline.data, baseline.train) == (embedmask_recipe.data, embedmask_recipe.train)
    shared = ("backbone", "backbone_norm", "channels", "image_short_side", "image_norm", "max_detections")
    assert all(getattr(baseline.model, field) == getattr(embedmask_recipe.model, field) for field in shared)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: [", "not valid YAML"),
        (b"- 1", "expected a mapping"),
        (
            b"train: {lr: 0.5}\nmodel: {}\ntrain: {epochs: 3}\n",
            "'train' is given twice (lines 1 and 3); keep one",
        ),
        (b"train: {lr: 0.5, lr: 0.1}", "'lr' is given twice"),
        (b"train: {init: 2024-02-30}", "not valid YAML"),
        (b"[" * 3000, "not valid YAML"),
        (b"train: false", "train must be a mapping of fields, got False"),
        (b"model: 0", "model must be a mapping of fields, got 0"),
        (b"text", "expected a mapping"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"model: {nmu_classes: 3}", "did you mean 'num_classes'?"),
    ],
)
def test_raises_on_invalid_recipe_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    found = refused(Recipe.from_yaml, path)
    assert "recipe.yaml" in found
    assert message in found


def test_missing_and_empty_recipe_files(tmp_path: Path) -> None:
    assert "no such recipe file" in refused(Recipe.from_yaml, tmp_path / "none.yaml")
    assert "cannot be read" in refused(Recipe.from_yaml, tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    assert Recipe.from_yaml(tmp_path / "empty.yaml") == Recipe()
