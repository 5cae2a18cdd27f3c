"""From a picture and its lazy annotations to what the network sees.

One `View` says which part of a picture is seen, how large and which way round. It is drawn first; the
picture is resampled and the masks are painted straight into it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from embedmask.config import DataConfig
from embedmask.data.annotations import Annotations
from embedmask.data.images import resize_image
from embedmask.data.segmentation import Patch
from embedmask.structures import Size, Target

COLORS: Any = v2.functional  # torchvision does not declare what it exports here
HUE_SHARE = 0.25
"""Part of the colour strength that goes to the hue, in turns of the colour circle."""


class Transform(Protocol):
    """How a dataset's item is made; the same generator state gives the same item."""

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator
    ) -> tuple[Tensor, Target]: ...


def resized_size(size: Size, short_side: int, long_side: int) -> Size:
    """The authors' rule (section 4.1): short side to `short_side`, unless the long one would pass
    `long_side`.

    Args:
        size: `(height, width)` px.
        short_side: wanted short side, px.
        long_side: bound of the long side, px; rounding may pass it by a few pixels on very long pictures,
            as theirs.

    Returns:
        `(height, width)` px.
    """
    short, long = min(size), max(size)
    if long / short * short_side > long_side:
        short_side = max(round(long_side * short / long), 1)
    if short == short_side:
        return size
    other = int(short_side * long / short)
    return (short_side, other) if size[0] <= size[1] else (other, short_side)


@dataclass(frozen=True)
class View:
    """What is seen of a picture: resize, then cut a window, then mirror, then turn.

    Attributes:
        original: `(height, width)` of the file.
        resized: `(height, width)` of the whole picture after resizing.
        window: left, top, right, bottom in the resized picture, whole px.
        flip_horizontal: mirror left and right.
        flip_vertical: mirror top and bottom.
        turns: right angles, counter-clockwise, 0..3.
    """

    original: Size
    resized: Size
    window: tuple[int, int, int, int]
    flip_horizontal: bool = False
    flip_vertical: bool = False
    turns: int = 0

    @classmethod
    def whole(cls, original: Size, resized: Size) -> View:
        """All of the picture, upright."""
        return cls(original, resized, (0, 0, resized[1], resized[0]))

    @property
    def scale(self) -> tuple[float, float]:
        """Resized px per original px, (y, x)."""
        return self.resized[0] / self.original[0], self.resized[1] / self.original[1]

    @property
    def window_size(self) -> Size:
        """`(height, width)` before turning."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def image(self, image: Tensor) -> Tensor:
        """The picture seen, uint8 `[3, h, w]`, from uint8 `[3, H, W]` of size `original`."""
        (scale_y, scale_x), (left, top, right, bottom) = self.scale, self.window
        height, width = self.original
        if self.resized == self.original:
            # a copy: a view would take the whole picture's memory along to another process
            return self.orient(image[:, top:bottom, left:right].clone())
        # rounding may step over the last column or row
        box = (left / scale_x, top / scale_y, min(right / scale_x, width), min(bottom / scale_y, height))
        return self.orient(resize_image(image, self.window_size, box))

    def target(self, annotations: Annotations, min_box_side: float) -> Target:
        """The objects seen, with boxes drawn tightly around what is seen of their masks.

        Objects outside the window, without a pixel, or with a side below `min_box_side` px are left out.
        """
        found = [(i, s.paint(self.scale, self.window)) for i, s in enumerate(annotations.segmentations)]
        boxed = [(i, patch, _tight_box(patch)) for i, patch in found if patch is not None]
        seen = [
            (i, patch, box) for i, patch, box in boxed if box is not None and _is_large(box, min_box_side)
        ]
        masks = torch.zeros((len(seen), *self.window_size), dtype=torch.bool)
        for mask, (_, (pixels, row, column), _) in zip(masks.numpy(), seen, strict=True):
            mask[row : row + pixels.shape[0], column : column + pixels.shape[1]] = pixels
        boxes = torch.tensor([box for _, _, box in seen], dtype=torch.float32).reshape(-1, 4)
        labels = torch.from_numpy(annotations.labels[[i for i, _, _ in seen]])
        return Target(self.orient_boxes(boxes), labels, self.orient(masks), annotations.image_id)

    def orient(self, tensor: Tensor) -> Tensor:
        """Mirror and turn `[..., h, w]`."""
        mirrored = [dim for dim, flip in ((-1, self.flip_horizontal), (-2, self.flip_vertical)) if flip]
        if mirrored:
            tensor = tensor.flip(mirrored)
        return tensor.rot90(self.turns, (-2, -1)) if self.turns else tensor

    def orient_boxes(self, boxes: Tensor) -> Tensor:
        """Mirror and turn `[G, 4]` xyxy px of the window."""
        height, width = self.window_size
        x1, y1, x2, y2 = boxes.unbind(-1)
        if self.flip_horizontal:
            x1, x2 = width - x2, width - x1
        if self.flip_vertical:
            y1, y2 = height - y2, height - y1
        for _ in range(self.turns):
            x1, y1, x2, y2 = y1, width - x2, y2, width - x1
            height, width = width, height
        return torch.stack((x1, y1, x2, y2), -1)


def _tight_box(patch: Patch) -> tuple[int, int, int, int] | None:
    """Half-open xyxy px around the mask, in the window's frame; None for no pixel at all."""
    pixels, row, column = patch
    columns, rows = np.flatnonzero(pixels.any(0)), np.flatnonzero(pixels.any(1))
    if not len(columns):
        return None
    return (
        int(columns[0]) + column,
        int(rows[0]) + row,
        int(columns[-1]) + column + 1,
        int(rows[-1]) + row + 1,
    )


def _is_large(box: tuple[int, int, int, int], min_side: float) -> bool:
    return box[2] - box[0] >= min_side and box[3] - box[1] >= min_side


class EvalTransform:
    """Resize by the authors' rule, nothing else: the network's frame in inference.

    Args:
        short_side: px; None: pictures keep their size.
        long_side: px.
    """

    def __init__(self, short_side: int | None, long_side: int) -> None:
        self.short_side = short_side
        self.long_side = long_side

    def view(self, size: Size) -> View:
        """The whole picture of `(height, width)` in the network's frame."""
        resized = size if self.short_side is None else resized_size(size, self.short_side, self.long_side)
        return View.whole(size, resized)

    def image(self, image: Tensor) -> Tensor:
        """The picture alone: evaluation needs no painted masks."""
        height, width = image.shape[-2:]
        return self.view((height, width)).image(image)

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator
    ) -> tuple[Tensor, Target]:
        """Picture and targets; draws nothing from the generator."""
        view = self.view(annotations.size)
        return view.image(image), view.target(annotations, min_box_side=1)


class TrainTransform:
    """Random view and colours, as the config says (section 4.1 by default)."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __call__(
        self, image: Tensor, annotations: Annotations, generator: torch.Generator
    ) -> tuple[Tensor, Target]:
        """uint8 `[3, H, W]` and its annotations -> uint8 `[3, h, w]` and the target in the same frame."""
        view = self.draw(annotations.size, generator)
        seen = change_colors(view.image(image), self.config.color_jitter, self.config.invert, generator)
        return seen, view.target(annotations, self.config.min_box_side)

    def draw(self, size: Size, generator: torch.Generator) -> View:
        """A random view of a picture of `(height, width)` px."""
        config = self.config
        resized = size
        if config.short_sides:
            resized = resized_size(size, _choose(config.short_sides, generator), config.long_side)
        resized = _jitter_scale(resized, config.scale_range, generator)
        return View(
            original=size,
            resized=resized,
            window=_draw_window(resized, config.crop_size, generator),
            flip_horizontal=_happens(config.flip_horizontal, generator),
            flip_vertical=_happens(config.flip_vertical, generator),
            turns=_draw_below(4, generator) if config.rotate90 else 0,
        )


def change_colors(image: Tensor, strength: float, invert: float, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast, saturation and hue, then perhaps the negative.

    Args:
        image: uint8 `[3, H, W]`.
        strength: 0..1; factors lie in 1 - strength .. 1 + strength, the hue moves by a quarter of it.
        invert: probability of the negative.
        generator: draws.
    """
    if strength:
        brightness, contrast, saturation, hue = (strength * (2 * _uniform(generator) - 1) for _ in range(4))
        image = COLORS.adjust_brightness(image, 1 + brightness)
        image = COLORS.adjust_contrast(image, 1 + contrast)
        if not _is_grey(image):  # where these two change nothing, but cost most
            image = COLORS.adjust_saturation(image, 1 + saturation)
            image = COLORS.adjust_hue(image, hue * HUE_SHARE)
    negative: Tensor = COLORS.invert(image) if _happens(invert, generator) else image
    return negative


def _is_grey(image: Tensor) -> bool:
    return bool((image[0] == image[1]).all() and (image[1] == image[2]).all())


def _jitter_scale(size: Size, scale_range: tuple[float, float], generator: torch.Generator) -> Size:
    low, high = map(math.log, scale_range)
    if low == high == 0:
        return size
    factor = math.exp(low + (high - low) * _uniform(generator))
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _draw_window(size: Size, side: int | None, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A square of `side` px anywhere in the picture; a shorter picture is taken whole."""
    height, width = (length if side is None else min(side, length) for length in size)
    top, left = _draw_below(size[0] - height + 1, generator), _draw_below(size[1] - width + 1, generator)
    return left, top, left + width, top + height


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def _happens(probability: float, generator: torch.Generator) -> bool:
    return _uniform(generator) < probability


def _draw_below(end: int, generator: torch.Generator) -> int:
    return int(torch.randint(end, (), generator=generator))


def _choose(options: Sequence[int], generator: torch.Generator) -> int:
    return options[_draw_below(len(options), generator)]
