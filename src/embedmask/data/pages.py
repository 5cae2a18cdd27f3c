"""Pages and channels of image files: what a file holds, and which part of it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embedmask.config.reading import ReadOptions


class BadChoice(ValueError):
    """A page or channel that the file does not have; the message does not name the file."""


@dataclass(frozen=True)
class Extent:
    """What an image file holds.

    Attributes:
        pages: pages of a stack, frames of an animation.
        channels: of each page; alpha is none.
        in_colour: the file says that its first three channels are R, G and B.
    """

    pages: int = 1
    channels: int = 3
    in_colour: bool = True

    def pages_are_channels(self, options: ReadOptions) -> bool:
        """Return whether channels are requested of a file that has none, so that its pages are meant."""
        return options.channels is not None and options.page is None and self.channels == 1 < self.pages

    def page(self, options: ReadOptions) -> int:
        """Return the page to read.

        Raises:
            BadChoice: there is no such page.
        """
        page = options.page or 0
        if page >= self.pages:
            raise BadChoice(f"has {_count(self.pages, 'page')}, page {page} is requested; they count from 0")
        return page

    def channel_numbers(self, options: ReadOptions) -> tuple[int, ...]:
        """Return the channels to read: one, or those of R, G and B.

        Raises:
            BadChoice: there is no such channel.
        """
        if options.channels is None:
            return (0, 1, 2) if self.in_colour else (0,)
        if max(options.channels) >= self.channels:
            raise BadChoice(
                f"has {_count(self.channels, 'channel')}, channel {max(options.channels)} is requested; "
                "they count from 0"
            )
        return options.channels

    def unread(self, options: ReadOptions) -> Iterator[tuple[str, int, str, str]]:
        """Yield `(what, how many, what is read, option)` of the pages and channels that are left out unasked."""
        if options.page is None and self.pages > 1 and not self.pages_are_channels(options):
            yield "page", self.pages, "page 0", "page"
        if options.channels is None and self.channels > (3 if self.in_colour else 1):
            read = "channels 0, 1 and 2 (R, G, B)" if self.in_colour else "channel 0"
            yield "channel", self.channels, read, "channels"


def note_defaults(
    paths: Iterable[Path], options: ReadOptions, extent: Callable[[Path], Extent | None]
) -> list[str]:
    """Describe in one line each the files that have several pages, or several channels, of which nobody chose.

    Args:
        paths: image files.
        options: what is chosen.
        extent: gives the extent of a file; None where it cannot be read.
    """
    found: dict[tuple[str, str, str], list[tuple[Path, int]]] = {}
    for path in paths:
        known = extent(path)
        for what, count, read, option in () if known is None else known.unread(options):
            found.setdefault((what, read, option), []).append((path, count))
    return [
        f"{_count(len(files), 'file')} with several {what}s: {read} {_is(read)} used "
        f"({files[0][0].name}: {files[0][1]} {what}s); choose with --{option}"
        for (what, read, option), files in found.items()
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _is(read: str) -> str:
    return "are" if read.startswith("channels") else "is"
