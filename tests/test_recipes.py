"""The bundled recipes: solver, image sizes and model of every published row, and the fields of every ablation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from embedmask import load
from embedmask.config import MaskRCNNConfig, ModelConfig, Recipe
from embedmask.config.bundled import recipe_names, resolve_recipe
from embedmask.synthetic.dataset import make_shapes
from embedmask.training import fit

ONE = (90_000, (60_000, 80_000))
THREE = (270_000, (210_000, 250_000))
"""Steps, and steps at which the rate drops: 12 and 36 epochs of COCO in batches of 16."""
ONE_SIZE, TWO_SIZES, SIX_SIZES = (800,), (640, 800), (640, 672, 704, 736, 768, 800)
FAST_SIZES = (384, 416, 448, 480, 512, 544)

PUBLISHED: dict[str, tuple[Any, tuple[int, ...], float]] = {
    "paper/r50_1x": (ONE, ONE_SIZE, 0.01),
    "paper/r101_1x": (ONE, ONE_SIZE, 0.01),
    "paper/r101_ms_3x": (THREE, TWO_SIZES, 0.01),
    "paper/r101_ms_3x_600": (THREE, TWO_SIZES, 0.01),
    "ijcai21/r50_1x": (ONE, ONE_SIZE, 0.01),
    "ijcai21/r101_1x": (ONE, ONE_SIZE, 0.01),
    "ijcai21/r101_ms_3x": (THREE, TWO_SIZES, 0.01),
    "fused/r50_ms_1x": (ONE, SIX_SIZES, 0.01),
    "fused/r101_ms_3x": (THREE, SIX_SIZES, 0.01),
    "fast/r18_3x": (THREE, FAST_SIZES, 0.01),
    "fast/r50_3x": (THREE, FAST_SIZES, 0.01),
    "retinanet/r50_1x": (ONE, ONE_SIZE, 0.01),
    "tal/r18_3x": (THREE, FAST_SIZES, 0.01),
    "tal/r50_3x": (THREE, FAST_SIZES, 0.01),
    "maskrcnn/r50_1x": (ONE, ONE_SIZE, 0.01),
    "maskrcnn/r50_1x_lr0.02": (ONE, ONE_SIZE, 0.02),
    "maskrcnn/r101_1x": (ONE, ONE_SIZE, 0.01),
    "maskrcnn/r101_1x_lr0.02": (ONE, ONE_SIZE, 0.02),
    "maskrcnn/r101_ms_3x": (THREE, TWO_SIZES, 0.01),
    "maskrcnn/r101_ms_3x_lr0.02": (THREE, TWO_SIZES, 0.02),
}
"""Recipe -> length and drops, short sides, rate for 16 images."""
PRESETS = {"retinanet": "paper", "tal": "fast"}
"""Preset of a folder of recipes, where it has another name."""
DETECTORS: dict[str, dict[str, Any]] = {
    "retinanet": {"detector": "retinanet", "nms_threshold": 0.5},
    "tal": {"detector": "tal", "box_weight": 2.0, "score": "product"},
}
"""Fields of a folder of recipes that differ from its preset."""
WARM_UP = {"fused": ("linear", 1000, 0.001), "fast": ("linear", 1000, 0.001)}
"""Course, steps and factor of the warm-up by preset, where it is not the paper's."""
BIASES = {"fused": (1.0, 1e-4, 0.0), "fast": (1.0, 1e-4, 0.0)}
"""Rate factor and decay of biases, and decay of norms, likewise."""
SHAPES = (9, (), None, 1, 0.003, 16, 30, None, "resnet10t")
NUCLEI = (12, (), 256, 8, 0.001, 8, 100, 0.998, "resnet18d")
CATS = (12, (256, 288, 320, 352, 384), None, 1, 0.0005, 8, 100, 0.998, "resnet18")
OTHERS: dict[str, tuple[Any, ...]] = {
    "finetune": (20, (256, 288, 320, 352, 384), None, 1, 0.001, 8, 50, 0.998, "resnet18"),
    **dict.fromkeys(("shapes", "maskrcnn/shapes", "retinanet/shapes", "tal/shapes"), SHAPES),
    **dict.fromkeys(("nuclei", "maskrcnn/nuclei", "retinanet/nuclei", "tal/nuclei"), NUCLEI),
    "maskrcnn/nuclei_r50": (*NUCLEI[:-1], "resnet50"),
    "nuclei_all": (3, (), 192, 8, 0.0008, 8, 100, 0.998, "resnet18d"),
    **dict.fromkeys(("retinanet/cats", "tal/cats"), CATS),
}
"""Recipe for other data than COCO -> epochs, short sides, crop, repeat, rate, batch, warm-up, EMA, backbone."""

BASE = {"box_expansion": 1.0}
CELLS: dict[str, dict[str, Any]] = {
    "a_hinge": {**BASE, "margin": "hinge"},
    "a_constant": {**BASE, "margin": "constant"},
    "a_predicted": BASE,
    "b_pixel": {**BASE, "cluster_center": "pixel"},
    "b_proposal": BASE,
    "c_neither": {**BASE, "sample_in_mask": False, "embed_samples": "all"},
    "c_in_mask": {**BASE, "embed_samples": "all"},
    "c_in_mask_iou": BASE,
    "d_box_1.0": BASE,
    "d_box_1.2": {"box_expansion": 1.2},
    "d_box_1.5": {"box_expansion": 1.5},
    "e_dim_8": {**BASE, "embed_dim": 8},
    "e_dim_16": {**BASE, "embed_dim": 16},
    "e_dim_32": BASE,
}
"""Cell of Table 2 -> fields that differ from the preset `paper`."""
TABLE_2 = {
    "embed_dim": 32,
    "margin": "predicted",
    "margin_source": "box",
    "margin_input_scale": 800.0,
    "prior_margin": 2.0,
    "cluster_center": "proposal",
    "sample_in_mask": True,
    "embed_samples": "iou",
    "sample_iou": 0.5,
    "mask_loss": "lovasz",
    "mask_weight": 0.5,
    "smooth_weight": 0.1,
    "backbone": "resnet50",
    "image_short_side": 800,
}
"""Values of the other fields in every cell, as the paper states them."""


def preset_of(name: str) -> str:
    folder = name.partition("/")[0]
    return PRESETS.get(folder, folder)


def schedule(recipe: Recipe) -> Any:
    total = recipe.train.max_steps
    assert total is not None
    return total, tuple(round(total * drop) for drop in recipe.train.milestones)


def test_every_recipe_is_listed() -> None:
    cells = {f"ablations/{cell}" for cell in CELLS}
    assert set(recipe_names()) == set(PUBLISHED) | cells | set(OTHERS)


@pytest.mark.parametrize("name", OTHERS)
def test_recipes_for_other_data(name: str) -> None:
    recipe = resolve_recipe(name, {})
    data, train = recipe.data, recipe.train
    sizes = (train.epochs, data.short_sides, data.crop_size, data.repeat)
    solver = (train.lr, train.batch_size, train.warmup_steps, train.ema_decay)
    assert (*sizes, *solver, recipe.model.backbone) == OTHERS[name]
    course = (train.optimizer, train.schedule, train.warmup, train.weight_decay, train.max_steps)
    assert course == ("adamw", "cosine", "linear", 0.05, None)
    assert recipe.model.image_short_side == {"cats": 320, "finetune": 320}.get(name.rpartition("/")[2])
    base = name.rpartition("/")[2].removesuffix("_r50")
    if base in OTHERS and base != name:
        assert (data, train) == (resolve_recipe(base, {}).data, resolve_recipe(base, {}).train)


@pytest.mark.parametrize("name", PUBLISHED)
def test_solver_and_images(name: str) -> None:
    length, short_sides, rate = PUBLISHED[name]
    recipe = resolve_recipe(name, {})
    preset = preset_of(name)
    check_solver(recipe, length, rate, preset)
    assert recipe.data.short_sides == short_sides
    assert recipe.data.long_side == (907 if preset == "fast" else 1333)
    assert recipe.data.flip_horizontal == 0.5
    assert (recipe.data.degenerate, recipe.data.keep_empty) == ("drop", False)


def check_solver(recipe: Recipe, length: Any, rate: float, preset: str) -> None:
    train = recipe.train
    assert schedule(recipe) == length
    assert (train.epochs, train.schedule, train.gamma) == (None, "step", 0.1)
    assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (train.lr, train.batch_size, train.lr_batch_size) == (rate, 16, 16)
    assert (train.warmup, train.warmup_steps, train.warmup_factor) == WARM_UP.get(
        preset, ("constant", 500, 1 / 3)
    )
    biases = train.bias_lr_factor, train.bias_weight_decay, train.norm_weight_decay
    assert biases == BIASES.get(preset, (2.0, 0.0, None))
    assert train.keep == ("best" if preset == "fast" else "last")


@pytest.mark.parametrize("name", PUBLISHED)
def test_model(name: str) -> None:
    folder, _, rest = name.partition("/")
    preset = preset_of(name)
    depth = {"r18": "resnet18", "r50": "resnet50", "r101": "resnet101"}[rest.partition("_")[0]]
    side = {"image_short_side": 600} if rest.endswith("_600") else {}
    model = resolve_recipe(name, {}).model
    if preset == "maskrcnn":
        assert model == MaskRCNNConfig(backbone=depth)
    else:
        assert model == ModelConfig.preset(preset, backbone=depth, **side, **DETECTORS.get(folder, {}))


@pytest.mark.parametrize("cell", CELLS)
def test_ablation(cell: str) -> None:
    recipe = resolve_recipe(f"ablations/{cell}", {})
    fixed = {name: value for name, value in TABLE_2.items() if name not in CELLS[cell]}
    assert {name: getattr(recipe.model, name) for name in fixed} == fixed
    assert recipe.model == dataclasses.replace(ModelConfig.preset("paper"), **CELLS[cell])
    check_solver(recipe, ONE, 0.01, preset="paper")
    assert recipe.data == resolve_recipe("paper/r50_1x", {}).data


def test_finetune() -> None:
    """Pin the recipe for photographs; docs/train.md gives the measurements behind its values."""
    recipe = resolve_recipe("finetune", {})
    model, data, train = recipe.model, recipe.data, recipe.train
    assert isinstance(model, ModelConfig)
    assert (model.backbone, model.backbone_norm, model.frozen_stages) == ("resnet18", "frozen", 2)
    assert (model.detector, model.box_weight, model.embed_stride) == ("tal", 2.0, None)
    assert (model.image_short_side, model.image_long_side) == (320, 640)
    assert (data.short_sides, data.long_side) == ((256, 288, 320, 352, 384), 640)
    assert (data.flip_horizontal, data.color_jitter, data.repeat) == (0.5, 0.2, 1)
    assert (train.epochs, train.max_steps, train.batch_size) == (20, None, 8)
    assert (train.optimizer, train.lr, train.weight_decay, train.schedule) == ("adamw", 0.001, 0.05, "cosine")
    assert (train.ema_decay, train.clip_norm, train.pretrained, train.keep) == (0.998, 10, True, "best")


def test_finetune_trains_a_step(tmp_path: Path) -> None:
    """Train one step on two images, with another backbone and random weights, and load the model."""
    changes: dict[str, Any] = {
        "model": {"backbone": "tf_efficientnet_lite0", "image_short_side": 64},
        "data": {"short_sides": [64]},
        "train": {"max_steps": 1, "batch_size": 2, "pretrained": False, "workers": 0},
    }
    make_shapes(tmp_path / "data", train=2, val=1, size=64)
    metrics = fit.train(resolve_recipe("finetune", changes), tmp_path / "data", tmp_path / "out")
    assert metrics["steps"] == 1
    model = load(tmp_path / "out" / "model.safetensors")
    assert model.config.image_mean == (127.5, 127.5, 127.5)  # as the backbone expects
    assert not any("centerness" in name for name in model.state_dict())


def test_recipes_of_the_checkout_are_those_of_the_package() -> None:
    folder = Path(__file__).parents[1] / "configs"
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
    assert files == set(recipe_names())
