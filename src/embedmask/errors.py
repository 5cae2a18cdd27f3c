"""Errors with a message for the user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class BadInput(ValueError):
    """Error in a file, value or option of the user.

    The message is one line with the cause, the location and a fix. The command line prints it and exits with code 2;
    other errors are defects and exit with code 1.
    """


class UnsupportedImage(BadInput):
    """Error of an image that the requested result format cannot store; other images are not affected."""


class TrainingStopped(RuntimeError):
    """Error of a run that cannot continue, such as a non-finite loss.

    The message is one line with the step, the cause, the images and a fix. The command line exits with code 1.
    """


def name_some(names: Sequence[str], count: int = 3) -> str:
    """Return the first `count` names and the number of the others, for a message."""
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def needs_extra(extra: str, feature: str) -> Iterator[None]:
    """Convert failed imports of an optional package to one line that names the extra to install.

    Raises:
        BadInput: `feature` needs a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise BadInput(f"{feature} needs {error.name}; pip install 'embedmask[{extra}]'") from None
