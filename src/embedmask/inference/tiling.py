"""Detection in large images tile by tile, with the detections of all tiles merged into those of the whole image.

Neighboring tiles overlap. Two pieces belong to one object when their masks agree in the overlap: a perfect detector
returns the same pixels there, however the tiles cut the object, while masks of touching objects share none. All steps
work on run lengths, so memory grows with the outlines of the objects.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

from embedmask.data.images import size_of
from embedmask.data.slides import Slide
from embedmask.errors import BadInput
from embedmask.masks import RunMasks
from embedmask.structures import Columns, Instances, Size

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Detect = Callable[[Sequence[Tensor]], list[Instances]]
Bounds = tuple[int, int, int, int]
"""First row, first column, row after the last and column after the last, px of the image."""

COLUMNS = ("boxes", "scores", "labels", "proposal_embed", "proposal_margin")

MIN_TILE = 64
REACH = 4
"""A mask within this distance, px, of a side of its tile counts as cut there if the image continues."""
SAME_IOU = 0.3
"""Minimum IoU of two pieces of one object, over the pixels inside both tiles: two detections of a thin object differ by
a pixel here and there, while touching objects share almost no pixels."""
MATCH_POWER = 4
"""Exponent of the IoU beside the score, in the choice between several matches of a piece."""
COVERED = 0.5
"""A piece is dropped when better pieces of one tile cover more than this fraction of it."""


def check_tiles(tile: int, overlap: int) -> None:
    """Check the size of tiles and their overlap.

    Raises:
        BadInput: not whole numbers, tiles too small, or an overlap below 0 or above half a tile.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if not hasattr(value, "__index__"):
            raise BadInput(f"{name} {value!r}: use a whole number of px")
    if tile < MIN_TILE:
        raise BadInput(f"tile {tile}: use at least {MIN_TILE} px")
    if not 0 <= overlap <= tile // 2:
        raise BadInput(f"overlap {overlap}: use 0 to {tile // 2} px, half a tile")


def tiled_instances(
    image: Tensor | Slide,
    detect: Detect,
    *,
    tile: int,
    overlap: int,
    score_thresholds: Sequence[float] = (),
    max_detections: int | None = None,
    batch_size: int = 1,
) -> Instances:
    """Detect the instances of an image of any size in overlapping tiles.

    An object that lies in several tiles is returned once. A piece that is cut by a side of its tile is replaced by the
    detection of a tile that contains the whole object. If there is none, the masks of the pieces are united: the box
    encloses the boxes of the pieces, score and embedding are those of the best one. This also joins objects larger than
    the overlap, through any number of tiles. Memory grows with the outlines of the objects, time with their number.

    Args:
        image: uint8 `[3, H, W]`. The tiles of a slide are read one batch at a time, and those of a single color, such
            as the background of many slides, are left out.
        detect: returns the instances of each tile of a batch in the frame of the tile. The tiles are uint8 `[3, h, w]`
            of one size and share the memory of `image`. They are resized like whole images, by the model's config.
        tile: side of a tile, px; a smaller image limits it.
        overlap: minimum overlap of neighboring tiles, px. Evenly spaced tiles may overlap by more, also with 0; pieces
            are joined where they do.
        score_thresholds: minimum score of each class, C values, for whole objects; empty: no thresholds.
        max_detections: maximum number of instances in the whole image; None: no limit.
        batch_size: tiles per call of `detect`.

    Returns:
        Instances by descending score, in the frame of the image. With more than one tile they are on the CPU, without
        those whose mask is empty.

    Raises:
        BadInput: tiles too small, or an overlap below 0 or above half a tile.
    """
    check_tiles(tile, overlap)
    windows = tile_windows(size_of(image), tile, overlap)
    if len(windows) == 1:
        (instances,) = detect([image[:, :, :]])
        return instances.best(score_thresholds, max_detections)
    parts, used = [], []
    tiles = _tiles(image, windows)
    while batch := list(itertools.islice(tiles, batch_size)):
        results = detect([tile for _, tile in batch])
        for (window, _), instances in zip(batch, results, strict=True):
            parts.append(_in_image_frame(instances, window, size_of(image)))
            used.append(window)
    return merge_tiles(parts, used, size_of(image), score_thresholds, max_detections)


def tile_windows(size: Size, tile: int, overlap: int) -> list[Bounds]:
    """Return the tiles of an image, row by row: as few as possible, evenly spaced, sharing at least `overlap` px."""
    starts = []
    for length in size:
        steps = max(0, -(-(length - tile) // (tile - overlap)))
        starts.append([index * (length - tile) // max(steps, 1) for index in range(steps + 1)])
    height, width = (min(tile, length) for length in size)
    return [(y, x, y + height, x + width) for y in starts[0] for x in starts[1]]


def _tiles(image: Tensor | Slide, windows: Sequence[Bounds]) -> Iterator[tuple[Bounds, Tensor]]:
    """Yield windows and their pixels, uint8 `[3, h, w]`; of a slide only those of several colors, but at least one."""
    is_empty = True
    for window in windows:
        y1, x1, y2, x2 = window
        tile = image[:, y1:y2, x1:x2]
        # the results of one tile have the columns of the model: without any, the last one is needed
        is_forced = not isinstance(image, Slide) or (is_empty and window == windows[-1])
        # the channels of gray tiles share their memory
        channels = tile if tile.stride(0) else tile[:1]
        if is_forced or any(bool((channel != channel[0, 0]).any()) for channel in channels):
            is_empty = False
            yield window, tile


def merge_tiles(
    parts: Sequence[Instances],
    windows: Sequence[Bounds],
    image_size: Size,
    score_thresholds: Sequence[float] = (),
    max_detections: int | None = None,
) -> Instances:
    """Merge the instances of tiles, on the CPU and in the frame of the image, into those of the image."""
    pieces = _Pieces.of(parts, windows, image_size)
    groups = _groups(pieces)
    scores = pieces.instances.scores.numpy()
    best = np.array([group[scores[group].argmax()] for group in groups], np.int64)
    order = np.argsort(-scores[best], kind="stable")
    merged = pieces.instances.select(best[order].tolist())
    rows = merged.best_rows(score_thresholds, max_detections)
    merged, order = merged.select(rows), order[rows.numpy()].tolist()
    merged.boxes = torch.stack([pieces.box(groups[place]) for place in order]) if order else merged.boxes
    merged.masks = RunMasks([pieces.masks.union(groups[place]) for place in order], image_size)
    return merged


@dataclass
class _Pieces:
    """P detections of all tiles, tile by tile, cut or whole.

    Attributes:
        instances: on the CPU, in the frame of the image; every mask is non-empty.
        bounds: bounds of each mask, int64 `[P, 4]`.
        tiles: tile of each piece, int64 `[P]`.
        windows: bounds of each tile, int64 `[T, 4]`.
        rank: order of preference, int64 `[P]`: 0 has the fewest sides cut, then the best score.
    """

    instances: Instances
    bounds: Ints
    tiles: Ints
    windows: Ints
    rank: Ints

    @classmethod
    def of(cls, parts: Sequence[Instances], windows: Sequence[Bounds], image_size: Size) -> _Pieces:
        """Concatenate the instances of all tiles and rank them."""
        tiles = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        masks = RunMasks([runs for part in parts for runs in part.masks.runs], image_size)
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
        instances = Instances(masks=masks, **columns)
        bounds = masks.boxes()[:, [1, 0, 3, 2]]
        frames = np.array(windows, np.int64)
        # a side of a tile on the image's border cuts nothing
        inner = frames != [0, 0, *image_size]
        cuts = (_near(bounds, frames[tiles]) & inner[tiles]).sum(1)
        # argsort of the order is the rank
        rank = np.lexsort((-instances.scores.numpy(), cuts)).argsort()
        return cls(instances, bounds, tiles, frames, rank)

    @property
    def masks(self) -> RunMasks:
        """Return the masks of all pieces."""
        return self.instances.masks

    def box(self, rows: list[int]) -> Tensor:
        """Return the box that encloses the boxes of a group."""
        boxes = self.instances.boxes[rows]
        return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])


@dataclass
class _Overlaps(Columns):
    """Pairs of pieces of one class, from two tiles, with common pixels; E rows, each pair in both directions.

    Attributes:
        one, other: the two pieces, int64 `[E]`.
        common: pixels of both masks, int64 `[E]`.
        area, other_area: pixels of each mask inside both tiles, int64 `[E]`.
        cut, other_cut: whether a side of the piece's tile cuts it where the other tile continues, bool `[E]`.
        within, other_within: whether the piece lies within the tile of the other, bool `[E]`.
    """

    one: Ints
    other: Ints
    common: Ints
    area: Ints
    other_area: Ints
    cut: Bools
    other_cut: Bools
    within: Bools
    other_within: Bools

    @classmethod
    def of(cls, pieces: _Pieces) -> _Overlaps:
        """Compare the pieces of every two tiles that overlap."""
        # pieces are sorted by tile
        bounds = np.searchsorted(pieces.tiles, np.arange(len(pieces.windows) + 1)).tolist()
        members = [np.arange(start, stop) for start, stop in itertools.pairwise(bounds)]
        # an empty part first, for images without pairs
        none, never = np.zeros(0, np.int64), np.zeros(0, bool)
        parts = [cls(none, none, none, none, none, never, never, never, never)]
        for first, window in enumerate(pieces.windows):
            later = pieces.windows[first + 1 :]
            meets = (later[:, :2] < window[2:]).all(1) & (later[:, 2:] > window[:2]).all(1)
            for second in (first + 1 + np.flatnonzero(meets)).tolist():
                pairs = cls.between(pieces, members[first], members[second], window, pieces.windows[second])
                parts += [pairs, pairs.swapped()]
        return cls(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))

    @classmethod
    def between(cls, pieces: _Pieces, first: Ints, second: Ints, frame: Ints, other_frame: Ints) -> _Overlaps:
        """Compare the pieces of two tiles; each pair is returned in one direction.

        Args:
            first, second: pieces of the two tiles.
            frame, other_frame: bounds of the two tiles, int64 `[4]`.
        """
        # A and B pieces that reach into the other tile, with their parts inside both tiles: [A, 4], [B, 4]
        first, part, cut, within = _facing(pieces, first, frame, other_frame)
        second, other_part, other_cut, other_within = _facing(pieces, second, other_frame, frame)
        # pairs of one class whose bounds intersect: [A, B] -> indices i, j [E]
        meet = (part[:, None, :2] < other_part[:, 2:]).all(2) & (part[:, None, 2:] > other_part[:, :2]).all(2)
        labels = pieces.instances.labels.numpy()
        i, j = np.nonzero(meet & (labels[first][:, None] == labels[second]))
        common = pieces.masks.overlaps(first[i], pieces.masks.select(second), j)
        i, j, common = i[common > 0], j[common > 0], common[common > 0]
        areas = _areas(pieces, first, part, i), _areas(pieces, second, other_part, j)
        sides = cut[i], other_cut[j], within[i], other_within[j]
        return cls(first[i], second[j], common, *areas, *sides)

    def swapped(self) -> _Overlaps:
        """Return the same pairs with `one` and `other` swapped."""
        ends = (self.other, self.one, self.common, self.other_area, self.area)
        return _Overlaps(*ends, self.other_cut, self.cut, self.other_within, self.within)


def _groups(pieces: _Pieces) -> list[list[int]]:
    """Group the pieces of each object; pieces that add nothing are left out."""
    pairs = _Overlaps.of(pieces)
    everything = np.ones(len(pieces.rank), bool)
    # drop covered pieces first: one that is cut and blends two touching objects would join them
    keep = _without_covered(pieces, pairs, everything, pairs.cut & pairs.within, COVERED)
    pairs = pairs.select(keep[pairs.one] & keep[pairs.other])
    same = pairs.select(_same_object(pieces, pairs))
    # objects are the connected components of the pairs: a group number for each piece, [P]
    links = coo_array((np.ones(len(same.one)), (same.one, same.other)), shape=(len(keep),) * 2)
    _, group = connected_components(links, directed=False)
    # within a group, drop the pieces that better ones cover; one object is certain now, so less is enough
    one_group = group[pairs.one] == group[pairs.other]
    rows = np.flatnonzero(_without_covered(pieces, pairs, keep, one_group & pairs.within, SAME_IOU))
    # sort by group and split where the group changes
    rows = rows[group[rows].argsort(kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1)
    return [part.tolist() for part in parts if len(part)]


def _same_object(pieces: _Pieces, pairs: _Overlaps) -> Bools:
    """Return which pairs are pieces of one object, bool `[E]`.

    These are mutual best matches inside both tiles, and fragments: where one tile sees the arms of a U apart, an arm
    matches no piece of the other tile, but lies in the piece in which that tile sees the arms joined. Both are then
    cut, because the object continues in both tiles.

    The best match has the highest IoU^4 * score: a detector returns many objects a second time with a low score and
    almost the same mask, and such a duplicate must not take the place of the detection.
    """
    iou = pairs.common / (pairs.area + pairs.other_area - pairs.common)
    scores = pieces.instances.scores.numpy()
    value, other_value = (iou**MATCH_POWER * scores[rows] for rows in (pairs.other, pairs.one))
    # one number for each (piece, tile of the other piece): the rivals of a pair share it
    place = pairs.one * len(pieces.windows) + pieces.tiles[pairs.other]
    other_place = pairs.other * len(pieces.windows) + pieces.tiles[pairs.one]
    agree = (iou > SAME_IOU) & _is_best(value, place) & _is_best(other_value, other_place)
    # pieces without a match in that tile may be fragments of a larger piece there
    unmatched = ~np.isin(place, place[agree])
    fragment: Bools = unmatched & pairs.cut & pairs.other_cut & (pairs.common > COVERED * pairs.area)
    return agree | fragment


def _is_best(values: npt.NDArray[np.float64], places: Ints) -> Bools:
    """Return whether each value is the largest of those with the same place, bool `[E]`."""
    _, place = np.unique(places, return_inverse=True)
    best = np.zeros(place.max(initial=-1) + 1)
    np.maximum.at(best, place, values)
    is_best: Bools = values == best[place]
    return is_best


def _without_covered(pieces: _Pieces, pairs: _Overlaps, keep: Bools, may_cover: Bools, share: float) -> Bools:
    """Drop each piece of which kept, better pieces of one tile cover more than `share`.

    Args:
        keep: pieces to choose from, bool `[P]`.
        may_cover: pairs in which `other` may cover `one`, bool `[E]`; `one` lies within the tile of `other`.

    Returns:
        The pieces to keep, bool `[P]`.
    """
    keep = keep.copy()
    may_cover = may_cover & (pieces.rank[pairs.other] < pieces.rank[pairs.one])
    edges = np.flatnonzero(may_cover)
    # best pieces first, as in NMS: when a piece is decided, all better ones are
    edges = edges[pieces.rank[pairs.one[edges]].argsort(kind="stable")]
    for row, covering in groupby(edges.tolist(), key=lambda edge: int(pairs.one[edge])):
        # sum by tile, because pieces of different tiles may cover the same pixels
        covered: Counter[int] = Counter()
        for edge in covering:
            other = pairs.other[edge]
            covered[int(pieces.tiles[other])] += int(pairs.common[edge]) * bool(keep[other])
            area = pairs.area[edge]  # of the whole piece, so it is the same for all edges
        keep[row] &= max(covered.values()) <= share * area
    return keep


def _facing(pieces: _Pieces, rows: Ints, frame: Ints, other_frame: Ints) -> tuple[Ints, Ints, Bools, Bools]:
    """Select the pieces of a tile that reach into another tile.

    Returns:
        Rows, int64 `[A]`; bounds of their parts inside both tiles, int64 `[A, 4]`; whether the tile cuts the piece
        where the other tile continues, bool `[A]`; whether the whole piece lies inside both tiles, bool `[A]`.
    """
    shared = _clipped(frame, other_frame)
    parts = _clipped(pieces.bounds[rows], shared)
    nonempty = (parts[:, :2] < parts[:, 2:]).all(1)
    rows, parts = rows[nonempty], parts[nonempty]
    # sides (top, left, bottom, right) of the tile beyond which the other one continues: [4]
    goes_on = np.concatenate([frame[:2] > other_frame[:2], frame[2:] < other_frame[2:]])
    cut = (_near(parts, frame) & goes_on).any(1)
    return rows, parts, cut, (parts == pieces.bounds[rows]).all(1)


def _areas(pieces: _Pieces, rows: Ints, parts: Ints, index: Ints) -> Ints:
    """Return the mask pixels of `rows[index]` inside their `parts`; each mask is counted once."""
    areas = np.zeros(len(rows), np.int64)
    for place in np.unique(index):
        y1, x1, y2, x2 = parts[place].tolist()
        areas[place] = np.count_nonzero(pieces.masks.window(rows[place], (x1, y1, x2, y2)))
    return areas[index]


def _in_image_frame(instances: Instances, window: Bounds, image_size: Size) -> Instances:
    """Move the instances of a tile to the CPU and the frame of the image; drop empty masks."""
    instances = instances.select(np.flatnonzero(instances.masks.areas()).tolist())
    columns = {name: getattr(instances, name).cpu() for name in COLUMNS}
    columns["boxes"] = columns["boxes"] + torch.tensor([window[1], window[0], window[1], window[0]])
    return Instances(masks=instances.masks.place(window[:2], image_size), **columns)


def _clipped(bounds: Ints, limits: Ints) -> Ints:
    """Clip bounds to others; bounds outside them end before they begin."""
    low = np.maximum(bounds[..., :2], limits[..., :2])
    return np.concatenate([low, np.minimum(bounds[..., 2:], limits[..., 2:])], -1)


def _near(bounds: Ints, frames: Ints) -> Bools:
    """Return which sides (top, left, bottom, right) of their frames the masks come near, bool `[P, 4]`."""
    near: Bools = np.abs(bounds - frames) <= REACH
    return near
