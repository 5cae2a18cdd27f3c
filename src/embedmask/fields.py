"""Fields of the typed configs: bringing plain values to their declared type, and refusing those that do not fit."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, Literal, Union

from embedmask.errors import BadInput


def nearest(name: str, known: typing.Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f" (did you mean {match[0]!r}?)" if match else ""


def require(config: object, name: str, condition: bool, rule: str) -> None:
    if not condition:
        raise BadInput(f"{name} must be {rule}, got {getattr(config, name)!r}")


def coerce(value: Any, hint: Any) -> Any:
    """Bring YAML's and the command line's plain values to the field's type; what does not fit is left to the check."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    if any(typing.get_origin(option) is tuple for option in options) and isinstance(value, (list, tuple)):
        item = next(typing.get_args(o)[0] for o in options if typing.get_origin(o) is tuple)
        return tuple(coerce(v, item) for v in value)
    if float not in options and int not in options:
        return value
    return _number(value, whole=int in options)


def _number(value: Any, *, whole: bool) -> Any:
    """Bring a number to the type of the field: YAML 1.1 reads 1e-3 as text, and 9.0e+4 as no integer."""
    if isinstance(value, bool) or (whole and isinstance(value, int)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return value
    if not whole:
        return number
    return int(number) if number.is_integer() else value


def check_types(config: object) -> None:
    """Each field must be of its declared type: the door through which files and the command line come in."""
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
