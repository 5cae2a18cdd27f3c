"""`DataConfig`: selection of the training images and their augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from embedmask.fields import (
    Fraction,
    NonNegativeFloat,
    PositiveInt,
    at_least,
    below,
    between,
    check_fields,
    require,
)

Degenerate = Literal["refuse", "drop"]
Split = Literal["train", "val", "test", "test-dev"]
Exif = Literal["auto", "upright", "stored"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Selection of the training images and their augmentation (defaults: section 4.1)."""

    # Size
    short_sides: tuple[PositiveInt, ...] = (800,)
    """Short sides to resize images to, px, one sampled per image; empty: images keep their size. Prediction uses
    `model.image_short_side`."""
    long_side: PositiveInt = 1333
    """Maximum long side of resized images, px."""
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Range of an additional random scale."""
    scale_draw: Literal["log", "linear"] = "log"
    """Distribution of the random scale: uniform in its logarithm, or uniform (large-scale jitter)."""
    crop_size: Annotated[int, at_least(32)] | None = None
    """Side of a random square crop after scaling, px; null: the whole image."""
    crop_objects: Fraction = 0.0
    """Probability that a crop contains the center of a random object, which favors crowded regions; other crops are
    anywhere in the image."""
    crop_pad: bool = False
    """Pad images smaller than the crop to its size, right and bottom. Otherwise only batches are padded."""

    # Orientation
    flip_horizontal: Fraction = 0.5
    """Probability of a horizontal flip."""
    flip_vertical: Fraction = 0.0
    """Probability of a vertical flip."""
    rotate90: bool = False
    """Rotate by a random multiple of 90 degrees, for images without a preferred direction."""
    rotate: Annotated[float, between(0, 180)] = 0.0
    """Maximum angle of a random rotation in either direction, degrees; 180: all directions."""

    # Content and colors
    copy_paste: Fraction = 0.0
    """Probability of pasting objects of another training image into an image."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast, saturation and hue, 0..1."""
    invert: Fraction = 0.0
    """Probability of inverting all colors."""
    gamma: NonNegativeFloat = 0.0
    """Strength of a random gamma, whose exponent lies in 1 / (1 + gamma) .. 1 + gamma."""
    blur: NonNegativeFloat = 0.0
    """Maximum standard deviation of a random Gaussian blur, px."""
    noise: Fraction = 0.0
    """Maximum standard deviation of random noise, as a fraction of white, 0..1."""

    # Selection of images and objects
    image_filter: str | None = None
    """Filter `KEY=VALUE` on the image records of the annotation file, for training and evaluation."""
    val_fraction: Annotated[float, at_least(0), below(1)] = 0.0
    """Fraction of train to use as val, split by image content; 0: the data set has a val split."""
    keep_empty: bool = True
    """Train also on images without objects. False drops them, as the authors do; evaluation always keeps them."""
    min_box_side: NonNegativeFloat = 1.0
    """Minimum width and height of the visible part of an object, px; smaller objects are dropped."""
    repeat: PositiveInt = 1
    """Passes over the training set per epoch; small data sets benefit from longer epochs."""
    balance: str | None = None
    """Key of the image records whose rare values are trained on more often, such as `modality`: an epoch contains an
    image (n_max / n)^`balance_power` times, rounded, if n images have its value and n_max the most frequent one; null:
    once."""
    balance_power: Fraction = 0.5
    """Exponent of `balance`: 0 leaves the frequencies as they are, 1 makes all values equally frequent."""
    degenerate: Degenerate = "refuse"
    """Treatment of objects with an empty mask, or a polygon or box without area: stop with an error, or drop them."""
    exif: Exif = "auto"
    """Frame of the annotations of images with an EXIF orientation: `upright`, `stored`, or by the image size (`auto`).
    Where the size is ambiguous, `auto` means upright, with a warning."""

    def __post_init__(self) -> None:
        check_fields(self)
        low, high = self.scale_range
        require(self, "scale_range", 0 < low <= high, "(low, high) with 0 < low <= high")
        pad_ok = self.crop_size is not None or not self.crop_pad
        require(self, "crop_pad", pad_ok, "false if crop_size is null")
        objects_ok = self.crop_size is not None or not self.crop_objects
        require(self, "crop_objects", objects_ok, "0 if crop_size is null")
