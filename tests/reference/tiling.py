"""Slow reference of `embedmask.inference.tiling`: whole masks and plain loops over all pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from embedmask.inference.tiling import COVERED, MATCH_POWER, REACH, SAME_IOU, Bounds
from embedmask.structures import Instances

Size = tuple[int, int]


class Piece:
    """One detection of one tile, with its mask in the whole image."""

    def __init__(self, found: Instances, row: int, tile: int, window: Bounds, size: Size) -> None:
        y1, x1, y2, x2 = window
        self.tile, self.window = tile, window
        self.mask = torch.zeros(size, dtype=torch.bool)
        self.mask[y1:y2, x1:x2] = found.masks.select([row]).to_dense()[0]
        self.score, self.label = float(found.scores[row]), int(found.labels[row])
        cells = self.mask.nonzero()
        self.bounds = [*cells.amin(0).tolist(), *(cells.amax(0) + 1).tolist()]
        sides = [end != outer for end, outer in zip(window, (0, 0, *size), strict=True)]
        self.cuts = sum(
            inner and abs(bound - end) <= REACH
            for bound, end, inner in zip(self.bounds, window, sides, strict=True)
        )

    def inside_tile_of(self, other: Piece) -> Tensor:
        """Return the part of the mask inside the other's tile."""
        y1, x1, y2, x2 = other.window
        visible = torch.zeros_like(self.mask)
        visible[y1:y2, x1:x2] = self.mask[y1:y2, x1:x2]
        return visible

    def is_cut_for(self, other: Piece) -> bool:
        """Return whether a side of the tile cuts the mask where the other's tile continues."""
        continues = [
            self.window[0] > other.window[0], self.window[1] > other.window[1],
            self.window[2] < other.window[2], self.window[3] < other.window[3],
        ]  # fmt: skip
        low, high = other.window[:2], other.window[2:]
        visible = [max(a, b) for a, b in zip(self.bounds[:2], low, strict=True)]
        visible += [min(a, b) for a, b in zip(self.bounds[2:], high, strict=True)]
        near = [abs(bound - end) <= REACH for bound, end in zip(visible, self.window, strict=True)]
        return any(beyond and close for beyond, close in zip(continues, near, strict=True))


def merged_masks(
    found: Sequence[Instances], windows: Sequence[Bounds], size: Size
) -> list[tuple[float, Tensor]]:
    """Return score and whole mask of every object, in any order.

    Time and memory grow with pairs of pieces times the image: 200 GB of masks for 2,000 pieces in 100 megapixels.
    """
    pieces = [
        Piece(one, row, tile, windows[tile], size)
        for tile, one in enumerate(found)
        for row in range(len(one))
        if one.masks.areas()[row]
    ]
    ranked = sorted(pieces, key=lambda piece: (piece.cuts, -piece.score))
    remaining: list[Piece] = []
    for piece in ranked:
        if not any(
            piece.is_cut_for(other) and covered(piece, remaining, other.tile, COVERED) for other in remaining
        ):
            remaining.append(piece)
    groups = connected(remaining)
    results = []
    for group in groups:
        members: list[Piece] = []
        for piece in (piece for piece in ranked if piece in group):
            if not any(covered(piece, members, other.tile, SAME_IOU) for other in members):
                members.append(piece)
        mask = torch.stack([member.mask for member in members]).any(0)
        results.append((max(member.score for member in members), mask))
    return results


def covered(piece: Piece, others: Sequence[Piece], tile: int, share: float) -> bool:
    """Return whether another tile contains the whole piece and covers more than `share` of it by its own class."""
    inside = [other for other in others if other.tile == tile != piece.tile and other.label == piece.label]
    if not inside or (piece.inside_tile_of(inside[0]) != piece.mask).any():
        return False
    shown = sum(int((piece.mask & other.mask).sum()) for other in inside)
    return shown > share * int(piece.mask.sum())


def iou(one: Piece, other: Piece) -> float:
    """Compute the IoU over the pixels that both tiles contain."""
    if one.tile == other.tile or one.label != other.label:
        return 0.0
    first, second = one.inside_tile_of(other), other.inside_tile_of(one)
    both = int((first & second).sum())
    return both / int((first | second).sum()) if both else 0.0


def connected(pieces: list[Piece]) -> list[list[Piece]]:
    """Group the pieces that form one object, by flooding from each."""

    def value(one: Piece, other: Piece) -> float:
        return iou(one, other) ** MATCH_POWER * other.score

    def is_best(one: Piece, other: Piece) -> bool:
        return value(one, other) == max(value(one, third) for third in pieces if third.tile == other.tile)

    def agree(one: Piece, other: Piece) -> bool:
        return iou(one, other) > SAME_IOU and is_best(one, other) and is_best(other, one)

    def fragment(one: Piece, other: Piece) -> bool:
        if iou(one, other) == 0 or any(agree(one, third) for third in pieces if third.tile == other.tile):
            return False
        share = int((one.mask & other.mask).sum()) / int(one.inside_tile_of(other).sum())
        return one.is_cut_for(other) and other.is_cut_for(one) and share > COVERED

    left, groups = list(pieces), []
    while left:
        group = [left.pop()]
        for one in group:
            same = [o for o in left if agree(one, o) or fragment(one, o) or fragment(o, one)]
            group += same
            left = [other for other in left if other not in same]
        groups.append(group)
    return groups
