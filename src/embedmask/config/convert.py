"""Conversion between configs and plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from embedmask.errors import BadInput
from embedmask.fields import coerce, field_types, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")
"""A config dataclass."""

RENAMED = {
    "decision_threshold": "default_score_threshold",
    "score_threshold": "candidate_threshold",
    "pre_nms": "pre_nms_topk",
    "where": "image_filter",
}
"""Former name -> name of a field, for model files, recipes and options of earlier versions."""


def current_names(cls: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values by field name, with the former names of fields replaced; messages begin with `where`.

    Raises:
        BadInput: a field is given by both names.
    """
    former = {old: new for old, new in RENAMED.items() if old in values and new in field_types(cls)}
    for old, new in former.items():
        if new in values:
            raise BadInput(f"{where}: {old} is the former name of {new}; give {new} only")
    return {former.get(name, name): value for name, value in values.items()}


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build a config from plain values of YAML, JSON or the command line.

    Args:
        values: field name, or former name -> value; lists become tuples, and numbers take the type of the field.
        where: source of the values, for error messages.

    Raises:
        BadInput: a field is unknown (the message suggests the nearest), given twice, or its value is invalid.
    """
    hints = field_types(cls)
    known = [f.name for f in fields(cls)]
    built: dict[str, Any] = {}
    for name, value in current_names(cls, values, where).items():
        if name not in known:
            raise BadInput(f"{where}: unknown field {name!r}{nearest(name, known)}")
        built[name] = coerce(value, hints[name])
    try:
        return cls(**built)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """Return the fields as plain values for JSON or YAML, with lists for tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()
    }


def override(config: Config, values: Mapping[str, Any], where: str) -> Config:
    """Return a copy with some fields changed, validated as in `from_dict`; without changes, the config itself."""
    if not values:
        return config
    changed = {f.name: getattr(config, f.name) for f in fields(config)}
    return from_dict(type(config), {**changed, **current_names(type(config), values, where)}, where=where)
