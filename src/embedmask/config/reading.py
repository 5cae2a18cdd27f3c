"""`ReadOptions`: which part of an image file is read, and how its values become 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embedmask.fields import require

Depth = Literal["camera"] | float


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Which part of an image file is read, and how its values become 8 bits."""

    page: int | None = None
    """Page of a TIFF stack or frame of an animation, from 0; None: the first."""
    channels: tuple[int, ...] | None = None
    """One channel to read as grey, or three as R, G and B, from 0; None: the colours of an image in colour, else the
    first channel."""
    depth: Depth = "camera"
    """How more than 8 bits become 8: by the rule of docs/data.md, or the value that becomes 255."""

    def __post_init__(self) -> None:
        require(self, "page", self.page is None or self.page >= 0, "at least 0: pages count from 0")
        fits = self.channels is None or (len(self.channels) in (1, 3) and min(self.channels) >= 0)
        require(self, "channels", fits, "one channel (grey) or three (R, G, B), counted from 0")
        require(self, "depth", self.depth == "camera" or self.depth > 0, "camera, or a value above 0")

    def changed(self, page: int | None, channels: Sequence[int] | None) -> ReadOptions:
        """Return the options with another page or other channels, where they are given."""
        return ReadOptions(
            page=self.page if page is None else page,
            channels=tuple(channels) if channels else self.channels,
            depth=self.depth,
        )


DEFAULT_READING = ReadOptions()
"""The first page, its colours or its first channel, the rule for depth."""
