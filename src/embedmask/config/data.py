"""`DataConfig`: selection of the training images and their augmentation."""

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
    """Selection of the training images and their augmentation (defaults: section 4.1)."""

    # Size
    short_sides: tuple[int, ...] = (800,)
    """Short sides to resize images to, px, one sampled per image; empty: images keep their size. Prediction uses
    `model.image_short_side`."""
    long_side: int = 1333
    """Maximum long side of resized images, px."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Range of an additional random scale."""
    scale_draw: Literal["log", "linear"] = "log"
    """Distribution of the random scale: uniform in its logarithm, or uniform (large-scale jitter)."""
    crop_size: int | None = None
    """Side of a random square crop after scaling, px; null: the whole image."""
    crop_pad: bool = False
    """Pad images smaller than the crop to its size, right and bottom. Otherwise only batches are padded."""

    # Orientation
    flip_horizontal: float = 0.5
    """Probability of a horizontal flip."""
    flip_vertical: float = 0.0
    """Probability of a vertical flip."""
    rotate90: bool = False
    """Rotate by a random multiple of 90 degrees, for images without a preferred direction."""
    rotate: float = 0.0
    """Maximum angle of a random rotation in either direction, degrees; 180: all directions."""

    # Content and colors
    copy_paste: float = 0.0
    """Probability of pasting objects of another training image into an image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast, saturation and hue, 0..1."""
    invert: float = 0.0
    """Probability of inverting all colors."""
    gamma: float = 0.0
    """Strength of a random gamma, whose exponent lies in 1 / (1 + gamma) .. 1 + gamma."""
    blur: float = 0.0
    """Maximum standard deviation of a random Gaussian blur, px."""
    noise: float = 0.0
    """Maximum standard deviation of random noise, as a fraction of white, 0..1."""

    # Selection of images and objects
    where: str | None = None
    """Filter `KEY=VALUE` on the image records of the annotation file, for training and evaluation."""
    val_fraction: float = 0.0
    """Fraction of train to use as val, split by image content; 0: the data set has a val split."""
    min_box_side: float = 1.0
    """Minimum width and height of the visible part of an object, px; smaller objects are dropped."""
    repeat: int = 1
    """Passes over the training set per epoch; small data sets benefit from longer epochs."""
    degenerate: Degenerate = "refuse"
    """Treatment of objects with an empty mask, or a polygon or box without area: stop with an error, or drop them."""
    exif: Exif = "auto"
    """Frame of the annotations of images with an EXIF orientation: `upright`, `stored`, or by the image size (`auto`).
    Where the size is ambiguous, `auto` means upright, with a warning."""

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
        require(self, "crop_pad", pad_ok, "false if crop_size is null")
