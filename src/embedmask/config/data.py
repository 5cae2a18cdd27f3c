"""`DataConfig`: how training pictures are changed before the network sees them."""

from __future__ import annotations

from dataclasses import dataclass

from embedmask.fields import check_types, require


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How training pictures are changed before the network sees them. The defaults are section 4.1."""

    short_sides: tuple[int, ...] = (800,)
    """The short side is drawn from these, px; empty: pictures keep their size. (Inference: `image_short_side`.)"""
    long_side: int = 1333
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Further random scale, log-uniform (large-scale jitter)."""
    crop_size: int | None = None
    """Side of a random square crop, px, after scaling; None: the whole picture."""
    flip_horizontal: float = 0.5
    """Probability."""
    flip_vertical: float = 0.0
    rotate90: bool = False
    """Draw one of the four right-angle rotations (microscopy has no up and down)."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast, saturation and hue, 0..1."""
    invert: float = 0.0
    """Probability of inverting all colours."""
    min_box_side: float = 1.0
    """Objects whose visible part is narrower or lower are left out of the targets, px."""
    repeat: int = 1
    """Times the training set is walked in one epoch (small sets: fewer, longer epochs)."""

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.scale_range
        require(self, "scale_range", 0 < low <= high, "(low, high) with 0 < low <= high")
        require(self, "repeat", self.repeat >= 1, "at least 1")
        require(self, "short_sides", all(side >= 1 for side in self.short_sides), "sides of at least 1 px")
        require(self, "long_side", self.long_side >= 1, "at least 1")
        for name in ("flip_horizontal", "flip_vertical", "invert", "color_jitter"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        crop_ok = self.crop_size is None or self.crop_size >= 32
        require(self, "crop_size", crop_ok, "at least 32, or null")
