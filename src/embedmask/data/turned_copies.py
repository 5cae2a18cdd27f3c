"""Find images that are rotated or mirrored copies of others, and check that their objects follow the turn.

Thumbnails are compared, so a copy may have been compressed again. Two cases are not detected: copies of flat images,
whose turn cannot be determined, and copies with exchanged objects under a half turn or a mirror, because then the
objects of each image fit the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.ops import box_iou

from embedmask.data.check_masks import OUTSIDE, reach_outside
from embedmask.data.geometry import GeometricTransform
from embedmask.data.packed import Annotations
from embedmask.structures import Size

SIDE = 16
"""Side of a thumbnail, px."""
ALIKE, DISTINCT = 3, 4
"""Largest difference of two thumbnails of one scene, and by how much more every other turn must differ, gray levels."""
FORBIDDEN = 1000
"""Difference that no two thumbnails have."""
PAIR_CHUNK = 4096
"""Pairs of thumbnails that are compared at once, which needs 30 MB."""
SAME_BOX = 0.7
"""IoU from which two boxes are the same object."""
AGREE = 0.8
"""Share of the objects that must agree with a turn."""
TURNS = tuple((mirrored, turns) for mirrored in (False, True) for turns in range(4))
"""The eight orientations: whether to mirror left and right, then the number of counter-clockwise quarter turns."""
NAMES = (
    "not turned",
    "turned by 90°",
    "turned by 180°",
    "turned by 270°",
    "mirrored",
    *["mirrored and turned"] * 3,
)
Thumb = NDArray[np.uint8]
"""Gray thumbnail, `[SIDE, SIDE]`."""


class TurnedCopy(NamedTuple):
    """Pair of images that show the same scene in different orientations.

    Attributes:
        first, second: indices of the images.
        turn: index in `TURNS` of the orientation that turns the first image into the second.
    """

    first: int
    second: int
    turn: int


def block_means(image: Tensor) -> NDArray[np.uint8]:
    """Return the block means of an image: uint8 `[3, H, W]` -> uint8 `[SIDE, SIDE, 3]`."""
    small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small)


def thumbnail(image: Tensor) -> Thumb:
    """Return the gray block means of an image `[3, H, W]`."""
    return np.asarray(block_means(image).mean(-1).round(), dtype=np.uint8)


def orient(thumbs: NDArray[Any], turn: int) -> NDArray[Any]:
    """Mirror and turn thumbnails `[..., SIDE, SIDE]`; `turn` is an index in `TURNS`."""
    mirrored, turns = TURNS[turn]
    return np.rot90(thumbs[..., ::-1] if mirrored else thumbs, turns, (-2, -1))


def find_turned_copies(thumbs: Sequence[Thumb], sizes: Sequence[Size]) -> Iterator[TurnedCopy]:
    """Yield the pairs of images of which one is the other rotated or mirrored.

    Args:
        thumbs: thumbnails of N images, each in the frame of its annotations.
        sizes: `(height, width)` of each image.
    """
    if not thumbs:
        return
    stack = np.stack(thumbs).astype(np.int16)
    # a thumbnail that a half turn or a mirror hardly changes has no distinct turn: dark, flat or symmetric images
    own = [np.abs(orient(stack, turn) - stack).max((1, 2)) for turn in (2, 4, 6)]
    kept = np.flatnonzero(np.min(own, axis=0) >= DISTINCT)
    if not len(kept):
        return
    stack = stack[kept]
    # The mean over all turns is the same for all copies of an image. It is symmetric, so the upper triangle of one
    # quarter determines it: [N, 36]. It also differs by at most ALIKE if some turn does.
    symmetric = np.mean([orient(stack, turn) for turn in range(len(TURNS))], axis=0)
    rows, columns = np.triu_indices(SIDE // 2)
    pairs = KDTree(symmetric[:, rows, columns]).query_pairs(ALIKE, p=np.inf, output_type="ndarray")
    for chunk in range(0, len(pairs), PAIR_CHUNK):
        yield from _turned_among(stack, pairs[chunk : chunk + PAIR_CHUNK], kept, sizes)


def _turned_among(
    stack: NDArray[np.int16], pairs: NDArray[np.int64], numbers: NDArray[np.int64], sizes: Sequence[Size]
) -> Iterator[TurnedCopy]:
    """Yield the turned copies among pairs `[P, 2]` of thumbnails; `numbers` are the images of the thumbnails."""
    first, second = pairs.T
    shapes = np.array([sizes[number] for number in numbers])
    # [8, P]: largest difference for each turn, or FORBIDDEN if the turn does not give the size of the second image
    differences = np.full((len(TURNS), len(pairs)), FORBIDDEN)
    for turn, (_, turns) in enumerate(TURNS):
        turned = shapes[first][:, ::-1] if turns % 2 else shapes[first]
        fits = (turned == shapes[second]).all(1)
        change = np.abs(orient(stack[first[fits]], turn) - stack[second[fits]])
        differences[turn, fits] = change.max((1, 2), initial=0)
    best, (least, following) = differences.argmin(0), np.sort(differences, 0)[:2]
    # turn 0 is an equal image, not a turned one
    found = (best != 0) & (least <= ALIKE) & (following >= least + DISTINCT)
    for one, other, turn in zip(first[found], second[found], best[found], strict=True):
        yield TurnedCopy(int(numbers[one]), int(numbers[other]), int(turn))


def misplaced(first: Annotations, second: Annotations, turn: int) -> str:
    """Describe how the objects of a turned copy contradict the turn.

    Args:
        first: objects of the first image.
        second: objects of the second image, which is the first after `turn`.
        turn: index in `TURNS`.

    Returns:
        The contradiction, for messages; empty if there is none or if it cannot be determined.
    """
    boxes, turned_boxes = _boxes(first), _boxes(second)
    if not len(boxes) or not len(turned_boxes):
        # One image has no objects: if the turn swaps width and height, those of the other may fit only its frame.
        annotated, other_size = (first, second.size) if len(first) else (second, first.size)
        reach = [
            [reach_outside(mask.bounds(), size) for mask in annotated.segmentations]
            for size in (annotated.size, other_size)
        ]
        outside_own, outside_other = (max(values, default=0.0) > OUTSIDE for values in reach)
        if TURNS[turn][1] % 2 and outside_own and not outside_other:
            return "one has no objects, and those of the other fit the frame of that one alone"
        return ""
    if _agreement(_turn_boxes(boxes, first.size, turn), turned_boxes) >= AGREE / 2:
        return ""
    # if the two images have exchanged their objects, the boxes of the first are in the frame of the second
    fits = {
        other: max(
            _agreement(_turn_boxes(boxes, size, other), turned_boxes) for size in (first.size, second.size)
        )
        for other in range(len(TURNS))
        if other != turn
    }
    best = max(fits, key=fits.__getitem__)
    return f"its objects lie as if it were {NAMES[best]}" if fits[best] >= AGREE else ""


def _boxes(annotations: Annotations) -> Tensor:
    """Return the boxes of all objects, float32 `[G, 4]` xyxy px."""
    return torch.tensor([mask.bounds() for mask in annotations.segmentations]).reshape(-1, 4)


def _turn_boxes(boxes: Tensor, size: Size, turn: int) -> Tensor:
    """Apply a turn to boxes `[G, 4]` xyxy px of an image `(height, width)`."""
    mirrored, turns = TURNS[turn]
    window = (0, 0, size[1], size[0])
    return GeometricTransform(size, size, window, flip_horizontal=mirrored, turns=turns).orient_boxes(boxes)


def _agreement(boxes: Tensor, others: Tensor) -> float:
    """Return the share of the boxes of the shorter list that occur in the other list, both xyxy px."""
    same = box_iou(boxes, others) >= SAME_BOX  # [A, B]
    return float(same.any(int(len(boxes) <= len(others))).float().mean())
