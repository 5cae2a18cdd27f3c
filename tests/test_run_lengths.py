"""Run lengths against dense masks and the COCO library."""

from __future__ import annotations

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from embedmask import run_lengths
from embedmask.errors import BadInput
from embedmask.run_lengths import (
    Bools,
    alternating_lengths,
    check_counts,
    decode_counts,
    encode_pixels,
    move_runs,
    run_dtype,
    split_at_columns,
    tight_boxes,
)

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def counts_of(mask: Bools) -> np.ndarray:
    """Return COCO's run lengths of a mask by comparing neighbors, background first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    return np.diff(np.flatnonzero(flat[1:] != flat[:-1]), prepend=0)


def decoded(runs: np.ndarray, size: tuple[int, int]) -> Bools:
    """Return the mask of runs, one run at a time."""
    flat = np.zeros(size[0] * size[1], bool)
    for start, stop in runs.tolist():
        flat[start:stop] = True
    return flat.reshape(size[::-1]).T


@given(masks)
def test_decode_counts_agrees_with_the_coco_library(mask: Bools) -> None:
    text = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    expected = counts_of(mask).tolist()
    assert decode_counts([text])[0].tolist() == expected
    assert decode_counts([text.decode()])[0].tolist() == expected


@given(st.lists(masks, max_size=4))
def test_texts_are_decoded_together_as_alone(several: list[Bools]) -> None:
    texts = [mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"] for mask in several]
    assert [counts.tolist() for counts in decode_counts(texts)] == [
        counts_of(mask).tolist() for mask in several
    ]


@pytest.mark.parametrize("damaged", ["", "o", "z"])
def test_damaged_text_does_not_continue_into_the_next(damaged: str) -> None:
    for texts in (["24", damaged, "24"], [damaged, "24"], ["24", damaged]):
        with pytest.raises(BadInput, match="text is damaged"):
            decode_counts(texts)


def test_decode_large_counts() -> None:
    size = (4000, 5000)
    expected = [1_234_567, 7_000_000, 1, 11_765_432]
    text = mask_api.frPyObjects({"size": list(size), "counts": expected}, *size)["counts"]
    assert decode_counts([text])[0].tolist() == expected


@pytest.mark.parametrize("text", ["", "z", "o", "o" * 12 + "0", "é", b"\xff"])
def test_damaged_text(text: str | bytes) -> None:
    with pytest.raises(BadInput, match="text is damaged"):
        decode_counts([text])


@pytest.mark.parametrize("counts", [[3, 2], [3, 5], [-1, 7], []])
def test_counts_that_do_not_add_up(counts: list[int]) -> None:
    check_counts(np.array([4, 2]), (2, 3))
    with pytest.raises(BadInput, match="do not add up"):
        check_counts(np.array(counts, dtype=np.int64), (2, 3))


@given(masks, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
def test_encode_pixels(mask: Bools, top: int, left: int, below: int) -> None:
    frame = (top + mask.shape[0] + below, left + mask.shape[1] + 1)
    runs = encode_pixels(mask, (top, left), frame)
    expected = np.zeros(frame, bool)
    expected[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    np.testing.assert_array_equal(decoded(runs, frame), expected)
    assert runs.dtype == np.int32
    # ascending, not empty, each inside one column
    assert (np.diff(runs.ravel()) >= 0).all()
    assert (runs[:, 0] < runs[:, 1]).all()
    assert (runs[:, 0] // frame[0] == (runs[:, 1] - 1) // frame[0]).all()


@settings(max_examples=200)
@given(masks)
def test_counts_to_runs_and_back(mask: Bools) -> None:
    counts = counts_of(mask)
    (runs,) = split_at_columns([counts], mask.shape)
    np.testing.assert_array_equal(runs, encode_pixels(mask, (0, 0), mask.shape))
    (actual,) = alternating_lengths([runs], [mask.size])
    np.testing.assert_array_equal(actual, counts)


def test_counts_of_several_masks() -> None:
    rng = np.random.default_rng(0)
    several = [rng.random((5, 6)) < share for share in (0.5, 0, 1, 1, 0.8, 0)]
    runs = split_at_columns([counts_of(mask) for mask in several], (5, 6))
    for own, mask in zip(runs, several, strict=True):
        np.testing.assert_array_equal(own, encode_pixels(mask, (0, 0), (5, 6)))
    assert split_at_columns([], (5, 6)) == []


def test_empty_runs_are_skipped() -> None:
    assert [own.tolist() for own in split_at_columns([np.array([1, 0, 2, 3, 0, 0, 0])], (3, 2))] == [[[3, 6]]]


@pytest.mark.parametrize("limit", [1, 5, 1 << 18])
def test_alternating_lengths_of_several_masks(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lengths, "MAX_RUNS", limit)
    rng = np.random.default_rng(0)
    several = [rng.random((5, 6)) < share for share in (0.5, 0, 0.2, 1, 0.8, 0)]
    lengths = alternating_lengths([encode_pixels(mask, (0, 0), (5, 6)) for mask in several], [30] * 6)
    assert [own.tolist() for own in lengths] == [counts_of(mask).tolist() for mask in several]
    assert alternating_lengths([], []) == []


@given(masks, st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))
def test_move_runs_there_and_back(mask: Bools, top: int, left: int, below: int) -> None:
    height = mask.shape[0]
    runs = encode_pixels(mask, (0, 0), mask.shape)
    frame, corner = (top + height + below, left + mask.shape[1]), np.array([[top, left]])
    moved = move_runs([runs], height, corner, np.array([frame[0]]))
    np.testing.assert_array_equal(moved[0], encode_pixels(mask, (top, left), frame))
    np.testing.assert_array_equal(move_runs(moved, frame[0], -corner, np.array([height]))[0], runs)
    assert move_runs([], height, np.zeros((0, 2), int), np.zeros(0, int)) == []


@given(st.lists(masks, min_size=1, max_size=4), st.booleans())
def test_tight_boxes(several: list[Bools], across_columns: bool) -> None:
    several = [mask for mask in several if mask.any()]
    if not several:
        return
    runs = [encode_pixels(mask, (0, 0), mask.shape) for mask in several]
    if across_columns:  # runs of COCO continue into the next columns
        ends = [np.cumsum(counts_of(mask)) for mask in several]
        runs = [np.stack([end[: len(end) // 2 * 2 : 2], end[1::2]], 1) for end in ends]
    lengths = [len(own) for own in runs]
    heights = np.repeat([len(mask) for mask in several], lengths)
    expected = []
    for mask in several:
        y, x = np.nonzero(mask)
        expected.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    boxes = tight_boxes(*np.concatenate(runs).T, np.cumsum(lengths) - lengths, heights)
    assert boxes.tolist() == expected
    assert boxes.dtype == np.int64
    assert tight_boxes(*runs[0].T, np.array([0]), len(several[0])).tolist() == expected[:1]


def test_pixel_numbers_of_large_frames() -> None:
    assert run_dtype((1 << 16, (1 << 15) - 1)) == np.int32
    frame = (1 << 16, 1 << 15)
    runs = encode_pixels(np.ones((1, 1), bool), (frame[0] - 1, frame[1] - 1), frame)
    assert runs.dtype == np.int64
    assert runs.tolist() == [[(1 << 31) - 1, 1 << 31]]
