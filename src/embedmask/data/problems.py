"""What can be wrong with a data set, and who is told: training stops at the first, a check lists all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
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
    "degenerate polygon",
    "empty mask",
    "bad mask",
    "missing mask",
    "missing image",
    "broken image",
    "wrong size",
    "leak",
    "same picture twice",
    "same class name",
    "unused category",
    "no objects",
    "crowd",
    "object twice",
    "bad box",
    "bad area",
    "crowded image",
    "tiny object",
    "one label only",
    "labels without image",
    "image name",
    "left out",
    "image left out",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of a report: what keeps training from starting first."""
DEGENERATE: tuple[Kind, ...] = ("degenerate polygon", "empty mask")
"""Objects, or parts of them, that cover nothing; they may be left out (`DataConfig.degenerate`)."""


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


@dataclass
class WarningCollector:
    """Passes problems on, and keeps those that are not fatal.

    Attributes:
        note: called with every problem.
        warnings: those that are not fatal.
    """

    note: Note
    warnings: list[Problem] = field(default_factory=list)

    def __call__(self, problem: Problem) -> None:
        """Keep and pass on a problem."""
        if not problem.fatal:
            self.warnings.append(problem)
        self.note(problem)


def warning_lines(problems: Iterable[Problem]) -> list[str]:
    """Return one line for each kind of problem: the first of the kind, and the number of others."""
    kinds: dict[Kind, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.message)
    return [
        f"warning: {first}"
        + (f" (and {len(others)} more such lines in `embedmask data check`)" if others else "")
        for first, *others in kinds.values()
    ]


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
