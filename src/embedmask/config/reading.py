"""`ReadOptions`: page, channels, level and depth conversion of image files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from embedmask.fields import require

Depth = Literal["camera"] | float


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Page, channels, level and depth conversion of image files."""

    page: int | None = None
    """Page of a TIFF stack or frame of an animation, from 0; None: the first."""
    channels: tuple[int, ...] | None = None
    """One channel to read as gray, or three as R, G, B, from 0; None: the colors of the image, else the first
    channel."""
    depth: Depth = "camera"
    """Conversion of more than 8 bits to 8: `camera` (see docs/data.md), or the value that becomes 255."""
    level: int = 0
    """Level of a pyramid, from 0, the full resolution."""

    def __post_init__(self) -> None:
        require(self, "page", self.page is None or self.page >= 0, "at least 0 (pages are counted from 0)")
        require(self, "level", self.level >= 0, "at least 0 (levels are counted from 0)")
        fits = self.channels is None or (len(self.channels) in (1, 3) and min(self.channels) >= 0)
        require(self, "channels", fits, "one channel (gray) or three (R, G, B), counted from 0")
        require(self, "depth", self.depth == "camera" or self.depth > 0, "camera, or a value above 0")

    def changed(
        self, page: int | None, channels: Sequence[int] | None, level: int | None = None
    ) -> ReadOptions:
        """Return a copy with another page, other channels or another level, unless they are None."""
        return ReadOptions(
            page=self.page if page is None else page,
            channels=tuple(channels) if channels else self.channels,
            depth=self.depth,
            level=self.level if level is None else level,
        )


DEFAULT_READING = ReadOptions()
"""First page, its colors or its first channel, depth conversion `camera`."""
