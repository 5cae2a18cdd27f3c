"""The recipe and the data that a run began with, so that `--resume` goes on with the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedmask.config import Recipe
from embedmask.config.model_types import DEFAULT_KIND
from embedmask.config.recipe import read_yaml
from embedmask.errors import BadInput
from embedmask.files import write_json
from embedmask.training.data_module import TrainValDataModule

RUN_FILE = "run.json"
MAX_NAMED = 3
"""Differences in one message."""
FREE: Mapping[str, Sequence[str]] = {
    "model": ("image_short_side", "image_long_side", "image_rounding", "score_threshold", "decision_threshold",
              "nms_threshold", "max_detections", "mask_threshold", "pre_nms", "score", "rescore_masks",
              "clip_before_nms", "mask_frame"),
    "data": (),
    "train": ("epochs", "max_steps", "max_minutes", "early_stop", "eval_every", "eval_minutes", "keep", "workers",
              "precision", "checkpoint_minutes", "checkpoint_steps"),
}  # fmt: skip
"""Fields that a resumed run may change: the length of the training, the engine, evaluation and prediction."""


def write_identity(out: Path, recipe: Recipe, splits: TrainValDataModule) -> None:
    """Write what `check_identity` compares a resumed run with."""
    write_json(out / RUN_FILE, {"recipe": recipe.to_dict(), "data": _describe(splits)})


def check_identity(out: Path, recipe: Recipe, splits: TrainValDataModule) -> None:
    """Check that the run in `out` began with this recipe and this data, as far as its files tell.

    Raises:
        BadInput: a difference that changes the training; the first ones are named.
    """
    path = out / RUN_FILE
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
    else:  # a run of an earlier version
        begun = {"recipe": read_yaml(out / "recipe.yaml") if (out / "recipe.yaml").is_file() else {}}
    differences = [
        *_data_differences(begun.get("data", {}), splits),
        *_recipe_differences(begun["recipe"], recipe),
    ]
    if differences:
        named = ", ".join(differences[:MAX_NAMED])
        more = f" and {len(differences) - MAX_NAMED} more" if len(differences) > MAX_NAMED else ""
        raise BadInput(
            f"{out}: cannot be resumed: {named}{more}; give the recipe and the data that the run began with, "
            "or start a new run in another folder"
        )


def _describe(splits: TrainValDataModule) -> dict[str, Any]:
    train, val = splits.train_set, splits.val_set
    return {"classes": train.class_names, "train": train.fingerprint(), "val": val.fingerprint()}


def _data_differences(begun: Mapping[str, Any], splits: TrainValDataModule) -> Iterator[str]:
    if not begun:
        return
    now = _describe(splits)
    before, after = begun["classes"], now["classes"]
    yield from (f"class {name!r} is new" for name in after if name not in before)
    yield from (f"class {name!r} is missing" for name in before if name not in after)
    if before != after:
        yield "the classes are in another order"
    for split in ("train", "val"):
        for name, value in now[split].items():
            if begun[split][name] != value:
                counts = f" ({value}, began with {begun[split][name]})" if isinstance(value, int) else ""
                yield f"{split} has other {name}{counts}"


def _recipe_differences(begun: Mapping[str, Any], recipe: Recipe) -> Iterator[str]:
    """Name each field that differs; fields that an earlier version did not know are passed over."""
    if not begun:
        return
    now = json.loads(json.dumps(recipe.to_dict()))
    kind = {"kind": DEFAULT_KIND}  # EmbedMask's own recipes leave it out
    begun, now = ({**values, "model": {**kind, **values["model"]}} for values in (begun, now))
    for section, free in FREE.items():
        before = begun[section]
        for name, value in now[section].items():
            if name not in free and name in before and before[name] != value:
                yield f"{section}.{name} is {value}, began with {before[name]}"
