"""Former names of config fields: model files, recipes, options, presets and run.json of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import fails
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import tiny

from embedmask.config import MaskRCNNConfig, ModelConfig, Recipe, from_dict, override
from embedmask.config.bundled import resolve_recipe
from embedmask.config.convert import RENAMED
from embedmask.errors import BadInput
from embedmask.synthetic.dataset import make_shapes
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.fit import with_classes
from embedmask.training.identity import RUN_FILE, check_identity, write_identity
from embedmask.weights.checkpoint import load_checkpoint
from embedmask.weights.released import find_weights

MODEL_VALUES = {"decision_threshold": 0.4, "score_threshold": 0.01, "pre_nms": 50}
VALUES: dict[str, Any] = {**MODEL_VALUES, "where": "site=1"}


def test_every_former_name_has_a_value() -> None:
    assert VALUES.keys() == RENAMED.keys()


def test_released_model_has_former_names() -> None:
    path = find_weights("nuclei")
    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["config"])
    config = load_checkpoint(path).config
    for old in MODEL_VALUES:
        assert RENAMED[old] not in stored
        assert getattr(config, RENAMED[old]) == stored[old]


def test_raises_on_both_names_in_a_model_file(tmp_path: Path) -> None:
    source, path = find_weights("nuclei"), tmp_path / "both.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    metadata["config"] = json.dumps({**json.loads(metadata["config"]), "pre_nms_topk": 9})
    save_file(load_file(source), path, metadata=metadata)
    with pytest.raises(
        BadInput, match=r"both\.safetensors: config: pre_nms is the former name of pre_nms_topk"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("preset", ["paper", "fused"])
def test_recipe(old: str, preset: str, tmp_path: Path) -> None:
    section = "data" if old == "where" else "model"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"preset": preset, section: {old: VALUES[old]}}))
    recipe = Recipe.from_yaml(path)
    assert getattr(getattr(recipe, section), RENAMED[old]) == VALUES[old]
    assert old not in recipe.to_dict()[section]
    path.write_text(
        yaml.safe_dump({"preset": preset, section: {old: VALUES[old], RENAMED[old]: VALUES[old]}})
    )
    with pytest.raises(BadInput) as caught:
        Recipe.from_yaml(path)
    message = f"{path}: {section}: {old} is the former name of {RENAMED[old]}; give {RENAMED[old]} only"
    assert str(caught.value) == message


@pytest.mark.parametrize("old", MODEL_VALUES)
def test_preset(old: str) -> None:
    config = ModelConfig.preset("paper", **{old: VALUES[old]})
    assert config == ModelConfig.preset("paper", **{RENAMED[old]: VALUES[old]}) != ModelConfig()
    with pytest.raises(BadInput, match=f"preset paper: {old} is the former name of {RENAMED[old]}"):
        ModelConfig.preset("paper", **{old: VALUES[old], RENAMED[old]: VALUES[old]})


@pytest.mark.parametrize("old", RENAMED)
def test_option(old: str) -> None:
    section = "data" if old == "where" else "model"
    recipe = resolve_recipe("nuclei", {section: {old: VALUES[old]}})
    assert getattr(getattr(recipe, section), RENAMED[old]) == VALUES[old]


@pytest.mark.parametrize(
    "words",
    [
        ("--model.score_threshold", "0.1", "--model.candidate_threshold", "0.1"),
        ("--data.where", "site=1", "--data.image_filter", "site=1"),
        ("--data.where", "site=1", "--augment.image_filter", "site=1"),
    ],
)
def test_raises_on_both_options(words: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    line = fails(capsys, "train", "--config", "nuclei", "--data", tmp_path, "--out", tmp_path / "out", *words)
    old = words[0].partition(".")[2]
    assert f"{old} is the former name of {RENAMED[old]}; give {RENAMED[old]} only" in line


def test_former_name_of_another_config_is_unknown() -> None:
    for cls, old in ((MaskRCNNConfig, "pre_nms"), (ModelConfig, "where")):
        with pytest.raises(BadInput, match=f"unknown field '{old}'"):
            from_dict(cls, {old: VALUES[old]}, where="test")
    assert override(MaskRCNNConfig(), {"score_threshold": 0.01}, where="").candidate_threshold == 0.01


@pytest.mark.parametrize(("now", "message"), [("site=1", None), ("site=2", "data.image_filter is site=2")])
def test_resumed_run(now: str, message: str | None, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    make_shapes(data, train=2, val=2, size=64, seed=0)
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        for image, site in zip(content["images"], "12", strict=True):
            image["site"] = site
        (data / f"{split}.json").write_text(json.dumps(content))
    out.mkdir()
    recipe, splits = opened("site=1", data)
    write_identity(out, recipe, splits)
    run = json.loads((out / RUN_FILE).read_text())
    for new, old in {new: old for old, new in RENAMED.items()}.items():
        section = run["recipe"]["data" if old == "where" else "model"]
        section[old] = section.pop(new)
    run["data"] = {}  # compare the recipes only
    (out / RUN_FILE).write_text(json.dumps(run))
    if message is None:
        check_identity(out, *opened(now, data))
    else:
        with pytest.raises(BadInput, match=message):
            check_identity(out, *opened(now, data))


def opened(image_filter: str, data: Path) -> tuple[Recipe, TrainValDataModule]:
    recipe = Recipe(
        model=tiny().model,
        data=override(tiny().data, {"image_filter": image_filter}, where=""),
        train=tiny().train,
    )
    splits = TrainValDataModule(data, recipe)
    return with_classes(recipe, len(splits.train_set.class_names), None), splits
