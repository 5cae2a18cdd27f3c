"""What can be wrong with a data set, and who is told: training stops at the first, a check lists all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from embedmask.errors import BadInput

Kind = Literal[
    "missing split",
    "unreadable annotations",
    "bad record",
    "different classes",
    "duplicate id",
    "unknown image",
    "unknown category",
    "degenerate box",
    "degenerate polygon",
    "empty mask",
    "bad box",
    "bad mask",
    "missing mask",
    "missing image",
    "broken image",
    "wrong size",
    "leak",
    "same picture twice",
    "unused category",
    "no objects",
    "crowded image",
    "tiny object",
    "one label only",
    "labels without image",
    "several pages",
    "unread file",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of a report: what keeps training from starting first."""
DEGENERATE: tuple[Kind, ...] = ("degenerate box", "degenerate polygon", "empty mask")
"""Objects that cover nothing; they may be left out (`DataConfig.degenerate`)."""


TOLD: tuple[Kind, ...] = ("several pages", "unread file")
"""Harmless, but training and evaluation say them as well."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: what sort of thing.
        message: one line: what, where, how to mend it.
        fatal: training cannot go on with it.
    """

    kind: Kind
    message: str
    fatal: bool = True


Note = Callable[[Problem], None]
"""Is told of a problem, and raises or returns; after it returns, what is wrong is left out."""


class BadObject(BadInput):
    """One object cannot be used; the message does not say where it stands."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def refuse(problem: Problem) -> None:
    """Stop at what training cannot go on with.

    Raises:
        BadInput: the problem is fatal.
    """
    if problem.fatal:
        raise BadInput(problem.message)


def drop_degenerate(problem: Problem) -> None:
    """As `refuse`, but objects that cover nothing are left out."""
    if problem.kind not in DEGENERATE:
        refuse(problem)
