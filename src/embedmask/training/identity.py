"""`run.json`: the recipe and data that a run began with, which `--resume` compares."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedmask.config import Recipe
from embedmask.config.convert import current_names
from embedmask.config.model_types import DEFAULT_TYPE
from embedmask.config.recipe import read_yaml
from embedmask.errors import BadInput, name_some
from embedmask.files import write_json
from embedmask.training.data_module import TrainValDataModule

RUN_FILE = "run.json"
FREE: Mapping[str, Sequence[str]] = {
    "model": ("image_short_side", "image_long_side", "image_rounding", "candidate_threshold", "default_score_threshold",
              "nms_threshold", "max_detections", "mask_threshold", "pre_nms_topk", "score", "rescore_masks",
              "clip_before_nms", "mask_frame", "mask_margin"),
    "data": (),
    "train": ("epochs", "max_steps", "max_minutes", "early_stop", "eval_every", "eval_minutes", "keep", "workers",
              "precision", "checkpoint_minutes", "checkpoint_steps"),
}  # fmt: skip
"""Fields that a resumed run may change: those of the training length, the engine, evaluation and prediction."""


def write_identity(out: Path, recipe: Recipe, splits: TrainValDataModule) -> None:
    """Write `run.json` for `check_identity`."""
    write_json(out / RUN_FILE, {"recipe": recipe.to_dict(), "data": _describe(splits)})


def check_identity(out: Path, recipe: Recipe, splits: TrainValDataModule) -> None:
    """Check that the run in `out` began with the same recipe and the same data.

    Raises:
        BadInput: the training differs; the message lists the first differences.
    """
    path = out / RUN_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
    else:  # earlier versions wrote no run.json
        before = {"recipe": read_yaml(out / "recipe.yaml") if (out / "recipe.yaml").is_file() else {}}
    differences = [
        *_data_differences(before.get("data", {}), splits),
        *_recipe_differences(before["recipe"], recipe),
    ]
    if differences:
        raise BadInput(
            f"{out}: cannot be resumed: {name_some(differences)}; use the recipe and the data that the run began "
            "with, or start a new run in another folder"
        )


def _describe(splits: TrainValDataModule) -> dict[str, Any]:
    train, val = splits.train_set, splits.val_set
    return {"classes": train.class_names, "train": train.fingerprint(), "val": val.fingerprint()}


def _data_differences(before: Mapping[str, Any], splits: TrainValDataModule) -> Iterator[str]:
    if not before:
        return
    now = _describe(splits)
    old, new = before["classes"], now["classes"]
    yield from (f"class {name!r} is new" for name in new if name not in old)
    yield from (f"class {name!r} is missing" for name in old if name not in new)
    if old != new:
        yield "the classes are in another order"
    for split in ("train", "val"):
        for name, value in now[split].items():
            if before[split][name] != value:
                counts = f" ({value}, began with {before[split][name]})" if isinstance(value, int) else ""
                yield f"{split} has other {name}{counts}"


def _recipe_differences(before: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """Describe each field that differs, except fields that an earlier version did not have."""
    if not before:
        return
    now = json.loads(json.dumps(recipe.to_dict()))  # as read from JSON, with lists for tuples
    default = {"kind": DEFAULT_TYPE}  # recipes of EmbedMask omit it
    before, now = ({**values, "model": {**default, **values["model"]}} for values in (before, now))
    for section, free in FREE.items():
        old = current_names(type(getattr(recipe, section)), before[section], f"{RUN_FILE}: {section}")
        for name, value in now[section].items():
            if name not in free and name in old and old[name] != value:
                yield f"{section}.{name} is {value}, began with {old[name]}"
