"""Copy-paste augmentation: objects of one image pasted over another (Ghiasi et al., CVPR 2021, section 3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from embedmask.data.geometry import TF, visible_objects
from embedmask.data.images import size_of
from embedmask.data.packed import Annotations
from embedmask.data.sampling import randint, uniform
from embedmask.masks import BitMasks, MaskCrop
from embedmask.structures import Size, Target


def choose_objects(annotations: Annotations, generator: torch.Generator) -> Annotations:
    """Select a random subset of the objects: its expected share is uniform in 0..1. No mask is painted."""
    share = uniform(0, 1, generator)
    chosen = np.flatnonzero(torch.rand(len(annotations), generator=generator).numpy() < share)
    return annotations.select(chosen)


def sample_corner(size: Size, other: Size, generator: torch.Generator) -> tuple[int, int]:
    """Sample where an image begins in another one: a smaller one lies inside, a larger one covers it.

    Args:
        size: `(height, width)` px of the image below.
        other: `(height, width)` px of the image on top.

    Returns:
        Row and column in the image below; negative where the other one is larger.
    """
    spaces = [below - above for below, above in zip(size, other, strict=True)]
    top, left = (min(space, 0) + randint(abs(space) + 1, generator) for space in spaces)
    return top, left


def paste_objects(
    image: Tensor,
    target: Target,
    donor: tuple[Tensor, Target],
    corner: tuple[int, int],
    min_box_side: float,
) -> tuple[Tensor, Target]:
    """Paste the objects of another image over an image.

    Pasted objects are removed from the masks below them and boxes are tightened. Objects that have no pixel left, or a
    box side below `min_box_side` px, are dropped.

    Args:
        image: uint8 `[3, h, w]`.
        target: its objects; G may be 0.
        donor: the other image, of any size, and the objects to paste.
        corner: row and column of `image` where the other image begins, see `sample_corner`.
        min_box_side: px.

    Returns:
        Image and target in the frame of `image`; pasted objects come last.
    """
    height, width = size_of(image)
    covered = np.zeros((height, width), dtype=np.bool_)
    pasted = []
    for pixels, row, column in _crops(donor[1]):
        # move the crop by `corner` and cut it to the frame; it may become empty
        y, x = row + corner[0], column + corner[1]
        top, left = max(-y, 0), max(-x, 0)
        inside = pixels[top : max(height - y, 0), left : max(width - x, 0)]
        pasted.append(MaskCrop(inside, y + top, x + left))
        covered[y + top : y + top + inside.shape[0], x + left : x + left + inside.shape[1]] |= inside
    below = [
        MaskCrop(pixels & ~covered[y : y + pixels.shape[0], x : x + pixels.shape[1]], y, x)
        for pixels, y, x in _crops(target)
    ]
    objects = visible_objects([*below, *pasted], min_box_side)
    masks = BitMasks.from_crops([crop for _, crop in objects], (height, width))
    labels = torch.cat((target.labels, donor[1].labels))[[index for index, _ in objects]]
    # the donor's pixels in the frame of `image`: cropping at a negative corner pads
    moved = TF.crop(donor[0], -corner[0], -corner[1], height, width)
    mixed = torch.where(torch.from_numpy(covered), moved, image)
    return mixed, Target(masks.bounds.float(), labels, masks, target.image_id)


def _crops(target: Target) -> list[MaskCrop]:
    return [MaskCrop(pixels.numpy(), y, x) for pixels, y, x in BitMasks.of(target.masks).crops()]
