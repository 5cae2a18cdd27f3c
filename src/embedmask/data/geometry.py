"""One `GeometricTransform` says which part of an image is seen, how large and which way round.

It is drawn first; then the image is resampled and the masks are painted straight into it, both from the same
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from embedmask.data.images import resize_image
from embedmask.data.packed import Annotations
from embedmask.data.segmentation import Patch, Segmentation, Window
from embedmask.structures import CropMasks, Size, Target

PIXELS: Any = v2.functional  # torchvision does not declare what it exports here
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class GeometricTransform:
    """What is seen of an image: resize, cut a window, rotate it about its middle, mirror, turn.

    What lies outside the image, beside it or past the corners of a rotated one, gets the mean colour of
    what is seen of it.

    Attributes:
        original: `(height, width)` of the file.
        resized: `(height, width)` of the whole image after resizing.
        window: left, top, right, bottom in the resized image, whole px; may reach past its sides.
        flip_horizontal: mirror left and right.
        flip_vertical: mirror top and bottom.
        turns: right angles, counter-clockwise, 0..3.
        angle: degrees, counter-clockwise.
    """

    original: Size
    resized: Size
    window: Window
    flip_horizontal: bool = False
    flip_vertical: bool = False
    turns: int = 0
    angle: float = 0.0

    @classmethod
    def whole(cls, original: Size, resized: Size) -> GeometricTransform:
        """All of the image, upright."""
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

    @property
    def seen_size(self) -> Size:
        """`(height, width)` of what is seen, after turning."""
        height, width = self.window_size
        return (width, height) if self.turns % 2 else (height, width)

    @property
    def margins(self) -> tuple[int, int]:
        """How far the rotated window reaches past the upright one on either side, (y, x), whole px."""
        if not self.angle:
            return 0, 0
        height, width = self.window_size
        cos, sin = (abs(f(math.radians(self.angle))) for f in (math.cos, math.sin))
        reach = height * cos + width * sin - height, width * cos + height * sin - width
        # one more for the neighbours that the filter looks at
        return max(math.ceil(reach[0] / 2) + 1, 0), max(math.ceil(reach[1] / 2) + 1, 0)

    @property
    def source(self) -> Window:
        """The part of the resized image that is needed: the window, its margins, but not what lies outside."""
        (left, top, right, bottom), (y, x), (height, width) = self.window, self.margins, self.resized
        return max(left - x, 0), max(top - y, 0), min(right + x, width), min(bottom + y, height)

    def image(self, image: Tensor) -> Tensor:
        """The image seen, uint8 `[3, h, w]`, from uint8 `[3, H, W]` of size `original`."""
        seen = self._resample(image)
        (left, top, right, bottom), (y, x), source = self.window, self.margins, self.source
        beyond = (source[0] - left + x, source[1] - top + y, right + x - source[2], bottom + y - source[3])
        if any(beyond):
            mean = seen.mean((-2, -1), dtype=torch.float32).tolist()
            seen = PIXELS.pad(seen, list(beyond), fill=mean)
        if self.angle:
            seen = PIXELS.rotate(seen, self.angle, InterpolationMode.BILINEAR)
            seen = seen[:, y : seen.shape[-2] - y, x : seen.shape[-1] - x].clone()
        return self.orient(seen)

    def _resample(self, image: Tensor) -> Tensor:
        """The source at the resized image's scale."""
        (scale_y, scale_x), (left, top, right, bottom) = self.scale, self.source
        height, width = self.original
        if self.resized == self.original:
            # a copy: a view would take the whole image's memory along to another process
            return image[:, top:bottom, left:right].clone()
        # rounding may step over the last column or row
        box = (left / scale_x, top / scale_y, min(right / scale_x, width), min(bottom / scale_y, height))
        return resize_image(image, (bottom - top, right - left), box)

    def target(self, annotations: Annotations, min_box_side: float) -> Target:
        """The objects seen, with boxes drawn tightly around what is seen of their masks.

        Objects outside the window, without a pixel, or with a side below `min_box_side` px are left out.
        """
        seen = visible_objects(self._paint(annotations.segmentations), min_box_side)
        boxes = self.orient_boxes(torch.tensor([s.box for s in seen], dtype=torch.float32).reshape(-1, 4))
        corners = [(int(y), int(x)) for x, y in boxes[:, :2].tolist()]
        masks = CropMasks([self.orient(s.crop) for s in seen], corners, self.seen_size)
        labels = torch.from_numpy(annotations.labels[[s.index for s in seen]])
        return Target(boxes, labels, masks, annotations.image_id)

    def _paint(self, segmentations: Iterable[Segmentation]) -> Iterator[Patch | None]:
        """Each mask in the window, before it is mirrored and turned."""
        scale, source, size = self.scale, self.source, self.window_size
        down, right = source[1] - self.window[1], source[0] - self.window[0]
        for segmentation in segmentations:
            patch = segmentation.paint(scale, source)
            if patch is not None:
                patch = patch[0], patch[1] + down, patch[2] + right
                patch = rotate_patch(patch, self.angle, size) if self.angle else patch
            yield patch

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


def rotate_patch(patch: Patch, angle: float, size: Size) -> Patch | None:
    """A mask rotated about the middle of a frame, cut to that frame; None where nothing of it is left inside.

    Args:
        patch: pixels with their row and column in the frame, which may lie outside.
        angle: degrees, counter-clockwise.
        size: `(height, width)` of the frame.
    """
    pixels, row, column = patch
    height, width = pixels.shape
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[cos, sin], [-sin, cos]])  # of (x, y); y points down
    middle = np.array(size[::-1]) / 2
    corners = np.array([(x, y) for x in (column, column + width) for y in (row, row + height)])
    turned = (corners - middle) @ turn.T + middle
    left, top = np.floor(turned.min(0)).astype(int).clip(0).tolist()
    right, bottom = np.ceil(turned.max(0)).astype(int).clip(None, size[::-1]).tolist()
    if left >= right or top >= bottom:
        return None
    # Pillow asks where each pixel of the result comes from
    x, y = (np.array((left, top)) - middle) @ turn + middle - (column, row)
    painted = Image.fromarray(pixels * np.uint8(255)).transform(
        (right - left, bottom - top),
        Image.Transform.AFFINE,
        (cos, -sin, x, sin, cos, y),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(painted) >= 128, top, left


@dataclass(frozen=True)
class VisibleObject:
    """One object of those that were looked at.

    Attributes:
        index: its number among them.
        box: tight half-open xyxy px.
        crop: its mask inside the box, bool `[h, w]`, in memory of its own.
    """

    index: int
    box: Box
    crop: Tensor


def visible_objects(patches: Iterable[Patch | None], min_side: float) -> list[VisibleObject]:
    """The objects whose masks have a pixel, and whose tight boxes no side below `min_side` px."""
    found = []
    for index, patch in enumerate(patches):
        box = None if patch is None else _tight_box(patch)
        if patch is None or box is None or min(box[2] - box[0], box[3] - box[1]) < min_side:
            continue
        (pixels, row, column), (left, top, right, bottom) = patch, box
        inside = pixels[top - row : bottom - row, left - column : right - column]
        found.append(VisibleObject(index, box, torch.from_numpy(inside.copy())))
    return found


def _tight_box(patch: Patch) -> Box | None:
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
