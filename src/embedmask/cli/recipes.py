"""Which recipe a run follows: a name or a file, and what the command line changes in it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from embedmask.config import Recipe, override
from embedmask.errors import BadInput

Changes = Mapping[str, Mapping[str, Any] | None]
OPTIONS = {"model": "--model", "data": "--augment", "train": "--train"}


def resolve_recipe(config: str | None, changes: Changes, resumed: Path | None = None) -> Recipe:
    """The recipe of a run.

    Args:
        config: recipe name or file.
        changes: section of the recipe (`model`, `data`, `train`) -> field -> value.
        resumed: results folder of a run that goes on; its own recipe is taken where `config` is None.

    Raises:
        BadInput: no recipe of that name, an unknown field (the nearest is named) or an impossible value.
    """
    if config is None and resumed is None:
        raise BadInput(f"--config is missing; give a YAML file or one of {', '.join(recipe_names())}")
    path = find_recipe(config) if config is not None else run_recipe(resumed)
    if "kind" in (changes.get("model") or {}):
        raise BadInput("--model.kind: the recipe names the kind of its model; write model: maskrcnn in it")
    recipe = Recipe.from_yaml(path)
    parts = {
        section: override(
            getattr(recipe, section), lengths(section, changes.get(section) or {}), where=option
        )
        for section, option in OPTIONS.items()
    }
    return Recipe(**parts)


def lengths(section: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """`--train.epochs 3` alone replaces `max_steps`, and the other way round: a run has one length."""
    pair = {"epochs": "max_steps", "max_steps": "epochs"}
    given = [name for name in pair if section == "train" and fields.get(name) is not None]
    return {pair[given[0]]: None, **fields} if len(given) == 1 else fields


def parse_score_threshold(text: str | None) -> float | dict[str, float] | None:
    """Read `--score-threshold`: one number, or `CLASS=NUMBER,CLASS=NUMBER`.

    Raises:
        BadInput: a value that is no number between 0 and 1.
    """
    if text is None:
        return None
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        numbers = {name.strip(): float(value) for name, _, value in parts}
        if (len(parts) > 1 and "" in numbers) or not all(0 <= value <= 1 for value in numbers.values()):
            raise ValueError
    except ValueError:
        raise BadInput(
            f"--score-threshold must lie between 0 and 1, one number or CLASS=NUMBER,CLASS=NUMBER, got {text}"
        ) from None
    return numbers.get("", numbers)


def run_recipe(folder: Path | None) -> Path:
    """The recipe that a run wrote into its folder."""
    path = Path(folder or "") / "recipe.yaml"
    if not path.is_file():
        raise BadInput(f"{path}: no such file, so there is no run to resume; leave out --resume to start one")
    return path


def find_recipe(name: str, option: str = "--config") -> Path:
    """A file, or the recipe of that name (`shapes`, `nuclei`) that comes with the package."""
    if Path(name).is_file():
        return Path(name)
    shipped = recipes_folder() / f"{name.removesuffix('.yaml').removesuffix('.yml')}.yaml"
    if shipped.is_file():
        return shipped
    names = recipe_names()
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise BadInput(f"{option} {name}: no such file or recipe{hint}; recipes: {', '.join(names) or 'none'}")


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def recipe_summary(name: str) -> str:
    """Return the first line of a recipe that comes with the package, which is a comment."""
    return find_recipe(name).read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def recipes_folder() -> Path:
    """Where the recipes lie."""
    return Path(str(resources.files("embedmask"))) / "configs"
