"""`GeometricTransform`: resize, crop, rotate, mirror and turn an image and its masks with the same parameters.

The parameters are sampled first. Then the image is resampled and the masks are painted directly into the result.
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
from embedmask.data.segmentation import Segmentation, Window
from embedmask.masks import BitMasks, MaskCrop
from embedmask.structures import Size, Target

TF: Any = v2.functional  # torchvision does not declare its exports


@dataclass(frozen=True)
class GeometricTransform:
    """Parameters of one transform: resize, crop a window, rotate it about its center, mirror, turn by right angles.

    Areas outside the image, beside it or at the corners of a rotated one, are filled with the mean color of the
    visible part.

    Attributes:
        original: `(height, width)` of the file, px.
        resized: `(height, width)` of the whole image after resizing, px.
        window: left, top, right, bottom in the resized image, whole px; may reach outside.
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
        """Return the transform that only resizes."""
        return cls(original, resized, (0, 0, resized[1], resized[0]))

    @property
    def scale(self) -> tuple[float, float]:
        """Return resized px per original px, (y, x)."""
        return self.resized[0] / self.original[0], self.resized[1] / self.original[1]

    @property
    def window_size(self) -> Size:
        """Return `(height, width)` of the window, before turning."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    @property
    def output_size(self) -> Size:
        """Return `(height, width)` of the result, after turning."""
        height, width = self.window_size
        return (width, height) if self.turns % 2 else (height, width)

    @property
    def margins(self) -> tuple[int, int]:
        """Return how far the rotated window reaches beyond the upright one on each side, (y, x), whole px."""
        if not self.angle:
            return 0, 0
        height, width = self.window_size
        cos, sin = (abs(f(math.radians(self.angle))) for f in (math.cos, math.sin))
        # extent of the rotated rectangle, minus that of the upright one
        reach = height * cos + width * sin - height, width * cos + height * sin - width
        # + 1 for the neighbors that the bilinear filter reads
        return max(math.ceil(reach[0] / 2) + 1, 0), max(math.ceil(reach[1] / 2) + 1, 0)

    @property
    def source(self) -> Window:
        """Return the part of the resized image that is read: the window and its margins, cut to the image."""
        (left, top, right, bottom), (y, x), (height, width) = self.window, self.margins, self.resized
        return max(left - x, 0), max(top - y, 0), min(right + x, width), min(bottom + y, height)

    def image(self, image: Tensor) -> Tensor:
        """Transform an image: uint8 `[3, H, W]` of size `original` -> uint8 `[3, h, w]` of size `output_size`."""
        (scale_y, scale_x), (left, top, right, bottom) = self.scale, self.source
        if self.resized == self.original:
            # a copy: a view would send the whole image's memory to another process
            result = image[:, top:bottom, left:right].clone()
        else:
            # only the source is resampled; rounding may exceed the last row or column
            height, width = self.original
            box = (left / scale_x, top / scale_y, min(right / scale_x, width), min(bottom / scale_y, height))
            result = resize_image(image, (bottom - top, right - left), box)
        # pad to the window and its margins
        window, (y, x) = self.window, self.margins
        padding = [left - window[0] + x, top - window[1] + y, window[2] + x - right, window[3] + y - bottom]
        if any(padding):
            mean = result.mean((-2, -1), dtype=torch.float32).tolist()
            result = TF.pad(result, padding, fill=mean)
        if self.angle:
            result = TF.rotate(result, self.angle, InterpolationMode.BILINEAR)
            result = result[:, y : result.shape[-2] - y, x : result.shape[-1] - x].clone()
        return self.orient(result)

    def target(self, annotations: Annotations, min_box_side: float) -> Target:
        """Transform the objects; boxes are tight around the visible part of each mask.

        Objects outside the window, without a pixel, or with a box side below `min_box_side` px are dropped.
        """
        objects = visible_objects(self._paint(annotations.segmentations), min_box_side)
        boxes = torch.tensor([crop.box for _, crop in objects], dtype=torch.float32).reshape(-1, 4)
        boxes = self.orient_boxes(boxes)
        crops = [
            MaskCrop(self.orient(torch.from_numpy(crop.pixels)).numpy(), int(y), int(x))
            for (_, crop), (x, y, _, _) in zip(objects, boxes.tolist(), strict=True)
        ]
        masks = BitMasks.from_crops(crops, self.output_size)
        labels = torch.from_numpy(annotations.labels[[index for index, _ in objects]])
        return Target(boxes, labels, masks, annotations.image_id)

    def _paint(self, segmentations: Iterable[Segmentation]) -> Iterator[MaskCrop | None]:
        """Yield each mask in the window, before mirroring and turning."""
        scale, source, size = self.scale, self.source, self.window_size
        # from the source's frame to the window's
        down, right = source[1] - self.window[1], source[0] - self.window[0]
        for segmentation in segmentations:
            crop = segmentation.paint(scale, source)
            if crop is not None:
                crop = MaskCrop(crop.pixels, crop.y + down, crop.x + right)
                crop = rotate_crop(crop, self.angle, size) if self.angle else crop
            yield crop

    def orient(self, tensor: Tensor) -> Tensor:
        """Mirror and turn `[..., h, w]`."""
        mirrored = [dim for dim, flip in ((-1, self.flip_horizontal), (-2, self.flip_vertical)) if flip]
        if mirrored:
            tensor = tensor.flip(mirrored)
        return tensor.rot90(self.turns, (-2, -1)) if self.turns else tensor

    def orient_boxes(self, boxes: Tensor) -> Tensor:
        """Mirror and turn boxes of the window, `[G, 4]` xyxy px."""
        height, width = self.window_size
        x1, y1, x2, y2 = boxes.unbind(-1)
        if self.flip_horizontal:
            x1, x2 = width - x2, width - x1
        if self.flip_vertical:
            y1, y2 = height - y2, height - y1
        for _ in range(self.turns):
            # counter-clockwise: (x, y) -> (y, width - x)
            x1, y1, x2, y2 = y1, width - x2, y2, width - x1
            height, width = width, height
        return torch.stack((x1, y1, x2, y2), -1)


def rotate_crop(crop: MaskCrop, angle: float, size: Size) -> MaskCrop | None:
    """Rotate a mask about the center of a frame and cut it to the frame.

    Args:
        crop: part of the mask in the frame; may lie outside.
        angle: degrees, counter-clockwise.
        size: `(height, width)` of the frame, px.

    Returns:
        The rotated mask, or None if no part of it lies in the frame.
    """
    pixels, row, column = crop
    height, width = pixels.shape
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # acts on column vectors (x, y); counter-clockwise, because y points down
    rotation = np.array([[cos, sin], [-sin, cos]])
    center = np.array(size[::-1]) / 2
    corners = np.array([(x, y) for x in (column, column + width) for y in (row, row + height)])
    rotated = (corners - center) @ rotation.T + center  # [4, 2]
    # upright box around the rotated corners, cut to the frame
    left, top = np.floor(rotated.min(0)).astype(int).clip(0).tolist()
    right, bottom = np.ceil(rotated.max(0)).astype(int).clip(None, size[::-1]).tolist()
    if left >= right or top >= bottom:
        return None
    # Pillow maps output to input pixels: the inverse rotation (v @ rotation), and the input place of the first output
    x, y = (np.array((left, top)) - center) @ rotation + center - (column, row)
    painted = Image.fromarray(pixels * np.uint8(255)).transform(
        (right - left, bottom - top),
        Image.Transform.AFFINE,
        (cos, -sin, x, sin, cos, y),
        Image.Resampling.BILINEAR,
    )
    return MaskCrop(np.asarray(painted) >= 128, top, left)


def visible_objects(crops: Iterable[MaskCrop | None], min_side: float) -> list[tuple[int, MaskCrop]]:
    """Return index and tight crop of each mask that has a pixel and no side below `min_side` px.

    The crops are copies: views would hold the memory of larger ones.
    """
    objects = []
    for index, crop in enumerate(crops):
        tight = crop.tight() if crop is not None else None
        if tight is not None and tight.pixels.size and min(tight.pixels.shape) >= min_side:
            objects.append((index, tight._replace(pixels=tight.pixels.copy())))
    return objects
