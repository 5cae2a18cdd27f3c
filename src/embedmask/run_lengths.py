"""Run lengths of masks: pixel numbers of a frame counted column by column, and COCO's text for them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
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


def checked_counts(text: str | bytes, frame: Size) -> Ints:
    """Decode compressed run lengths of a frame.

    Raises:
        BadInput: the text is damaged, or the run lengths do not add up to the frame.
    """
    counts = decode_counts(text)
    if (counts < 0).any() or counts.sum() != frame[0] * frame[1]:
        raise BadInput(f"a mask's run lengths do not add up to its image {list(frame)}; encode it again")
    return counts


def decode_counts(text: str | bytes) -> Ints:
    """Decode compressed run lengths of COCO, int64 `[runs]`, background first.

    Each count is written in groups of five bits, lowest first, on top of character 48; the sixth bit says that more
    follow, the last group's fifth bit is the sign. From the fourth count on, the difference to the last but one is
    stored.

    Raises:
        BadInput: the text is not such a code.
    """
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    groups = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or not last[-1]:
        raise BadInput("run lengths whose text is damaged; encode the mask again")
    # groups of five bits belong to the count that ends at the next group without the sixth bit
    stops = np.flatnonzero(last)
    starts = np.concatenate(([0], stops[:-1] + 1))
    places = np.arange(len(groups)) - np.repeat(starts, stops - starts + 1)
    if places.max() > 7:
        raise BadInput("run lengths whose text is damaged; encode the mask again")
    counts = np.add.reduceat((groups & 31) << (5 * places), starts)
    # two's complement: a set sign bit takes one more than the largest value away
    negative = groups[stops] & 16 != 0
    counts -= np.where(negative, np.int64(1) << (5 * (stops - starts + 1)), 0)
    # undo the differences, of odd and even places apart
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def alternating_lengths(runs: Sequence[Runs], pixels: Sequence[int]) -> list[NDArray[Any]]:
    """Return the lengths of alternating runs of many masks, the first of False; runs that touch become one.

    Args:
        runs: of each mask, `[T, 2]`.
        pixels: number of pixels, set or not, of each mask.
    """
    if not runs:
        return []
    if len(runs) > 1 and sum(map(len, runs)) > MAX_RUNS:
        middle = len(runs) // 2
        return [
            *alternating_lengths(runs[:middle], pixels[:middle]),
            *alternating_lengths(runs[middle:], pixels[middle:]),
        ]
    joined = np.concatenate(runs)
    counts = np.array([len(own) for own in runs])
    stops = np.cumsum(counts)
    some = counts > 0
    # the pixel where the following run of the same mask begins, for the last run the end of the mask
    following = np.append(joined[1:, 0], 0)
    following[stops[some] - 1] = np.array(pixels)[some]
    # ends of runs that touch cancel; the first start of a mask always stays
    apart = joined[:, 1] != following
    kept = np.stack([np.append(True, apart)[:-1], apart], 1)
    kept[(stops - counts)[some], 0] = True
    # all remaining ends, and after those of each mask its number of pixels: their differences are the lengths
    ends = np.append(0, np.cumsum(kept.sum(1)))[stops]
    flat = np.insert(joined[kept], ends, pixels)
    first = np.append(0, ends + np.arange(1, len(runs) + 1))
    lengths = np.diff(flat, prepend=flat.dtype.type(0))
    lengths[first[:-1]] = flat[first[:-1]]
    return [lengths[begin:end] for begin, end in itertools.pairwise(first.tolist())]


def run_dtype(frame: Size) -> type[np.int32] | type[np.int64]:
    """Return the type of pixel numbers of a frame."""
    return np.int32 if frame[0] * frame[1] < 2**31 else np.int64


def encode_pixels(pixels: Bools, corner: tuple[int, int], frame: Size) -> Runs:
    """Encode part of a mask, bool `[h, w]`, that begins at row and column `corner` of its frame."""
    height, width = pixels.shape
    # a column with an empty pixel above and below: every run has two edges inside it
    fenced = np.zeros((width, height + 2), bool)
    fenced[:, 1:-1] = pixels.T
    column, row = np.nonzero(fenced[:, 1:] != fenced[:, :-1])
    ends = (column + corner[1]) * frame[0] + row + corner[0]
    return ends.astype(run_dtype(frame)).reshape(-1, 2)


def split_at_columns(counts: NDArray[Any], frame: Size) -> Runs:
    """Convert COCO's run lengths of a frame, background first, to runs that end with their column."""
    ends = np.cumsum(counts, dtype=np.int64)
    start, stop = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    start, stop = start[start < stop], stop[start < stop]
    first, last = start // frame[0], (stop - 1) // frame[0]
    # one run for each column that a run passes through
    repeats = last - first + 1
    owner = np.repeat(np.arange(len(start)), repeats)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(repeats) - repeats - first, repeats)
    low = np.maximum(start[owner], column * frame[0])
    high = np.minimum(stop[owner], (column + 1) * frame[0])
    return np.stack([low, high], 1).astype(run_dtype(frame))
