"""From an image and its lazy annotations to what the network sees.

A `GeometricTransform` is drawn first; the image is resampled and the masks are painted straight into it.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from embedmask.config import DataConfig
from embedmask.config.detector import Rounding
from embedmask.data.colors import change_camera, change_colors
from embedmask.data.copy_paste import choose_objects, draw_corner, paste_objects
from embedmask.data.geometry import GeometricTransform
from embedmask.data.images import size_of
from embedmask.data.packed import Annotations
from embedmask.data.sampling import below, between, choose, happens
from embedmask.data.segmentation import Window
from embedmask.structures import Size, Target


class Items(Protocol):
    """Images and annotations by number, as a data set gives them."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor:
        """uint8 `[3, H, W]`."""
        ...

    def annotations(self, index: int) -> Annotations:
        """Ground truth in the file's frame, masks not painted."""
        ...


class Transform(Protocol):
    """How a dataset's item is made; the same generator state gives the same item.

    `items` are the whole data set, for what mixes several.
    """

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator, items: Items | None = None
    ) -> tuple[Tensor, Target]: ...


def resized_size(size: Size, short_side: int, long_side: int, rounding: Rounding = "down") -> Size:
    """The authors' rule (section 4.1): short side to `short_side`, unless the long one would pass
    `long_side`.

    Args:
        size: `(height, width)` px.
        short_side: wanted short side, px.
        long_side: bound of the long side, px; rounding may pass it by a few pixels on very long images,
            as theirs; where the short side would be less than 1 px, it is 1, and the long one `long_side`.
        rounding: the first repository's rule, or the second's, which rounds once and keeps to `long_side`.

    Returns:
        `(height, width)` px.
    """
    short, long = min(size), max(size)
    if rounding == "nearest":
        scale = min(short_side / short, long_side / long)
        height, width = (max(int(side * scale + 0.5), 1) for side in size)
        return height, width
    if long_side * short < long:  # so thin that its short side would vanish
        return (1, long_side) if size[0] <= size[1] else (long_side, 1)
    if long / short * short_side > long_side:
        short_side = max(round(long_side * short / long), 1)
    if short == short_side:
        return size
    other = int(short_side * long / short)
    return (short_side, other) if size[0] <= size[1] else (other, short_side)


class EvalTransform:
    """Resize by the authors' rule, nothing else: the network's frame in inference.

    Args:
        short_side: px; None: images keep their size.
        long_side: px.
        rounding: as in `resized_size`.
    """

    def __init__(self, short_side: int | None, long_side: int, rounding: Rounding = "down") -> None:
        self.short_side = short_side
        self.long_side = long_side
        self.rounding = rounding

    def view(self, size: Size) -> GeometricTransform:
        """The whole image of `(height, width)` in the network's frame."""
        if self.short_side is not None:
            return GeometricTransform.whole(
                size, resized_size(size, self.short_side, self.long_side, self.rounding)
            )
        return GeometricTransform.whole(size, size)

    def image(self, image: Tensor) -> Tensor:
        """The image alone: evaluation needs no painted masks."""
        return self.view(size_of(image)).image(image)

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator, items: Items | None = None
    ) -> tuple[Tensor, Target]:
        """ImageSource and targets; draws nothing from the generator and mixes no items."""
        view = self.view(annotations.size)
        return view.image(image), view.target(annotations, min_box_side=1)


class TrainTransform:
    """Random view, pasted objects and colours, as the config says (section 4.1 by default)."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator, items: Items | None = None
    ) -> tuple[Tensor, Target]:
        """uint8 `[3, H, W]` and its annotations -> uint8 `[3, h, w]` and the target in the same frame.

        Without `items` there is nothing to paste from, so nothing is pasted.
        """
        config = self.config
        view = self.draw(annotations.size, generator)
        seen, target = view.image(image), view.target(annotations, config.min_box_side)
        if items is not None and config.copy_paste and happens(config.copy_paste, generator):
            seen, target = self.paste(seen, target, items, generator)
        seen = change_colors(seen, config.color_jitter, config.invert, generator)
        return change_camera(seen, config.gamma, config.blur, config.noise, generator), target

    def draw(self, size: Size, generator: torch.Generator) -> GeometricTransform:
        """A random view of an image of `(height, width)` px."""
        config = self.config
        resized = size
        if config.short_sides:
            resized = resized_size(size, choose(config.short_sides, generator), config.long_side)
        resized = _jitter_scale(resized, config.scale_range, config.scale_draw, generator)
        return GeometricTransform(
            original=size,
            resized=resized,
            window=_draw_window(resized, config.crop_size, config.crop_pad, generator),
            flip_horizontal=happens(config.flip_horizontal, generator),
            flip_vertical=happens(config.flip_vertical, generator),
            turns=below(4, generator) if config.rotate90 else 0,
            angle=between(-config.rotate, config.rotate, generator) if config.rotate else 0.0,
        )

    def paste(
        self, image: Tensor, target: Target, items: Items, generator: torch.Generator
    ) -> tuple[Tensor, Target]:
        """Some objects of a random item, seen in a random view of its own, over `image` `[3, h, w]`."""
        index = below(len(items), generator)
        chosen = choose_objects(items.annotations(index), generator)
        if not len(chosen):
            return image, target
        view = self.draw(chosen.size, generator)
        side = self.config.min_box_side
        donor = view.image(items.image(index)), view.target(chosen, side)
        corner = draw_corner(size_of(image), size_of(donor[0]), generator)
        return paste_objects(image, target, donor, corner, side)


def _jitter_scale(
    size: Size, scale_range: tuple[float, float], law: Literal["log", "linear"], generator: torch.Generator
) -> Size:
    low, high = scale_range
    if low == high == 1:
        return size
    if law == "log":
        factor = math.exp(between(math.log(low), math.log(high), generator))
    else:
        factor = between(low, high, generator)
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _draw_window(size: Size, side: int | None, pad: bool, generator: torch.Generator) -> Window:
    """A square of `side` px anywhere in the image; a shorter image is taken whole, its right and bottom
    padded to the square if `pad`.
    """
    inside = [length if side is None else min(side, length) for length in size]
    top, left = (below(length - shown + 1, generator) for length, shown in zip(size, inside, strict=True))
    height, width = (side, side) if pad and side is not None else inside
    return left, top, left + width, top + height
