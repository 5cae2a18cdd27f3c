"""Conversion and validation of config fields by their declared types."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, Literal, Union

from embedmask.errors import BadInput


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Return a suggestion of the known name nearest to a misspelled one; empty if none is similar."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f" (did you mean {match[0]!r}?)" if match else ""


def require(config: object, name: str, condition: bool, rule: str) -> None:
    """Check a condition on a field.

    Args:
        config: config that has the field.
        name: name of the field.
        condition: whether the value is valid.
        rule: requirement, which continues "NAME must be ...".

    Raises:
        BadInput: `condition` is False.
    """
    if not condition:
        raise BadInput(f"{name} must be {rule}, got {getattr(config, name)!r}")


def coerce(value: Any, hint: Any) -> Any:
    """Convert a plain value of YAML or the command line to the type of a field.

    Lists become tuples and numbers take the declared type. Other values are returned as they are, for `check_types`
    to reject.
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    item = next((typing.get_args(o)[0] for o in options if typing.get_origin(o) is tuple), None)
    if item is not None and isinstance(value, (list, tuple)):
        return tuple(coerce(v, item) for v in value)
    is_whole = int in options
    if not (is_whole or float in options) or isinstance(value, bool) or (is_whole and isinstance(value, int)):
        return value
    # YAML 1.1 reads 1e-3, without a point, as text, and 9.0e+4 as a float
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if not is_whole:
        return number
    return int(number) if number.is_integer() else value


def check_types(config: object) -> None:
    """Check that every field of a config has a value of its declared type.

    Raises:
        BadInput: a value has another type.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _fits(value, hint):
            raise BadInput(f"{name} must be {_describe(hint)}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple) or (args[-1] is not Ellipsis and len(value) != len(args)):
            return False
        return all(_fits(v, args[0]) for v in value)
    # bool is a subclass of int, but true is not a number here
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        count = "a list" if args[-1] is Ellipsis else f"{len(args)} values"
        return f"{count} of {_describe(args[0])}"
    if hint is type(None):
        return "null"
    return {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}[
        hint.__name__
    ]
