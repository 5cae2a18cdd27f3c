"""Conversion and validation of config fields by their declared types and constraints."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Union

from embedmask.errors import BadInput


@dataclass(frozen=True)
class Constraint:
    """Condition on the numbers of a field, declared beside it as `Annotated[int, at_least(1)]`.

    Attributes:
        holds: whether a number meets the condition; None and text are not tested.
        rule: the condition in words, which continues "NAME must be ...".
    """

    holds: Callable[[float], bool]
    rule: str


def at_least(low: float) -> Constraint:
    """Return the constraint `value >= low`."""
    return Constraint(lambda value: value >= low, f"at least {low}")


def above(low: float) -> Constraint:
    """Return the constraint `value > low`."""
    return Constraint(lambda value: value > low, f"above {low}")


def at_most(high: float) -> Constraint:
    """Return the constraint `value <= high`."""
    return Constraint(lambda value: value <= high, f"at most {high}")


def below(high: float) -> Constraint:
    """Return the constraint `value < high`."""
    return Constraint(lambda value: value < high, f"below {high}")


def between(low: float, high: float) -> Constraint:
    """Return the constraint `low <= value <= high`."""
    return Constraint(lambda value: low <= value <= high, f"between {low} and {high}")


OR_NULL = " or null"

PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
PositiveFloat = Annotated[float, above(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]


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

    Lists become tuples and numbers take the declared type. Other values are returned as they are, for `check_fields`
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


@lru_cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the declared type of each field of a config, without constraints."""
    return typing.get_type_hints(cls)


@lru_cache
def field_constraints(cls: type) -> dict[str, tuple[Constraint, ...]]:
    """Return the constraints of each field of a config."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: tuple(dict.fromkeys(_constraints(hint))) for name, hint in hints.items()}


def check_fields(config: object) -> None:
    """Check that every field of a config has its declared type and meets its constraints, and numbers are finite.

    Raises:
        BadInput: a value has another type, violates a constraint, or is infinite or NaN.
    """
    cls: Any = type(config)
    constraints = field_constraints(cls)
    for name, hint in field_types(cls).items():
        value = getattr(config, name)
        require(config, name, _fits(value, hint), _describe(hint))
        items = value if isinstance(value, tuple) else (value,)
        numbers = [item for item in items if isinstance(item, (int, float))]
        valid = all(constraint.holds(number) for constraint in constraints[name] for number in numbers)
        require(config, name, valid, _describe_rule(cls, name))
        require(config, name, all(map(math.isfinite, numbers)), "finite")


def describe_field(cls: type, name: str) -> str:
    """Return the type and the constraints of a field in words."""
    text = _describe(field_types(cls)[name])
    return (
        f"{text.removesuffix(OR_NULL)}, {_describe_rule(cls, name)}" if field_constraints(cls)[name] else text
    )


def _constraints(hint: Any) -> typing.Iterator[Constraint]:
    """Yield the constraints of a type, and of the members of a union or a tuple."""
    if typing.get_origin(hint) is Annotated:
        yield from hint.__metadata__
    for part in typing.get_args(hint):
        yield from _constraints(part)


def _describe_rule(cls: type, name: str) -> str:
    null = f",{OR_NULL}" if type(None) in typing.get_args(field_types(cls)[name]) else ""
    return " and ".join(constraint.rule for constraint in field_constraints(cls)[name]) + null


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
        count = "a list of" if args[-1] is Ellipsis else f"{len(args)}"
        return f"{count} {_describe(args[0]).removeprefix('a ')}s"
    if hint is type(None):
        return "null"
    return {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}[
        hint.__name__
    ]
