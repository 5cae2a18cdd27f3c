"""Run lengths of masks: pixel numbers of a frame, counted column by column, and COCO's text for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.errors import BadInput

Size = tuple[int, int]
"""`(height, width)` px."""
Runs = NDArray[Any]
"""int32 or int64 `[T, 2]`: first pixel of each run and the one after its last, ascending."""
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MAX_RUNS = 1 << 18
"""Runs of several masks that are encoded at once."""


def check_counts(counts: NDArray[Any], frame: Size) -> None:
    """Check that run lengths are not negative and add up to their frame.

    Raises:
        BadInput: they are negative, or do not add up.
    """
    if (counts < 0).any() or counts.sum() != frame[0] * frame[1]:
        raise BadInput("run lengths that do not add up to its image; encode the mask again")


def decode_counts(texts: Iterable[str | bytes]) -> list[Ints]:
    """Decode COCO's compressed run lengths of masks.

    Each count is a two's-complement number in groups of five bits, lowest group first, each stored as the character
    48 + group. The sixth bit is set if another group follows. From the fourth count on, the difference to the count
    before the previous one is stored.

    Returns:
        The counts of each mask, int64 `[T]`, background first.

    Raises:
        BadInput: a text is not a valid code.
    """
    raw = [text.encode("utf-8", "replace") if isinstance(text, str) else text for text in texts]
    if not raw:
        return []
    groups = np.frombuffer(b"".join(raw), dtype=np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0  # bool [groups]: the group ends a count
    # where the text of each mask ends
    ends = np.array([len(text) for text in raw]).cumsum()
    if not all(raw) or groups.min() < 0 or groups.max() > 63 or not last[ends - 1].all():
        raise BadInput("run lengths whose text is damaged; encode the mask again")
    # first and last group of each count, [T], and the place of each group within its count, [groups]
    stops = last.nonzero()[0]
    starts = np.concatenate(([0], stops[:-1] + 1))
    lengths = stops - starts + 1
    if lengths.max() > 8:
        raise BadInput("run lengths whose text is damaged; encode the mask again")
    places = np.arange(len(groups)) - starts.repeat(lengths)
    # join the five-bit groups; the fifth bit of the last group is the sign
    counts = np.add.reduceat((groups & 31) << (5 * places), starts)
    counts -= (groups[stops] & 16) << (5 * lengths - 4)
    bounds = [0, *stops.searchsorted(ends).tolist()]
    decoded = [counts[begin:end] for begin, end in itertools.pairwise(bounds)]
    # undo the differences: odd counts accumulate from index 1, even ones from index 2 (count 0 is never a base)
    for mask_counts in decoded:
        mask_counts[1::2].cumsum(out=mask_counts[1::2])
        mask_counts[2::2].cumsum(out=mask_counts[2::2])
    return decoded


def alternating_lengths(runs: Sequence[Runs], pixels: Sequence[int]) -> list[NDArray[Any]]:
    """Return the lengths of the alternating runs of each mask, background first; adjacent runs are merged.

    Args:
        runs: of each mask, `[T, 2]`.
        pixels: number of pixels of each mask, background included.
    """
    if not runs:
        return []
    if len(runs) > 1 and sum(map(len, runs)) > MAX_RUNS:
        middle = len(runs) // 2
        return [
            *alternating_lengths(runs[:middle], pixels[:middle]),
            *alternating_lengths(runs[middle:], pixels[middle:]),
        ]
    # all runs in one array [T, 2]; those of mask r are rows stops[r] - counts[r] .. stops[r] - 1
    joined = np.concatenate(runs)
    counts = np.array([len(mask) for mask in runs])
    stops = np.cumsum(counts)
    nonempty = counts > 0
    # where the next run begins, or where the mask ends: a run that ends there has no background after it
    following = np.append(joined[1:, 0], 0)
    following[stops[nonempty] - 1] = np.array(pixels)[nonempty]
    has_gap = joined[:, 1] != following
    # boundaries to keep [T, 2]: an end before a gap, a start after one or at the first run of a mask
    keep = np.stack([np.append(True, has_gap)[:-1], has_gap], 1)
    keep[(stops - counts)[nonempty], 0] = True
    # append to the boundaries of each mask its number of pixels, where its last run ends
    ends = np.append(0, np.cumsum(keep.sum(1)))[stops]
    flat = np.insert(joined[keep], ends, pixels)
    first = np.append(0, ends + np.arange(1, len(runs) + 1))
    # differences of neighboring boundaries are lengths; the first of each mask is counted from 0
    lengths = np.diff(flat, prepend=flat.dtype.type(0))
    lengths[first[:-1]] = flat[first[:-1]]
    return [lengths[begin:end] for begin, end in itertools.pairwise(first.tolist())]


def run_dtype(frame: Size) -> type[np.int32] | type[np.int64]:
    """Return the type of the pixel numbers of a frame."""
    return np.int32 if frame[0] * frame[1] < 2**31 else np.int64


def encode_pixels(pixels: Bools, corner: tuple[int, int], frame: Size) -> Runs:
    """Encode part of a mask as the runs of its frame, `[T, 2]`.

    Args:
        pixels: bool `[h, w]`, inside the frame.
        corner: row and column of the frame where the part begins.
        frame: `(height, width)`.
    """
    height, width = pixels.shape
    # one row per column, with False on both sides so that every run begins and ends inside its row: [w, h + 2]
    padded = np.zeros((width, height + 2), bool)
    padded[:, 1:-1] = pixels.T
    # each change of value is a start or an end; within a column they alternate
    ends: Ints = (padded[:, 1:] != padded[:, :-1]).ravel().nonzero()[0]
    column = ends // (height + 1)
    ends += column * (frame[0] - height - 1) + (corner[1] * frame[0] + corner[0])
    return ends.astype(run_dtype(frame)).reshape(-1, 2)


def paint_runs(runs: Ints, frame: Size) -> Bools:
    """Decode the runs of one mask, int64 `[T, 2]`, to the pixels of its frame, bool `[H, W]`."""
    height, width = frame
    # boundaries of alternating runs, False first; the odd ones are True
    edges = np.zeros(runs.size + 2, np.int64)
    edges[1:-1], edges[-1] = runs.ravel(), height * width
    values = np.zeros(runs.size + 1, bool)
    values[1::2] = True
    flat = values.repeat(edges[1:] - edges[:-1])
    return np.ascontiguousarray(flat.reshape(width, height).T)


def split_at_columns(counts: Sequence[NDArray[Any]], frame: Size) -> list[Runs]:
    """Convert COCO's run lengths of masks to runs that end with their column, of each mask `[T, 2]`.

    Args:
        counts: of each mask, lengths of alternating runs, background first, which add up to the frame.
        frame: `(height, width)`.
    """
    if not counts:
        return []
    height, pixels = frame[0], frame[0] * frame[1]
    # one sequence of pixels for all masks: mask i begins at i * pixels, where a column begins
    lengths = [len(mask) for mask in counts]
    ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
    place = np.arange(len(ends)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    foreground = np.flatnonzero(place % 2 == 1)
    start, stop = ends[foreground - 1], ends[foreground]
    start, stop = start[start < stop], stop[start < stop]
    first, last = start // height, (stop - 1) // height
    # one run for each column that a run passes through
    repeats = last - first + 1
    column = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats - first, repeats)
    low = np.maximum(np.repeat(start, repeats), column * height)
    high = np.minimum(np.repeat(stop, repeats), (column + 1) * height)
    owner = column // frame[1]
    runs = (np.stack([low, high], 1) - (owner * pixels)[:, None]).astype(run_dtype(frame))
    bounds = np.searchsorted(owner, np.arange(len(counts) + 1)).tolist()
    return [runs[begin:end] for begin, end in itertools.pairwise(bounds)]


def move_runs(runs: Sequence[Runs], height: int, corners: Ints, heights: Ints) -> list[Runs]:
    """Return the runs of each mask in the pixel numbers of another frame.

    No run crosses a column, so each shifts by a per-column offset.

    Args:
        runs: of each mask, `[T, 2]`, in a frame of `height` rows.
        height: rows of the old frame.
        corners: row and column of each new frame where the old one begins, `[G, 2]`; negative where it begins outside.
        heights: rows of each new frame, `[G]`.

    Returns:
        Of each mask int64 `[T, 2]`.
    """
    if not runs:
        return []
    counts = [len(mask) for mask in runs]
    joined = np.concatenate(runs).astype(np.int64)
    shift = np.repeat(corners[:, 1] * heights + corners[:, 0], counts)
    shift += joined[:, 0] // height * np.repeat(heights - height, counts)
    joined += shift[:, None]
    return [joined[begin:end] for begin, end in itertools.pairwise(itertools.accumulate(counts, initial=0))]


def tight_boxes(starts: Ints, stops: Ints, firsts: Ints, heights: int | Ints) -> Ints:
    """Return the tight boxes of n non-empty masks, int64 `[n, 4]` xyxy px, half-open.

    Args:
        starts, stops: runs of all masks, `[T]`; they may continue into the next columns.
        firsts: first run of each mask, `[n]`.
        heights: rows of the frame, one for all runs or one each, `[T]`.
    """
    left, right = starts // heights, (stops - 1) // heights  # columns
    top, bottom = starts - left * heights, stops - right * heights
    # a run that continues into the next column contains the bottom row of one and the top row of the other
    wraps = left != right
    if wraps.any():
        top, bottom = np.where(wraps, 0, top), np.where(wraps, heights, bottom)
    boxes = np.empty((len(firsts), 4), np.int64)
    # columns of a mask ascend
    boxes[:, 0], boxes[:-1, 2], boxes[-1, 2] = left[firsts], right[firsts[1:] - 1] + 1, right[-1] + 1
    boxes[:, 1] = np.minimum.reduceat(top, firsts)
    boxes[:, 3] = np.maximum.reduceat(bottom, firsts)
    return boxes
