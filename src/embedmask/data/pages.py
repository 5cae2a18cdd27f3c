"""Pages and channels of image files: what a file holds, and which part of it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embedmask.config.reading import ReadOptions

MANY_PAGES = (
    ".tif",
    ".tiff",
    ".lsm",
    ".stk",
    ".btf",
    ".tf2",
    ".tf8",
    ".gif",
    ".png",
    ".apng",
    ".webp",
    ".avif",
)
"""Endings of files that may hold several pages or channels."""


class UnreadPages(UserWarning):
    """A file has pages or channels that nobody chose among."""


class BadChoice(ValueError):
    """A page or channel that the file does not have; the message does not name the file."""


@dataclass(frozen=True)
class LeftOut:
    """Pages or channels of a file that are left out, because nobody chose.

    Attributes:
        option: chooses among them: `page` or `channels`.
        used: which are read instead.
        count: how many there are.
    """

    option: str
    used: str
    count: int

    @property
    def noun(self) -> str:
        """What they are."""
        return self.option.removesuffix("s")

    def __str__(self) -> str:
        return f"{_count(self.count, self.noun)}, {self.used}; choose with {self.option}"


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

    def unread(self, options: ReadOptions) -> Iterator[LeftOut]:
        """Yield the pages and the channels that are left out without a choice."""
        if options.page is None and self.pages > 1 and not self.pages_are_channels(options):
            yield LeftOut("page", "page 0 is used", self.pages)
        if options.channels is None and self.channels > (3 if self.in_colour else 1):
            used = "channels 0, 1 and 2 are used as R, G, B" if self.in_colour else "channel 0 is used"
            yield LeftOut("channels", used, self.channels)


def report_defaults(
    paths: Iterable[Path], options: ReadOptions, extent: Callable[[Path], Extent | None]
) -> list[str]:
    """Describe in one line each the files that have several pages, or several channels, of which nobody chose.

    Args:
        paths: image files.
        options: what is chosen.
        extent: gives the extent of a file; None where it cannot be read.
    """
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for path in (path for path in paths if path.suffix.lower() in MANY_PAGES):
        known = extent(path)
        for one in () if known is None else known.unread(options):
            found.setdefault((one.noun, one.used, one.option), []).append((path.name, one.count))
    return [
        f"{_count(len(files), 'file')} with several {noun}s: {used} ({files[0][0]}: {files[0][1]} {noun}s); "
        f"choose with --{option}"
        for (noun, used, option), files in found.items()
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
