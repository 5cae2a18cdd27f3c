"""Problems of data sets: training stops at the first fatal one, `data check` lists them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from embedmask.errors import BadInput

if TYPE_CHECKING:
    from embedmask.data.segmentation import Segmentation
    from embedmask.structures import Size

ProblemType = Literal[
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
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)
"""All types of problem, in the order of a report: those that stop training come first."""
DEGENERATE: tuple[ProblemType, ...] = ("degenerate polygon", "empty mask")
"""Problems of objects or polygons that cover no pixel; `DataConfig.degenerate` decides whether they are dropped."""


@dataclass(frozen=True)
class Example:
    """Image or object that shows a problem and can be drawn.

    Attributes:
        image_id: id of the image in its split.
        name: name of the object, such as "annotation 5"; empty for the whole image.
        mask: mask of the object; None for all objects of the image.
    """

    image_id: int
    name: str = ""
    mask: Segmentation | None = None


@dataclass(frozen=True)
class Problem:
    """One problem of a data set.

    Attributes:
        kind: type of the problem.
        message: one line with the location, the cause and a fix.
        fatal: whether training stops because of it.
        example: image or object to draw, if that helps.
    """

    kind: ProblemType
    message: str
    fatal: bool = True
    example: Example | None = None


OnIssue = Callable[[Problem], None]
"""Callback for problems. It raises, or it returns and the affected object or record is dropped."""


@dataclass
class WarningCollector:
    """Issue handler that collects the problems that are not fatal and passes all problems on.

    Attributes:
        on_issue: next handler, called with every problem.
        warnings: collected problems.
    """

    on_issue: OnIssue
    warnings: list[Problem] = field(default_factory=list)

    def __call__(self, problem: Problem) -> None:
        """Collect the problem if it is not fatal, and pass it on."""
        if not problem.fatal:
            self.warnings.append(problem)
        self.on_issue(problem)


def warning_lines(problems: Iterable[Problem]) -> list[str]:
    """Return one line for each type of problem: the first message and the number of further ones."""
    kinds: dict[ProblemType, list[str]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem.message)
    return [
        f"warning: {first}"
        + (f" (and {len(others)} more such lines in `embedmask data check`)" if others else "")
        for first, *others in kinds.values()
    ]


class CheckedObject(NamedTuple):
    """Object with a valid record, as input of further checks.

    Attributes:
        mask: mask in the coordinates of the annotation file.
        label: 0..C-1.
        image_id: id of the image in the annotation file.
        size: `(height, width)` of the image.
        where: file, annotation and image, for messages.
        box: unchecked `bbox` of the file, xywh px; None if it has none.
    """

    mask: Segmentation
    label: int
    image_id: int
    size: Size
    where: str
    box: Any


OnObject = Callable[[CheckedObject], None]
"""Callback for every accepted object, in the order of the file."""


class BadObject(BadInput):
    """Error for an object that cannot be used. The caller adds the file and the annotation to the message."""

    def __init__(self, kind: ProblemType, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def raise_issue(problem: Problem) -> None:
    """Raise a fatal problem as `BadInput`; ignore any other."""
    if problem.fatal:
        raise BadInput(problem.message)


def drop_degenerate(problem: Problem) -> None:
    """Handle a problem like `raise_issue`, but let degenerate objects be dropped."""
    if problem.kind not in DEGENERATE:
        raise_issue(problem)
