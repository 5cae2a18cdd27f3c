"""What can be wrong with a data set, and who is told: training stops at the first, a check lists all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from embedmask.errors import BadInput

if TYPE_CHECKING:
    from embedmask.data.segmentation import Segmentation
    from embedmask.structures import Size

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
    "same image twice",
    "same class name",
    "unused category",
    "no objects",
    "crowd",
    "object twice",
    "bad box",
    "bad area",
    "crowded image",
    "thin image",
    "tiny object",
    "self-crossing polygon",
    "outside the image",
    "mostly empty mask",
    "EXIF orientation",
    "mixed EXIF frames",
    "objects of a turned copy",
    "one label only",
    "labels without image",
    "image name",
    "left out",
    "image left out",
    "several pages",
    "unread file",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of a report: what keeps training from starting first."""
DEGENERATE: tuple[Kind, ...] = ("degenerate polygon", "empty mask")
"""Objects, or parts of them, that cover nothing; they may be left out (`DataConfig.degenerate`)."""


@dataclass(frozen=True)
class Example:
    """The image, or the object, that shows a problem; it can be drawn.

    Attributes:
        image_id: id of the image in its split.
        name: the object, such as "annotation 5"; empty for the image as a whole.
        mask: the object; None: all objects of the image.
    """

    image_id: int
    name: str = ""
    mask: Segmentation | None = None


TOLD: tuple[Kind, ...] = ("several pages", "unread file")
"""Harmless, but training and evaluation say them as well."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: what sort of thing.
        message: one line: what, where, how to mend it.
        fatal: training cannot go on with it.
        example: shows it, where that helps.
    """

    kind: Kind
    message: str
    fatal: bool = True
    example: Example | None = None


OnIssue = Callable[[Problem], None]
"""Is told of a problem, and raises or returns; after it returns, what is wrong is left out."""


@dataclass
class WarningCollector:
    """Passes problems on, and keeps those that are not fatal.

    Attributes:
        on_issue: called with every problem.
        warnings: those that are not fatal.
    """

    on_issue: OnIssue
    warnings: list[Problem] = field(default_factory=list)

    def __call__(self, problem: Problem) -> None:
        """Keep and pass on a problem."""
        if not problem.fatal:
            self.warnings.append(problem)
        self.on_issue(problem)


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


class CheckedObject(NamedTuple):
    """One object whose record can be used, as a further check of its mask sees it.

    Attributes:
        mask: in the file's frame.
        label: 0..C-1.
        image_id: the image, as the file calls it.
        size: `(height, width)` of the image.
        where: file, annotation and image, for messages.
        box: xywh px as the file has it, unchecked; None: no box.
    """

    mask: Segmentation
    label: int
    image_id: int
    size: Size
    where: str
    box: Any


Inspect = Callable[[CheckedObject], None]
"""Is shown every object that is kept, in the order of the file."""


class BadObject(BadInput):
    """One object cannot be used; the message does not say where it stands."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def raise_issue(problem: Problem) -> None:
    """Stop at what training cannot go on with.

    Raises:
        BadInput: the problem is fatal.
    """
    if problem.fatal:
        raise BadInput(problem.message)


def drop_degenerate(problem: Problem) -> None:
    """As `raise_issue`, but objects that cover nothing are left out."""
    if problem.kind not in DEGENERATE:
        raise_issue(problem)
