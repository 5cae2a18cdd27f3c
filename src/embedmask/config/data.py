"""`DataConfig`: which images training sees, and how they are changed before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from embedmask.fields import check_types, require

Degenerate = Literal["refuse", "drop"]
Split = Literal["train", "val", "test", "test-dev"]
Exif = Literal["auto", "upright", "stored"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images training sees, and how they are changed before. The defaults are section 4.1."""

    short_sides: tuple[int, ...] = (800,)
    """The short side is drawn from these, px; empty: images keep their size. (Inference: `image_short_side`.)"""
    long_side: int = 1333
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Further random scale."""
    scale_draw: Literal["log", "linear"] = "log"
    """Law of the scale: uniform in its logarithm, or in itself (large-scale jitter)."""
    crop_size: int | None = None
    """Side of a random square crop, px, after scaling; None: the whole image."""
    crop_pad: bool = False
    """Pad shorter images to the crop, right and bottom; else they stay as they are and the batch is padded."""
    flip_horizontal: float = 0.5
    """Probability."""
    flip_vertical: float = 0.0
    rotate90: bool = False
    """Draw one of the four right-angle rotations (microscopy has no up and down)."""
    rotate: float = 0.0
    """Largest angle of a rotation by any angle, either way, degrees; 180: all directions."""
    copy_paste: float = 0.0
    """Probability that some objects of another training image are pasted over this one."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast, saturation and hue, 0..1."""
    invert: float = 0.0
    """Probability of inverting all colours."""
    gamma: float = 0.0
    """Strength of a random gamma: the exponent lies in 1 / (1 + gamma) .. 1 + gamma."""
    blur: float = 0.0
    """Largest standard deviation of a random Gaussian blur, px."""
    noise: float = 0.0
    """Largest standard deviation of random noise, as a part of white, 0..1."""
    where: str | None = None
    """`KEY=VALUE`: train and evaluate only on images whose record in the annotation file says so."""
    val_fraction: float = 0.0
    """Hold out this fraction of train as val, by the content of the images; 0: the data set has a val split."""
    min_box_side: float = 1.0
    """Objects whose visible part is narrower or lower are left out of the targets, px."""
    repeat: int = 1
    """Times the training set is walked in one epoch (small sets: fewer, longer epochs)."""
    degenerate: Degenerate = "refuse"
    """Objects with an empty mask, a polygon or a box without area: stop, or leave them out of train and val."""
    exif: Exif = "auto"
    """Frame of the annotations where an image carries an EXIF orientation and its size does not tell: `upright`, as
    `stored`, or `auto`, upright with a warning."""

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.scale_range
        require(self, "scale_range", 0 < low <= high, "(low, high) with 0 < low <= high")
        require(self, "repeat", self.repeat >= 1, "at least 1")
        require(self, "short_sides", all(side >= 1 for side in self.short_sides), "sides of at least 1 px")
        require(self, "long_side", self.long_side >= 1, "at least 1")
        for name in ("flip_horizontal", "flip_vertical", "copy_paste", "invert", "color_jitter", "noise"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("gamma", "blur", "min_box_side"):
            require(self, name, 0 <= getattr(self, name) < math.inf, "a finite number, at least 0")
        require(self, "val_fraction", 0 <= self.val_fraction < 1, "at least 0 and below 1")
        require(self, "rotate", 0 <= self.rotate <= 180, "between 0 and 180")
        crop_ok = self.crop_size is None or self.crop_size >= 32
        require(self, "crop_size", crop_ok, "at least 32, or null")
        pad_ok = self.crop_size is not None or not self.crop_pad
        require(self, "crop_pad", pad_ok, "false where crop_size is null: there is nothing to pad to")
