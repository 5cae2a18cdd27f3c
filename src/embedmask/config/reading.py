"""`ReadOptions`: page, channels, level and depth conversion of image files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

from embedmask.errors import BadInput
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
        check_reading(self)
        require(
            self, "level", _is_index(self.level), "at least 0 and a whole number (levels are counted from 0)"
        )

    def changed(
        self, page: int | None, channels: Sequence[int] | None, level: int | None = None
    ) -> ReadOptions:
        """Return a copy with another page, other channels or another level, unless they are None (channels: or empty).

        Raises:
            BadInput: not a page, channels or a level.
        """
        given: Any = channels
        if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
            raise BadInput(
                f"channels must be a list of one channel (gray) or three (R, G, B), got {channels!r}"
            )
        return ReadOptions(
            page=self.page if page is None else page,
            channels=self.channels if channels is None else tuple(channels) or self.channels,
            depth=self.depth,
            level=self.level if level is None else level,
        )


def check_reading(config: Any, prefix: str = "") -> None:
    """Check the fields `page`, `channels` and `depth` of a config, whose names begin with `prefix`.

    Raises:
        BadInput: not a page, channels or a depth conversion; the message has the name of the field.
    """
    page, channels, depth = (getattr(config, prefix + name) for name in ("page", "channels", "depth"))
    fits = page is None or _is_index(page)
    require(config, f"{prefix}page", fits, "at least 0 and a whole number (pages are counted from 0)")
    fits = channels is None or (len(channels) in (1, 3) and all(map(_is_index, channels)))
    require(config, f"{prefix}channels", fits, "one channel (gray) or three (R, G, B), counted from 0")
    require(config, f"{prefix}depth", depth == "camera" or depth > 0, "camera, or a value above 0")


def _is_index(value: Any) -> bool:
    """Return whether a value is a whole number from 0 on."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 0


DEFAULT_READING = ReadOptions()
"""First page, its colors or its first channel, depth conversion `camera`."""
