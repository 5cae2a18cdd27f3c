"""What a command tells whoever started it: its exit code, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

DONE, SOME_BROKEN, SOME_BAD = 0, 1, 2


def is_interactive() -> bool:
    """Progress bars are for people: none where stderr goes to a file."""
    return sys.stderr.isatty()


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how many images of all are done."""
    from tqdm import tqdm

    with tqdm(unit="image", disable=not is_interactive()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
