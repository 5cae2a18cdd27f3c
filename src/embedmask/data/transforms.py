"""Transforms from an image and its unpainted annotations to the input of the network.

The parameters of a `GeometricTransform` are sampled first; then the image is resampled and the masks are painted.
"""

from __future__ import annotations

import math
from typing import Protocol, Self

import torch
from torch import Tensor

from embedmask.config import DataConfig, DetectorConfig
from embedmask.config.detector import Rounding
from embedmask.data.colors import change_camera, change_colors
from embedmask.data.copy_paste import choose_objects, paste_objects, sample_corner
from embedmask.data.geometry import GeometricTransform
from embedmask.data.images import size_of
from embedmask.data.packed import Annotations
from embedmask.data.sampling import bernoulli, choice, randint, uniform
from embedmask.structures import Size, Target


class Items(Protocol):
    """Images and annotations of a data set, by index."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """Return an image, uint8 `[3, H, W]`."""
        ...

    def annotations(self, index: int) -> Annotations:
        """Return the ground truth in the frame of the file, with masks not yet painted."""
        ...


class Transform(Protocol):
    """Function that makes a data set's item; equal states of the generator give equal items.

    `items` is the whole data set, for transforms that combine images.
    """

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator, items: Items | None = None
    ) -> tuple[Tensor, Target]: ...


def resized_size(size: Size, short_side: int, long_side: int, rounding: Rounding = "down") -> Size:
    """Return the size of an image resized by the authors' rule (section 4.1).

    The short side becomes `short_side`, unless the long side would exceed `long_side`.

    Args:
        size: `(height, width)` px.
        short_side: px.
        long_side: upper bound of the long side, px. As in the authors' code, rounding may exceed it by a few pixels on
            very elongated images; if the short side would be below 1 px, the result is 1 x `long_side`.
        rounding: `down`, the rule of the first repository, or `nearest`, that of the second, which rounds once and
            never exceeds `long_side`.

    Returns:
        `(height, width)` px.
    """
    short, long = min(size), max(size)
    if rounding == "nearest":
        scale = min(short_side / short, long_side / long)
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width
    # the short side would vanish
    if long_side * short < long:
        return (1, long_side) if size[0] <= size[1] else (long_side, 1)
    # lower the short side first, rounding it, then derive the long side from it: the order decides the last pixel
    if long / short * short_side > long_side:
        short_side = max(round(long_side * short / long), 1)
    if short == short_side:
        return size
    other = int(short_side * long / short)
    return (short_side, other) if size[0] <= size[1] else (other, short_side)


class EvalTransform:
    """Resizing by the authors' rule, as in inference.

    Args:
        short_side: px; None: images keep their size.
        long_side: px.
        rounding: as in `resized_size`.
    """

    def __init__(self, short_side: int | None, long_side: int, rounding: Rounding = "down") -> None:
        self.short_side = short_side
        self.long_side = long_side
        self.rounding = rounding

    @classmethod
    def from_config(cls, config: DetectorConfig) -> Self:
        """Return the resizing of a model's config."""
        return cls(config.image_short_side, config.image_long_side, config.image_rounding)

    @classmethod
    def full_size(cls) -> Self:
        """Return the transform that keeps the size of every image."""
        return cls(None, 0)

    def geometry(self, size: Size) -> GeometricTransform:
        """Return the transform of a whole image of `(height, width)` px."""
        if self.short_side is None:
            return GeometricTransform.whole(size, size)
        return GeometricTransform.whole(
            size, resized_size(size, self.short_side, self.long_side, self.rounding)
        )

    def image(self, image: Tensor) -> Tensor:
        """Resize an image alone: evaluation needs no painted masks."""
        return self.geometry(size_of(image)).image(image)

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator, items: Items | None = None
    ) -> tuple[Tensor, Target]:
        """Resize an image and its objects; `generator` and `items` are unused."""
        geometry = self.geometry(annotations.size)
        return geometry.image(image), geometry.target(annotations, min_box_side=1)


class TrainTransform:
    """Random geometry, pasted objects and colors of a config (section 4.1 by default)."""

    def __init__(self, config: DataConfig, rounding: Rounding = "down") -> None:
        self.config = config
        self.rounding: Rounding = rounding

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator, items: Items | None = None
    ) -> tuple[Tensor, Target]:
        """Augment an image and its objects.

        Args:
            image: uint8 `[3, H, W]`.
            items: images to paste objects from; None: nothing is pasted.

        Returns:
            uint8 `[3, h, w]`, and the target in the same frame.
        """
        config = self.config
        geometry = self.sample_geometry(annotations, generator)
        image, target = geometry.image(image), geometry.target(annotations, config.min_box_side)
        if items is not None and config.copy_paste and bernoulli(config.copy_paste, generator):
            image, target = self.paste(image, target, items, generator)
        image = change_colors(image, config.color_jitter, config.invert, generator)
        return change_camera(image, config.gamma, config.blur, config.noise, generator), target

    def sample_size(self, size: Size, generator: torch.Generator) -> Size:
        """Sample the size to which an image of `(height, width)` px is resized."""
        config = self.config
        if config.short_sides:
            short_side = choice(config.short_sides, generator)
            size = resized_size(size, short_side, config.long_side, self.rounding)
        low, high = config.scale_range
        if low == high == 1:
            return size
        if config.scale_draw == "log":
            factor = math.exp(uniform(math.log(low), math.log(high), generator))
        else:
            factor = uniform(low, high, generator)
        return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)

    def sample_geometry(self, annotations: Annotations, generator: torch.Generator) -> GeometricTransform:
        """Sample the geometric transform of an image with its objects."""
        config, resized = self.config, self.sample_size(annotations.size, generator)
        # a square crop; a shorter image is used whole, and padded right and below if requested
        side = config.crop_size
        height, width = (length if side is None else min(side, length) for length in resized)
        if config.crop_objects and len(annotations) and bernoulli(config.crop_objects, generator):
            top, left = sample_crop_of_object(annotations, resized, (height, width), generator)
        else:
            top, left = (
                randint(resized[0] - height + 1, generator),
                randint(resized[1] - width + 1, generator),
            )
        if side is not None and config.crop_pad:
            height, width = side, side
        return GeometricTransform(
            original=annotations.size,
            resized=resized,
            window=(left, top, left + width, top + height),
            flip_horizontal=bernoulli(config.flip_horizontal, generator),
            flip_vertical=bernoulli(config.flip_vertical, generator),
            turns=randint(4, generator) if config.rotate90 else 0,
            angle=uniform(-config.rotate, config.rotate, generator) if config.rotate else 0.0,
        )

    def paste(
        self, image: Tensor, target: Target, items: Items, generator: torch.Generator
    ) -> tuple[Tensor, Target]:
        """Paste some objects of a random item, transformed at random, over `image` `[3, h, w]`."""
        index = randint(len(items), generator)
        chosen = choose_objects(items.annotations(index), generator)
        if not len(chosen):
            return image, target
        geometry = self.sample_geometry(chosen, generator)
        side = self.config.min_box_side
        donor = geometry.image(items.image(index)), geometry.target(chosen, side)
        corner = sample_corner(size_of(image), size_of(donor[0]), generator)
        return paste_objects(image, target, donor, corner, side)


def sample_crop_of_object(
    annotations: Annotations, resized: Size, crop: Size, generator: torch.Generator
) -> tuple[int, int]:
    """Sample a crop that contains the center of a random object's box.

    Args:
        annotations: at least one object.
        resized: `(height, width)` of the resized image, px.
        crop: `(height, width)` of the crop, px, at most those of `resized`.

    Returns:
        Top and left of the crop in the resized image, px.
    """
    left, top, right, bottom = annotations.segmentations[randint(len(annotations), generator)].bounds()
    corner = []
    for middle, whole, length, side in zip(
        ((top + bottom) / 2, (left + right) / 2), annotations.size, resized, crop, strict=True
    ):
        # the pixel of the center lies at 0..side - 1 of the crop, which the image's border may shift
        pixel = min(int(middle * length / whole), length - 1)
        corner.append(min(max(pixel - randint(side, generator), 0), length - side))
    return corner[0], corner[1]
