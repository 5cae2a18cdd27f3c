"""Choose the page and the channels to read from image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from embedmask.config.reading import ReadOptions
from embedmask.data.formats import TIFF_ENDINGS

MANY_PAGES = (".tif", ".tiff", *TIFF_ENDINGS, ".zarr", ".gif", ".png", ".apng", ".webp", ".avif")
"""Suffixes of files that may contain several pages or channels."""


class UnreadPages(UserWarning):
    """Pages or channels of a file that are ignored by default."""


class BadChoice(ValueError):
    """A page, channel or level that the file does not have, or that cannot be read; the message lacks its name."""


@dataclass(frozen=True)
class IgnoredContent:
    """Pages or channels of a file that are ignored because the options do not choose any.

    Attributes:
        option: option that chooses them: `page` or `channels`.
        used: description of those that are read instead.
        count: total number of pages or channels.
    """

    option: str
    used: str
    count: int

    @property
    def noun(self) -> str:
        """Return `page` or `channel`."""
        return self.option.removesuffix("s")

    def __str__(self) -> str:
        return f"{_count(self.count, self.noun)}, {self.used}; choose with {self.option}"


@dataclass(frozen=True)
class Extent:
    """Number of pages, channels and levels of an image file.

    Attributes:
        pages: pages of a stack, frames of an animation.
        channels: channels of each page, without alpha.
        in_color: whether the first three channels are R, G and B, according to the file.
        levels: levels of a pyramid, the full resolution included.
    """

    pages: int = 1
    channels: int = 3
    in_color: bool = True
    levels: int = 1

    def pages_are_channels(self, options: ReadOptions) -> bool:
        """Return whether the requested channels are pages: the file has several pages of one channel each."""
        return options.channels is not None and options.page is None and self.channels == 1 < self.pages

    def page(self, options: ReadOptions) -> int:
        """Return the index of the page to read.

        Raises:
            BadChoice: the file has no such page.
        """
        page = options.page or 0
        if page >= self.pages:
            raise BadChoice(f"has {_count(self.pages, 'page')}, page {page} is requested; they count from 0")
        return page

    def level(self, options: ReadOptions) -> int:
        """Return the level to read.

        Raises:
            BadChoice: the file has no such level.
        """
        if options.level >= self.levels:
            raise BadChoice(
                f"has {_count(self.levels, 'level')}, level {options.level} is requested; they count from 0"
            )
        return options.level

    def channel_numbers(self, options: ReadOptions) -> tuple[int, ...]:
        """Return the channels to read: one, or those of R, G and B.

        Raises:
            BadChoice: the file has no such channel.
        """
        if options.channels is None:
            return (0, 1, 2) if self.in_color else (0,)
        if max(options.channels) >= self.channels:
            raise BadChoice(
                f"has {_count(self.channels, 'channel')}, channel {max(options.channels)} is requested; "
                "they count from 0"
            )
        return options.channels

    def unread(self, options: ReadOptions) -> Iterator[IgnoredContent]:
        """Yield the pages and the channels that are ignored because the options do not choose any."""
        if options.page is None and self.pages > 1 and not self.pages_are_channels(options):
            yield IgnoredContent("page", "page 0 is used", self.pages)
        if options.channels is None and self.channels > (3 if self.in_color else 1):
            used = "channels 0, 1 and 2 are used as R, G, B" if self.in_color else "channel 0 is used"
            yield IgnoredContent("channels", used, self.channels)


def report_defaults(
    paths: Iterable[Path], options: ReadOptions, extent: Callable[[Path], Extent | None]
) -> list[str]:
    """Describe the files whose pages or channels are ignored because the options do not choose any.

    Args:
        options: page and channels to read.
        extent: returns the extent of a file; None if it cannot be read.

    Returns:
        One line for each default that is used.
    """
    files: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for path in (path for path in paths if path.suffix.lower() in MANY_PAGES or path.is_dir()):
        known = extent(path)
        for ignored in () if known is None else known.unread(options):
            key = (ignored.noun, ignored.used, ignored.option)
            files.setdefault(key, []).append((path.name, ignored.count))
    return [
        f"{_count(len(entries), 'file')} with several {noun}s: {used} ({entries[0][0]}: {entries[0][1]} {noun}s); "
        f"choose with --{option}"
        for (noun, used, option), entries in files.items()
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
