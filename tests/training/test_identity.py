"""Comparison of a resumed run's recipe and data with those that it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import tiny

from embedmask.config import Recipe
from embedmask.errors import BadInput
from embedmask.synthetic.dataset import make_shapes
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.fit import with_classes
from embedmask.training.identity import RUN_FILE, check_identity, write_identity


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(folder, train=4, val=2, size=64, seed=0)
    return folder


@pytest.fixture
def out(shapes: Path, tmp_path: Path) -> Path:
    """Write the files of a run that has just begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    recipe, splits = opened(tiny(), shapes)
    write_identity(folder, recipe, splits)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    return folder


def opened(recipe: Recipe, data: Path) -> tuple[Recipe, TrainValDataModule]:
    splits = TrainValDataModule(data, recipe)
    return with_classes(recipe, len(splits.train_set.class_names), None), splits


def changed(shapes: Path, folder: Path, change: Callable[[dict[str, Any]], Any], *splits: str) -> Path:
    """Write a copy of the data set with the annotations of some splits changed."""
    (folder / "images").symlink_to(shapes / "images", target_is_directory=True)
    for split in ("train", "val"):
        content = json.loads((shapes / f"{split}.json").read_text())
        if split in splits:
            change(content)
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_same_data_in_another_folder_is_accepted(shapes: Path, out: Path, tmp_path: Path) -> None:
    data = tmp_path / "moved"
    data.mkdir()
    check_identity(out, *opened(tiny(), changed(shapes, data, lambda content: None)))


@pytest.mark.parametrize(
    ("splits", "change", "message"),
    [
        (("train", "val"), lambda c: c["categories"].append({"id": 99, "name": "third"}), "class 'third' is new"),
        (("train", "val"), lambda c: c["categories"][0].update(name="other"), "class 'other' is new"),
        (("train",), lambda c: c["images"].pop(), r"train has other images \(3, began with 4\)"),
        (("val",), lambda c: c["images"].pop(), r"val has other images \(1, began with 2\)"),
        (("train",), lambda c: c["images"].reverse(), "train has other file names"),
        (("val",), lambda c: c["annotations"].pop(), "val has other annotations"),
        (("train",), lambda c: c["annotations"][0].update(c["annotations"][1] | {"id": 1}), "train has other annot"),
    ],
)  # fmt: skip
def test_raises_on_other_data(
    splits: tuple[str, ...], change: Any, message: str, *, shapes: Path, out: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()

    def change_consistently(content: dict[str, Any]) -> None:
        change(content)
        known = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in known]

    with pytest.raises(BadInput, match=message) as caught:
        check_identity(out, *opened(tiny(), changed(shapes, data, change_consistently, *splits)))
    assert "\n" not in str(caught.value)
    assert str(out) in str(caught.value)


def test_raises_on_reordered_classes(shapes: Path, out: Path) -> None:
    content = json.loads((out / RUN_FILE).read_text())
    content["data"]["classes"].reverse()
    (out / RUN_FILE).write_text(json.dumps(content))
    with pytest.raises(BadInput, match="the classes are in another order"):
        check_identity(out, *opened(tiny(), shapes))


@pytest.mark.parametrize("version", ["with run.json", "of an earlier version"])
@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (tiny(lr=0.5), "train.lr is 0.5, began with 0.002"),
        (tiny(seed=3), "train.seed is 3, began with 0"),
        (tiny(model={"channels": 64}), "model.channels is 64, began with 32"),
        (Recipe.from_mapping({"model": "maskrcnn"}, "test"), "model.kind is maskrcnn, began with embedmask"),
    ],
)
def test_raises_on_another_recipe(
    version: str, recipe: Recipe, message: str, shapes: Path, out: Path
) -> None:
    if version != "with run.json":
        (out / RUN_FILE).unlink()
    with pytest.raises(BadInput, match=message):
        check_identity(out, *opened(recipe, shapes))


def test_length_engine_and_prediction_may_change(shapes: Path, out: Path) -> None:
    longer = {"epochs": None, "max_steps": 99, "max_minutes": 1, "early_stop": 3, "eval_every": 2}
    engine = {"workers": 1, "precision": "bfloat16", "checkpoint_minutes": 1, "checkpoint_steps": 5}
    prediction = {"max_detections": 7, "default_score_threshold": 0.7, "mask_margin": 0.3}
    recipe = tiny(model=prediction, **longer, **engine)
    check_identity(out, *opened(recipe, shapes))


def test_run_of_an_earlier_version_is_accepted(shapes: Path, out: Path) -> None:
    (out / RUN_FILE).unlink()
    older = yaml.safe_load((out / "recipe.yaml").read_text())
    del older["train"]["lr"], older["model"]["channels"]  # fields that it did not have
    (out / "recipe.yaml").write_text(yaml.safe_dump(older))
    check_identity(out, *opened(tiny(), shapes))
    (out / "recipe.yaml").unlink()
    check_identity(out, *opened(tiny(lr=3), shapes))
