"""Exit codes and progress bars."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SUCCESS, FAILURE, INVALID_INPUT = 0, 1, 2


def is_interactive() -> bool:
    """Return whether stderr is a terminal, where progress bars are of use."""
    return sys.stderr.isatty()


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar; yield its update function, which takes the numbers of finished and of all images."""
    from tqdm import tqdm

    with tqdm(unit="image", disable=not is_interactive()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
