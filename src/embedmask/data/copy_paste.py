"""Copy-paste: objects of one image put over another (Ghiasi et al., CVPR 2021, section 3)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from embedmask.data.geometry import PIXELS, visible_objects
from embedmask.data.images import size_of
from embedmask.data.packed import Annotations
from embedmask.data.sampling import below, between
from embedmask.data.segmentation import Patch
from embedmask.structures import CropMasks, Size, Target


def choose_objects(annotations: Annotations, generator: torch.Generator) -> Annotations:
    """A random part of the objects, of a random size: none to all. Nothing is painted for the others."""
    share = between(0, 1, generator)
    chosen = np.flatnonzero(torch.rand(len(annotations), generator=generator).numpy() < share)
    return replace(
        annotations,
        labels=annotations.labels[chosen],
        segmentations=[annotations.segmentations[i] for i in chosen],
    )


def draw_corner(size: Size, other: Size, generator: torch.Generator) -> tuple[int, int]:
    """Row and column where an image of size `other` begins in one of `size`, `(height, width)`.

    A smaller one lies inside; a larger one covers it and begins above or left of it.
    """
    spaces = [own - its for own, its in zip(size, other, strict=True)]
    top, left = (min(space, 0) + below(abs(space) + 1, generator) for space in spaces)
    return top, left


def paste_objects(
    image: Tensor,
    target: Target,
    donor: tuple[Tensor, Target],
    corner: tuple[int, int],
    min_box_side: float,
) -> tuple[Tensor, Target]:
    """Put the objects of another item over an image.

    What they cover is taken from the masks beneath; boxes are drawn anew; objects without a pixel left, or
    with a side below `min_box_side` px, are dropped.

    Args:
        image: uint8 `[3, h, w]`.
        target: its objects, G of them or none.
        donor: the other image, of any size, and the objects to take over, any number.
        corner: row and column of `image` where the other image begins, see `draw_corner`.
        min_box_side: px.

    Returns:
        ImageSource and target of the same frame; the pasted objects come last.
    """
    height, width = size_of(image)
    over = [_clip(patch, corner, (height, width)) for patch in _patches(donor[1])]
    covered = np.zeros((height, width), dtype=np.bool_)
    for pixels, row, column in over:
        covered[row : row + pixels.shape[0], column : column + pixels.shape[1]] |= pixels
    beneath = [
        (pixels & ~covered[row : row + pixels.shape[0], column : column + pixels.shape[1]], row, column)
        for pixels, row, column in _patches(target)
    ]
    seen = visible_objects([*beneath, *over], min_box_side)
    boxes = torch.tensor([s.box for s in seen], dtype=torch.float32).reshape(-1, 4)
    labels = torch.cat((target.labels, donor[1].labels))[[s.index for s in seen]]
    masks = CropMasks([s.crop for s in seen], [(s.box[1], s.box[0]) for s in seen], (height, width))
    moved = PIXELS.crop(donor[0], -corner[0], -corner[1], height, width)
    mixed = torch.where(torch.from_numpy(covered), moved, image)
    return mixed, Target(boxes, labels, masks, target.image_id)


def _patches(target: Target) -> list[Patch]:
    masks = target.crop_masks()
    return [(crop.numpy(), *corner) for crop, corner in zip(masks.crops, masks.offsets, strict=True)]


def _clip(patch: Patch, by: tuple[int, int], size: Size) -> Patch:
    """A mask moved by rows and columns, cut to a frame; of no size where nothing of it is left inside."""
    pixels, row, column = patch[0], patch[1] + by[0], patch[2] + by[1]
    top, left = max(-row, 0), max(-column, 0)
    inside = pixels[top : max(size[0] - row, 0), left : max(size[1] - column, 0)]
    return inside, row + top, column + left
