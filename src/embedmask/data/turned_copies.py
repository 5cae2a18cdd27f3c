"""Find images that show another one turned or mirrored, and whether their objects were turned along.

Thumbnails are compared, so a copy may have been compressed again. Copies of flat images, whose turn cannot be seen,
are not found; neither are objects that two copies have exchanged where a half turn or a mirror leads from one to the
other: both then fit each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
"""Of a thumbnail, px."""
ALIKE, DISTINCT = 3, 4
"""Largest difference of two thumbnails of one scene; by how much more all other turns of it must differ."""
SAME_BOX = 0.7
"""IoU from which two boxes are one object."""
AGREE = 0.8
"""Share of the objects that must fit for a turn to be believed."""
TURNS = tuple((mirrored, turns) for mirrored in (False, True) for turns in range(4))
NAMES = (
    "not turned",
    "turned by 90°",
    "turned by 180°",
    "turned by 270°",
    "mirrored",
    *["mirrored and turned"] * 3,
)
Thumb = NDArray[np.uint8]
"""`[SIDE, SIDE]`, grey."""


@dataclass(frozen=True)
class TurnedCopy:
    """Two images that show the same scene.

    Attributes:
        first, second: their places in the list.
        turn: place in `TURNS`: mirroring left and right, then counter-clockwise quarter turns, make the second from
            the first.
    """

    first: int
    second: int
    turn: int


def thumbnail(image: Tensor) -> Thumb:
    """Return the block means of an image uint8 `[3, H, W]`, in grey."""
    small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(np.asarray(small).mean(-1).round(), dtype=np.uint8)


def find_turned_copies(thumbs: Sequence[Thumb], sizes: Sequence[Size]) -> Iterator[TurnedCopy]:
    """Yield the pairs of images of which one is the other turned or mirrored.

    Args:
        thumbs: of N images, each in the frame of its annotations.
        sizes: `(height, width)` of each.
    """
    if not thumbs:
        return
    stack = np.stack(thumbs).astype(np.int16)
    # the mean over all turns is the same for all copies; an eighth of it says everything
    symmetric = np.mean([_turned(stack, turn) for turn in range(len(TURNS))], axis=0)
    rows, columns = np.triu_indices(SIDE // 2)
    pairs = KDTree(symmetric[:, rows, columns]).query_pairs(ALIKE, p=np.inf, output_type="ndarray")
    for first, second in pairs.tolist():
        turn = _find_turn(stack[first], stack[second], sizes[first], sizes[second])
        if turn:
            yield TurnedCopy(first, second, turn)


def _turned(thumbs: NDArray[np.int16], turn: int) -> NDArray[np.int16]:
    mirrored, turns = TURNS[turn]
    return np.rot90(thumbs[..., ::-1] if mirrored else thumbs, turns, (-2, -1))


def _find_turn(first: NDArray[np.int16], second: NDArray[np.int16], size: Size, other: Size) -> int | None:
    """Return the turn that makes the second thumbnail from the first; None where none or several do."""
    differences = {
        turn: int(np.abs(_turned(first, turn) - second).max())
        for turn, (_, turns) in enumerate(TURNS)
        if (size[::-1] if turns % 2 else size) == other
    }
    if not differences:
        return None
    best, *others = sorted(differences, key=lambda turn: differences[turn])
    distinct = all(differences[turn] >= differences[best] + DISTINCT for turn in others)
    return best if differences[best] <= ALIKE and distinct else None


def misplaced(first: Annotations, second: Annotations, turn: int) -> str:
    """Return how the objects of two turned copies contradict the turn; empty where they do not, or cannot tell.

    Args:
        first: objects of the first image.
        second: of the second, which is the first after `turn`.
    """
    ours, theirs = _boxes(first), _boxes(second)
    if not len(ours) or not len(theirs):
        return _in_other_frame(first, second) if TURNS[turn][1] % 2 else ""
    if _agreement(_turn_boxes(ours, first.size, turn), theirs) >= AGREE / 2:
        return ""
    # objects that the two have exchanged were turned back, from the frame of the second
    fits = {
        other: max(_agreement(_turn_boxes(ours, size, other), theirs) for size in (first.size, second.size))
        for other in range(len(TURNS))
        if other != turn
    }
    best = max(fits, key=lambda other: fits[other])
    return f"its objects lie as if it were {NAMES[best]}" if fits[best] >= AGREE else ""


def _in_other_frame(first: Annotations, second: Annotations) -> str:
    """Judge two images with height and width swapped, of which one has no objects."""
    own, twin = (first, second) if len(first) else (second, first)
    reaches = [
        [reach_outside(mask.bounds(), size) for mask in own.segmentations] for size in (own.size, twin.size)
    ]
    leaves, beyond_twin = (max(reach, default=0.0) > OUTSIDE for reach in reaches)
    return (
        "one has no objects, and those of the other fit the frame of that one alone"
        if leaves and not beyond_twin
        else ""
    )


def _boxes(annotations: Annotations) -> Tensor:
    return torch.tensor([mask.bounds() for mask in annotations.segmentations]).reshape(-1, 4)


def _turn_boxes(boxes: Tensor, size: Size, turn: int) -> Tensor:
    mirrored, turns = TURNS[turn]
    window = (0, 0, size[1], size[0])
    return GeometricTransform(size, size, window, flip_horizontal=mirrored, turns=turns).orient_boxes(boxes)


def _agreement(ours: Tensor, theirs: Tensor) -> float:
    """Return the share of the boxes of the shorter list that are in the other."""
    same = box_iou(ours, theirs) >= SAME_BOX
    return float(same.any(int(len(ours) <= len(theirs))).float().mean())
