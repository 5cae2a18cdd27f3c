"""Configs and recipes: presets, validation, round trips, and use of every field."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from messages import refused

import embedmask
import embedmask.config as config_module
from embedmask.config import (
    PRESETS,
    DataConfig,
    MaskRCNNConfig,
    ModelConfig,
    Recipe,
    TrainConfig,
    from_dict,
    override,
    to_dict,
)
from embedmask.errors import BadInput
from embedmask.fields import field_types

CONFIGS = (ModelConfig, MaskRCNNConfig, DataConfig, TrainConfig)


# --- presets ----------------------------------------------------------------


def test_paper_is_the_default() -> None:
    assert ModelConfig.preset("paper") == ModelConfig.preset() == ModelConfig()


def test_presets_are_the_published_versions() -> None:
    published = {
        "embed_dim": (32, 16, 16),
        "coordinates": (False, True, True),
        "coordinate_scale": ("learned", "learned", "fixed"),
        "pixel_branch": ("tower", "tower", "fused"),
        "embed_channels": (None, None, 128),
        "margin_source": ("box", "tower", "tower"),
        "sample_in_mask": (True, True, False),
        "sampling_center": ("box", "box", "mass"),
        "embed_samples": ("iou", "best", "each"),
        "mask_weight": (0.5, 0.5, 1.0),
        "smooth_weight": (0.1, 0.0, 0.0),
        "semantic_weight": (0.0, 0.0, 1.0),
        "box_expansion": (1.2, None, None),
        "box_offset": (1.0, 1.0, 0.0),
        "mask_threshold": (0.5, 0.53, 0.5),
        "mask_interpolation": ("prob", "log_prob", "aligned"),
        "score": ("product", "product", "root"),
        "clip_before_nms": (True, True, False),
    }
    presets = [ModelConfig.preset(name) for name in ("paper", "ijcai21", "fused")]
    assert {name: tuple(getattr(p, name) for p in presets) for name in published} == published


@pytest.mark.parametrize("name", PRESETS)
def test_presets_can_be_overridden(name: Any) -> None:
    config = ModelConfig.preset(name, num_classes=3, backbone="resnet101", box_expansion=None)
    assert (config.num_classes, config.backbone, config.box_expansion) == (3, "resnet101", None)
    assert dataclasses.replace(config, num_classes=80, backbone="resnet50") == ModelConfig.preset(
        name, box_expansion=None
    )


def test_fixed_margin_distance() -> None:
    """Check the margins of Table 2 (a)."""
    configs = {m: ModelConfig(margin=m) for m in ("predicted", "constant", "hinge")}
    assert [c.fixed_margin_distance for c in configs.values()] == [None, 2.0, config_module.HINGE_MARGIN]


def test_level_ranges_cover_every_size_once() -> None:
    ranges = ModelConfig().level_ranges
    assert len(ranges) == len(ModelConfig().strides)
    assert ranges[0][0] < 0
    assert ranges[-1][1] == math.inf
    assert [high for _, high in ranges[:-1]] == [low for low, _ in ranges[1:]] == [64, 128, 256, 512]


def test_configs_are_immutable() -> None:
    for cls in CONFIGS:
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls().seed = 1


# --- validation -------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name", "nearest"),
    [
        (ModelConfig, "embed_dims", "embed_dim"),
        (ModelConfig, "numclasses", "num_classes"),
        (DataConfig, "flip_horizontl", "flip_horizontal"),
        (TrainConfig, "batchsize", "batch_size"),
        (TrainConfig, "warmup_step", "warmup_steps"),
    ],
)
def test_unknown_field_message_suggests_the_nearest(cls: Any, name: str, nearest: str) -> None:
    message = refused(from_dict, cls, {name: 1}, where="recipe.yaml: part")
    assert message == f"recipe.yaml: part: unknown field {name!r} (did you mean {nearest!r}?)"


def test_no_suggestion_without_a_similar_name() -> None:
    message = refused(from_dict, ModelConfig, {"zzz": 1}, where="here")
    assert message == "here: unknown field 'zzz'"


def test_raises_on_unknown_presets_and_sections() -> None:
    assert "did you mean 'paper'?" in refused(ModelConfig.preset, "papers")
    assert "did you mean 'ijcai21'?" in refused(Recipe.from_mapping, {"preset": "ijcai"}, where="a.yaml")
    message = refused(Recipe.from_mapping, {"modle": {}}, where="a.yaml")
    assert "a.yaml" in message
    assert "did you mean 'model'?" in message
    for bad in ({"preset": ["paper"]}, {"preset": 3}, {"model": [1]}, {"train": "fast"}, {3: 4, "x": 5}):
        assert "a.yaml" in refused(Recipe.from_mapping, bad, where="a.yaml")


@pytest.mark.parametrize(
    ("cls", "name", "value", "rule"),
    [
        (ModelConfig, "num_classes", 0, "at least 1"),
        (ModelConfig, "num_classes", 2.5, "a whole number"),
        (ModelConfig, "num_classes", True, "a whole number"),
        (ModelConfig, "num_classes", "many", "a whole number"),
        (ModelConfig, "num_classes", None, "a whole number"),
        (ModelConfig, "backbone", 50, "text"),
        (ModelConfig, "coordinates", 1, "true or false"),
        (ModelConfig, "margin", "learned", "one of predicted, constant, hinge"),
        (ModelConfig, "mask_threshold", 1.5, "above 0 and at most 1"),
        (ModelConfig, "mask_threshold", "half", "a number"),
        (ModelConfig, "mask_threshold", math.nan, "above 0 and at most 1"),
        (ModelConfig, "prior_margin", 0, "above 0"),
        (ModelConfig, "box_expansion", 0.9, "at least 1, or null"),
        (ModelConfig, "tower_convs", -1, "at least 0"),
        (ModelConfig, "embed_channels", 0, "at least 1, or null"),
        (ModelConfig, "max_mask_instances", 0, "at least 1, or null"),
        (ModelConfig, "semantic_weight", -1, "at least 0"),
        (ModelConfig, "mask_interpolation", "aligned", "min_prob must be above 0"),
        (TrainConfig, "norm_weight_decay", -1, "at least 0, or null"),
        (ModelConfig, "channels", 100, "a multiple of norm_groups 32"),
        (ModelConfig, "strides", [8, 16, 33, 64, 128], "doubling"),
        (ModelConfig, "strides", [16, 32, 64, 128, 256], "4 or 8"),
        (ModelConfig, "strides", [], "4 or 8"),
        (ModelConfig, "size_ranges", [64, 128, 256], "4 ascending bounds"),
        (ModelConfig, "size_ranges", [64, 128, 100, 512], "4 ascending bounds"),
        (ModelConfig, "image_mean", [1.0, 2.0], "3 numbers"),
        (ModelConfig, "image_mean", [1, "x", 3], "3 numbers or null, got (1.0, 'x', 3.0)"),
        (MaskRCNNConfig, "anchor_sizes", [8, 16, 32, 64], "5 ascending sides"),
        (MaskRCNNConfig, "anchor_sizes", [8, 16, 64, 32, 128], "5 ascending sides"),
        (MaskRCNNConfig, "anchor_sizes", [0, 8, 16, 32, 64], "at least 1"),
        (MaskRCNNConfig, "nms_threshold", 1.5, "between 0 and 1"),
        (DataConfig, "scale_range", [2.0, 1.0], "0 < low <= high"),
        (DataConfig, "flip_horizontal", -0.1, "between 0 and 1"),
        (DataConfig, "crop_size", 8, "at least 32, or null"),
        (DataConfig, "repeat", 0, "at least 1"),
        (DataConfig, "short_sides", [800, 0], "at least 1, got (800, 0)"),
        (DataConfig, "rotate", 181, "between 0 and 180"),
        (DataConfig, "val_fraction", 1, "at least 0 and below 1"),
        (DataConfig, "val_fraction", math.nan, "at least 0 and below 1"),
        (DataConfig, "short_sides", [800.5], "a list of whole numbers"),
        (TrainConfig, "batch_size", 0, "at least 1"),
        (TrainConfig, "lr", 0, "above 0"),
        (TrainConfig, "milestones", [0.5, 1.5], "between 0 and 1"),
        (TrainConfig, "ema_decay", 1, "at least 0 and below 1, or null"),
        (TrainConfig, "lr", "fast", "a number"),
        (TrainConfig, "warmup_steps", "1e-1", "a whole number"),
        (TrainConfig, "batch_size", 1.5, "a whole number"),
        (TrainConfig, "warmup_steps", "inf", "a whole number"),
        (TrainConfig, "epochs", 3, "null"),
        (TrainConfig, "max_steps", None, "null"),
        (TrainConfig, "warmup_steps", -1, "at least 0"),
        (TrainConfig, "optimizer", "adam", "one of sgd, adamw"),
        (TrainConfig, "precision", "int8", "one of auto, float32"),
    ],
)
def test_invalid_value_message_contains_field_and_rule(cls: Any, name: str, value: Any, rule: str) -> None:
    message = refused(from_dict, cls, {name: value}, where="a.yaml: part")
    assert message.startswith("a.yaml: part: ")
    assert name in message or {name} == {"epochs"}
    assert rule in message


@pytest.mark.parametrize("cls", CONFIGS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_numbers_are_finite(cls: Any, bad: float) -> None:
    for name, hint in field_types(cls).items():
        if "float" in str(hint):
            assert name in refused(from_dict, cls, {name: bad}, where="")
            assert name in refused(from_dict, cls, {name: [1.0, bad]}, where="")


# --- plain values -----------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": "hinge", "mask_loss": "dice"},
        {"margin": "hinge", "mask_interpolation": "aligned", "min_prob": 1e-6},
        {"mask_interpolation": "aligned", "min_prob": 0.5},
    ],
)
def test_raises_on_incompatible_fields(changes: dict[str, Any]) -> None:
    assert set(changes) & set(refused(ModelConfig.preset, **changes).split())


def test_plain_values_take_the_type_of_the_field() -> None:
    train = from_dict(TrainConfig, {"lr": "1e-3", "milestones": [0.5, 1], "clip_norm": 10}, where="")
    assert (train.lr, train.milestones, train.clip_norm) == (0.001, (0.5, 1.0), 10.0)
    assert isinstance(train.clip_norm, float)
    model = from_dict(ModelConfig, {"strides": [8, 16, 32, 64, 128], "num_classes": "7"}, where="")
    assert (model.strides, model.num_classes) == ((8, 16, 32, 64, 128), 7)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr: 1e-3", 0.001), ("lr: 1E+2", 100.0), ("lr: '0.1'", 0.1), ("lr: 1", 1.0), ("max_minutes: 1.5e1", 15.0),
        ("milestones: [6e-1, 1]", (0.6, 1.0)), ("warmup_steps: 5e2", 500), ("max_steps: 9.0e+4", 90_000),
        ("batch_size: '8'", 8), ("lr_batch_size: 1.6e1", 16),
    ],
)  # fmt: skip
def test_number_formats_of_yaml(text: str, value: Any) -> None:
    name = text.partition(":")[0]
    found = getattr(Recipe.from_mapping(yaml.safe_load(f"train: {{{text}}}"), where="").train, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("cls", CONFIGS)
def test_json_round_trip(cls: Any) -> None:
    config = cls()
    assert from_dict(cls, json.loads(json.dumps(to_dict(config))), where="") == config


@given(
    lr=st.floats(1e-12, 1e3),
    milestones=st.lists(st.floats(0, 1), max_size=4),
    clip=st.none() | st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**40),
)
def test_yaml_round_trip(lr: float, milestones: list[float], clip: float | None, seed: int) -> None:
    """Check any values, among them 1e-05, which YAML reads as text."""
    train = TrainConfig(lr=lr, milestones=tuple(milestones), clip_norm=clip, seed=seed)
    text = yaml.safe_dump(Recipe(train=train).to_dict())
    assert Recipe.from_mapping(yaml.safe_load(text), where="").train == train


def test_override_changes_and_validates() -> None:
    train = override(TrainConfig(), {"epochs": 3, "max_steps": None}, where="--train")
    assert (train.epochs, train.max_steps, train.lr) == (3, None, TrainConfig().lr)
    assert "--train" in refused(override, TrainConfig(), {"epochs": 3}, where="--train")
    assert "did you mean 'lr'" in refused(override, TrainConfig(), {"lrr": 3}, where="--train")


# --- recipes ----------------------------------------------------------------


# --- model types --------------------------------------------------------------


# --- use of every field --------------------------------------------------------

HOLDERS = {"cfg", "config", "model", "data", "train"}
"""Names of variables and attributes that contain a config."""


def _attributes(source: str, holders: set[str]) -> set[str]:
    """Return the attributes that are read from names or attributes in `holders`."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value).split(".")[-1] in holders}


def _read_outside_config() -> set[str]:
    root = Path(embedmask.__file__).parent
    paths = [path for path in root.rglob("*.py") if root / "config" not in path.parents]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    return set().union(*(_attributes(source, HOLDERS) for source in sources))


def _derived_of(cls: type) -> dict[str, set[str]]:
    """Return the fields that each property or public method of a config uses, by its name."""
    members = {name: value for base in reversed(cls.__mro__[:-1]) for name, value in vars(base).items()}
    found = {name: value.fget if isinstance(value, property) else value for name, value in members.items()}
    return {
        name: _attributes(inspect.cleandoc("\n" + inspect.getsource(get)), {"self"})
        for name, get in found.items()
        if inspect.isfunction(get) and not name.startswith("_")
    }


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_is_read(cls: Any) -> None:
    read = _read_outside_config()
    derived = [fields for name, fields in _derived_of(cls).items() if name in read]
    unread = {field.name for field in dataclasses.fields(cls)} - read - set().union(*derived)
    assert unread == set(), "unused setting"


def test_every_derived_value_is_read() -> None:
    assert set(_derived_of(ModelConfig)) <= _read_outside_config()


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_page", -1), ("image_channels", (0, 1)), ("image_depth", 0), ("image_std", (0, 1, 1))],
)
def test_messages_name_the_field_of_the_config(field: str, value: Any) -> None:
    with pytest.raises(BadInput, match=f"{field} must be"):
        ModelConfig.preset("paper", num_classes=1, **{field: value})
