"""Large images: looked at tile by tile, what is found is joined into the instances of the whole image.

Tiles overlap, so that two neighbours see the same pixels there. Two pieces are of one object when their masks agree
on those pixels: for a detector without error they are the same there, however the tiles' sides cut the object, and
those of objects that merely touch share nothing. All of it works on crops: memory grows with the objects' bounds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor

from embedmask.data.images import size_of
from embedmask.errors import BadInput
from embedmask.structures import CropMasks, Instances, RunCrops, Runs, Size

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Find = Callable[[Sequence[Tensor]], list[Instances]]
Bounds = tuple[int, int, int, int]
"""First row and column, and those after the last, px of the image."""

COLUMNS = ("boxes", "scores", "labels", "proposal_embed", "proposal_margin")

MIN_TILE = 64
REACH = 4
"""A mask that comes as near as this, px, to a side of its tile where the image goes on counts as cut there."""
SAME_IOU = 0.3
"""Two pieces are of one object from this IoU on, of the pixels that both tiles look at, if no other piece fits better:
two views of a thin object differ by a pixel here and there, while objects that touch share next to none."""
COVERED = 0.5
"""A piece of which a tile shows more than this share in better ones says nothing new."""


def check_tiles(tile: int, overlap: int) -> None:
    """Whether an image can be looked at in such tiles.

    Raises:
        BadInput: no whole numbers, tiles too small, or an overlap below 0 or above half a tile.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if not hasattr(value, "__index__"):
            raise BadInput(f"{name} {value!r}: use a whole number of px")
    if tile < MIN_TILE:
        raise BadInput(f"tile {tile}: use at least {MIN_TILE} px")
    if not 0 <= overlap <= tile // 2:
        raise BadInput(f"overlap {overlap}: use 0 to {tile // 2} px, half a tile")


def tiled_instances(
    image: Tensor,
    find: Find,
    *,
    tile: int,
    overlap: int,
    max_detections: int | None = None,
    batch_size: int = 1,
) -> Instances:
    """Instances of an image of any size: an object that lies in several tiles comes out once, whole.

    A piece that is cut by a side of its tile gives way to a tile that sees more of the object; where none sees all of
    it, the masks are united, the box spans the boxes of the pieces, score and embedding are those of the best one.
    What is larger than the overlap is joined as well, through any number of tiles. Memory grows with the pixels inside
    the objects' bounds, time with their number.

    Args:
        image: uint8 `[3, H, W]`.
        find: instances of each of a batch of tiles, uint8 `[3, h, w]` of one size, views of `image`; in the tile's
            own frame. It treats a tile as it would an image: it resizes it, if the model's config says so.
        tile: side of a tile, px; all are as large, or as the image where that is smaller.
        overlap: px that neighbouring tiles share at least; where they share none, nothing is joined.
        max_detections: at most so many of the whole image; None: all.
        batch_size: tiles that `find` is given at a time.

    Returns:
        In the image's frame, by descending score. Of more than one tile: on the CPU, without those whose mask has no
        pixel.

    Raises:
        BadInput: tiles too small, or an overlap below 0 or above half a tile.
    """
    check_tiles(tile, overlap)
    windows = tile_windows(size_of(image), tile, overlap)
    if len(windows) == 1:
        (found,) = find([image])
        return found.select(range(len(found))[:max_detections])
    parts = []
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        results = find([image[:, y1:y2, x1:x2] for y1, x1, y2, x2 in batch])
        parts += [
            _placed(found, window, size_of(image)) for found, window in zip(results, batch, strict=True)
        ]
    return _merged(parts, windows, size_of(image), max_detections)


def tile_windows(size: Size, tile: int, overlap: int) -> list[Bounds]:
    """The tiles of an image, row by row: as few as can be, evenly spaced, neighbours share `overlap` px or more."""
    rows, columns = (_starts(length, tile, overlap) for length in size)
    height, width = (min(tile, length) for length in size)
    return [(y, x, y + height, x + width) for y in rows for x in columns]


def _merged(
    parts: Sequence[Instances], windows: Sequence[Bounds], image_size: Size, max_detections: int | None
) -> Instances:
    """The instances of an image from those of its tiles, which are `_placed`."""
    pieces = _Pieces.of(parts, windows, image_size)
    groups = _groups(pieces)
    scores = pieces.found.scores.numpy()
    best = np.array([group[scores[group].argmax()] for group in groups], np.int64)
    order = np.argsort(-scores[best], kind="stable")[:max_detections].tolist()
    merged = pieces.found.select(best[order].tolist())
    merged.boxes = torch.stack([pieces.box(groups[place]) for place in order]) if order else merged.boxes
    runs: list[Runs] = []
    shapes: list[Size] = []
    offsets = []
    for place in order:
        crop, offset = pieces.mask(groups[place])
        # one at a time: the bounds of a line across the image are as large as the image
        kept = RunCrops.of([crop])
        runs += kept.runs
        shapes += kept.shapes
        offsets.append(offset)
    merged.masks = CropMasks(RunCrops(runs, shapes), offsets, image_size)
    return merged


@dataclass
class _Pieces:
    """What was found in all tiles, P rows, tile by tile, cut or whole.

    Attributes:
        found: on the CPU, in the image's frame; every mask has pixels, and its crop no empty margin.
        bounds: int64 `[P, 4]`, of each mask.
        tiles: int64 `[P]`, the tile of each.
        windows: int64 `[T, 4]`, bounds of each tile.
        rank: int64 `[P]`, 0 for the one that is trusted most: fewest sides cut, then best score.
    """

    found: Instances
    bounds: Ints
    tiles: Ints
    windows: Ints
    rank: Ints

    @classmethod
    def of(cls, parts: Sequence[Instances], windows: Sequence[Bounds], image_size: Size) -> _Pieces:
        tiles = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        whole = _concatenated(parts, image_size)
        offsets = np.array(whole.masks.offsets, np.int64).reshape(-1, 2)
        shapes = np.array([crop.shape for crop in whole.masks.crops], np.int64).reshape(-1, 2)
        bounds = np.concatenate([offsets, offsets + shapes], 1)
        frames = np.array(windows, np.int64)
        inner = frames != [0, 0, *image_size]
        cuts = (_near(bounds, frames[tiles]) & inner[tiles]).sum(1)
        rank = np.lexsort((-whole.scores.numpy(), cuts)).argsort()
        return cls(whole, bounds, tiles, frames, rank)

    def pixels(self, row: int, part: Ints) -> Bools:
        """The mask of a row inside a part of its bounds."""
        y1, x1, y2, x2 = (part - np.tile(self.bounds[row, :2], 2)).tolist()
        crop: Bools = self.found.masks.crops[row].numpy()
        return crop[y1:y2, x1:x2]

    def box(self, rows: list[int]) -> Tensor:
        """The box around the boxes of a group."""
        boxes = self.found.boxes[rows]
        return torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])

    def mask(self, rows: list[int]) -> tuple[Tensor, tuple[int, int]]:
        """The masks of a group in one crop, and its first row and column."""
        top, left = self.bounds[rows, :2].min(0).tolist()
        if len(rows) == 1:
            return self.found.masks.crops[rows[0]], (top, left)
        bottom, right = self.bounds[rows, 2:].max(0).tolist()
        crop = np.zeros((bottom - top, right - left), bool)
        for row in rows:
            y1, x1, y2, x2 = (self.bounds[row] - [top, left, top, left]).tolist()
            crop[y1:y2, x1:x2] |= self.found.masks.crops[row].numpy()
        return torch.from_numpy(crop), (top, left)


@dataclass
class _Overlaps:
    """Pairs of pieces of one class, from two tiles, that share pixels; E rows, each pair in both directions.

    Attributes:
        one, other: the pieces.
        common: pixels of both.
        seen, seen_other: pixels of each where both tiles look.
        cut, cut_other: whether a side of the piece's tile cuts it where the other's tile goes on.
        within: whether the tile of `other` looks at all of `one`.
    """

    one: Ints
    other: Ints
    common: Ints
    seen: Ints
    seen_other: Ints
    cut: Bools
    cut_other: Bools
    within: Bools

    def __getitem__(self, rows: Bools) -> _Overlaps:
        return _Overlaps(**{name: column[rows] for name, column in vars(self).items()})


def _groups(pieces: _Pieces) -> list[list[int]]:
    """Rows that are one object; those that add nothing to it are left out."""
    pairs = _overlaps(pieces)
    everything = np.ones(len(pieces.rank), bool)
    # before pieces are joined: a view that is cut off in the midst of touching objects must not join them
    kept = _without_covered(pieces, pairs, everything, pairs.cut & pairs.within, COVERED)
    pairs = pairs[kept[pairs.one] & kept[pairs.other]]
    same = pairs[_same_object(pieces, pairs)]
    links = coo_array((np.ones(len(same.one)), (same.one, same.other)), shape=(len(kept),) * 2)
    _, group = connected_components(links, directed=False)
    one_group = group[pairs.one] == group[pairs.other]
    rows = np.flatnonzero(_without_covered(pieces, pairs, kept, one_group & pairs.within, SAME_IOU))
    rows = rows[group[rows].argsort(kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(group[rows])) + 1)
    return [part.tolist() for part in parts if len(part)]


def _same_object(pieces: _Pieces, pairs: _Overlaps) -> Bools:
    """Which pairs are pieces of one object.

    Those that agree where both tiles look, each the other's best. And fragments: where a tile sees the arms of a U
    apart, an arm agrees with none, but lies in the piece of the tile that sees them joined; there both are cut, as the
    object goes on in both.
    """
    iou = pairs.common / (pairs.seen + pairs.seen_other - pairs.common)
    place = pairs.one * len(pieces.windows) + pieces.tiles[pairs.other]
    place_other = pairs.other * len(pieces.windows) + pieces.tiles[pairs.one]
    agree = (iou > SAME_IOU) & _is_best(iou, place) & _is_best(iou, place_other)
    lonely = ~np.isin(place, place[agree])
    fragment: Bools = lonely & pairs.cut & pairs.cut_other & (pairs.common > COVERED * pairs.seen)
    return agree | fragment


def _is_best(values: npt.NDArray[np.float64], places: Ints) -> Bools:
    """Whether no value is greater at the same place."""
    _, place = np.unique(places, return_inverse=True)
    best = np.zeros(place.max(initial=-1) + 1)
    np.maximum.at(best, place, values)
    is_best: Bools = values == best[place]
    return is_best


def _without_covered(pieces: _Pieces, pairs: _Overlaps, kept: Bools, may_cover: Bools, share: float) -> Bools:
    """Which pieces stay when those go of which a tile shows more than `share` in better ones that stay.

    Args:
        kept: bool `[P]`, to choose from.
        may_cover: bool `[E]`, pairs of which `other` may cover `one`.
    """
    kept = kept.copy()
    may_cover = may_cover & (pieces.rank[pairs.other] < pieces.rank[pairs.one])
    edges = np.flatnonzero(may_cover)
    edges = edges[pieces.rank[pairs.one[edges]].argsort(kind="stable")]
    for row, own in groupby(edges.tolist(), key=lambda edge: int(pairs.one[edge])):
        shown: Counter[int] = Counter()
        for edge in own:
            other = pairs.other[edge]
            shown[int(pieces.tiles[other])] += int(pairs.common[edge]) * bool(kept[other])
            area = pairs.seen[edge]
        kept[row] &= max(shown.values()) <= share * area
    return kept


def _overlaps(pieces: _Pieces) -> _Overlaps:
    members = [np.flatnonzero(pieces.tiles == tile) for tile in range(len(pieces.windows))]
    columns = [np.zeros((9, 0), np.int64)]
    for first, window in enumerate(pieces.windows):
        later = pieces.windows[first + 1 :]
        meets = (later[:, :2] < window[2:]).all(1) & (later[:, 2:] > window[:2]).all(1)
        for second in (first + 1 + np.flatnonzero(meets)).tolist():
            forth = _shared(pieces, members[first], members[second], window, pieces.windows[second])
            columns += [forth, forth[[1, 0, 2, 4, 3, 6, 5, 8, 7]]]
    one, other, common, seen, seen_other, cut, cut_other, within, _ = np.concatenate(columns, 1)
    return _Overlaps(one, other, common, seen, seen_other, cut > 0, cut_other > 0, within > 0)


def _shared(pieces: _Pieces, first: Ints, second: Ints, frame: Ints, other_frame: Ints) -> Ints:
    """Columns of `_Overlaps`, then `within` the other way round, of the pieces of two tiles: int64 `[9, E]`."""
    first, part, cut, within = _facing(pieces, first, frame, other_frame)
    second, other_part, other_cut, other_within = _facing(pieces, second, other_frame, frame)
    meet = (part[:, None, :2] < other_part[:, 2:]).all(2) & (part[:, None, 2:] > other_part[:, :2]).all(2)
    labels = pieces.found.labels.numpy()
    i, j = np.nonzero(meet & (labels[first][:, None] == labels[second]))
    both = zip(first[i], second[j], _clipped(part[i], other_part[j]), strict=True)
    common = [np.count_nonzero(pieces.pixels(a, at) & pieces.pixels(b, at)) for a, b, at in both]
    shared = np.flatnonzero(common)
    i, j = i[shared], j[shared]
    seen = _areas(pieces, first, part, i)
    other_seen = _areas(pieces, second, other_part, j)
    columns = first[i], second[j], np.array(common, np.int64)[shared], seen, other_seen
    return np.stack([*columns, cut[i], other_cut[j], within[i], other_within[j]])


def _facing(pieces: _Pieces, rows: Ints, frame: Ints, other_frame: Ints) -> tuple[Ints, Ints, Bools, Bools]:
    """Of the pieces of a tile those that another tile looks at, in part.

    Returns:
        Rows; bounds of what both tiles look at; whether the tile's side cuts it there; whether it is all of it.
    """
    shared = _clipped(frame, other_frame)
    parts = _clipped(pieces.bounds[rows], shared)
    seen = (parts[:, :2] < parts[:, 2:]).all(1)
    rows, parts = rows[seen], parts[seen]
    goes_on = np.concatenate([frame[:2] > other_frame[:2], frame[2:] < other_frame[2:]])
    cut = (_near(parts, frame) & goes_on).any(1)
    return rows, parts, cut, (parts == pieces.bounds[rows]).all(1)


def _areas(pieces: _Pieces, rows: Ints, parts: Ints, index: Ints) -> Ints:
    """Pixels of the masks of `rows[index]` inside their `parts`; each is counted once."""
    areas = np.zeros(len(rows), np.int64)
    for place in np.unique(index):
        areas[place] = np.count_nonzero(pieces.pixels(rows[place], parts[place]))
    return areas[index]


def _placed(found: Instances, window: Bounds, image_size: Size) -> Instances:
    """What was found in a tile, on the CPU and in the image's frame; crops lose their margins, empty masks go."""
    crops, offsets, kept = [], [], []
    for row, (crop, (y, x)) in enumerate(zip(found.masks.crops, found.masks.offsets, strict=True)):
        pixels = crop.cpu().numpy()
        ys, xs = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        if len(ys):
            # a copy: a crop may be a part of something larger, which is not to be kept
            crops.append(torch.from_numpy(pixels[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].copy()))
            offsets.append((window[0] + y + int(ys[0]), window[1] + x + int(xs[0])))
            kept.append(row)
    columns = {name: getattr(found.select(kept), name).cpu() for name in COLUMNS}
    columns["boxes"] = columns["boxes"] + torch.tensor([window[1], window[0], window[1], window[0]])
    return Instances(masks=CropMasks(crops, offsets, image_size), **columns)


def _concatenated(parts: Sequence[Instances], image_size: Size) -> Instances:
    crops = [crop for part in parts for crop in part.masks.crops]
    offsets = [offset for part in parts for offset in part.masks.offsets]
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS}
    return Instances(masks=CropMasks(crops, offsets, image_size), **columns)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [index * (length - tile) // steps for index in range(steps + 1)]


def _clipped(bounds: Ints, limits: Ints) -> Ints:
    """Bounds inside others; those that do not meet end before they begin."""
    low = np.maximum(bounds[..., :2], limits[..., :2])
    return np.concatenate([low, np.minimum(bounds[..., 2:], limits[..., 2:])], -1)


def _near(bounds: Ints, frames: Ints) -> Bools:
    """Which sides (top, left, bottom, right) of their frames masks come near to."""
    near: Bools = np.abs(bounds - frames) <= REACH
    return near
