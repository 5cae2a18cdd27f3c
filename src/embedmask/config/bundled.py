"""Recipes by name or file, with overrides of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedmask.config import Recipe, override
from embedmask.errors import BadInput
from embedmask.fields import nearest
from embedmask.files import bundled_folder

Changes = Mapping[str, Mapping[str, Any] | None]


def resolve_recipe(config: str | None, changes: Changes, resumed: Path | None = None) -> Recipe:
    """Load a recipe and apply overrides.

    Args:
        config: Recipe, a name or a file.
        changes: Overrides by section (`model`, `data`, `train`) and field.
        resumed: Results folder of a resumed run, whose own recipe is used if `config` is None.

    Raises:
        BadInput: Unknown recipe, unknown field (the message suggests the closest) or invalid value.
    """
    if config is not None:
        path = find_recipe(config)
    elif resumed is not None:
        path = resumed / "recipe.yaml"
        if not path.is_file():
            raise BadInput(f"{path}: no such file, so there is no run to resume; omit --resume to start one")
    else:
        raise BadInput(f"--config is missing; pass a YAML file or one of {', '.join(recipe_names())}")
    if "kind" in (changes.get("model") or {}):
        raise BadInput("--model.kind: the type of a model is set by the recipe; write model: maskrcnn in it")
    recipe = Recipe.from_yaml(path)
    sections = {
        section: override(
            getattr(recipe, section), with_one_length(section, changes.get(section) or {}), f"--{section}"
        )
        for section in ("model", "data", "train")
    }
    return Recipe(**sections)


def with_one_length(section: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reset `train.max_steps` if only `train.epochs` is overridden, and vice versa: a run has one length."""
    other = {"epochs": "max_steps", "max_steps": "epochs"}
    lengths = [name for name in other if section == "train" and fields.get(name) is not None]
    return {other[lengths[0]]: None, **fields} if len(lengths) == 1 else fields


def find_recipe(name: str, option: str = "--config") -> Path:
    """Return the path of a recipe, a file or the name of a bundled one (`shapes`, `nuclei`).

    Raises:
        BadInput: No such recipe; the message suggests the closest name.
    """
    if Path(name).is_file():
        return Path(name)
    bundled = recipes_folder() / f"{name.removesuffix('.yaml').removesuffix('.yml')}.yaml"
    if bundled.is_file():
        return bundled
    names = recipe_names()
    hint = nearest(name, names)
    raise BadInput(f"{option} {name}: no such file or recipe{hint}; recipes: {', '.join(names) or 'none'}")


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def recipe_summary(name: str) -> str:
    """Return the first line of a bundled recipe, a comment that describes it."""
    return find_recipe(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def recipes_folder() -> Path:
    """Return the folder of the bundled recipes."""
    return bundled_folder("configs")
