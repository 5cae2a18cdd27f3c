"""Prefetching in order, within bounds, leaving no threads; batches of one frame."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedmask.inference.prefetch import make_batches, prefetch


def counted(taken: list[int]) -> Iterator[int]:
    """Yield 0, 1, 2, ... without end and record the numbers taken."""
    for number in itertools.count():
        taken.append(number)
        yield number


@given(st.lists(st.integers()), st.integers(1, 4), st.integers(1, 5))
def test_prefetch_keeps_order(items: list[int], workers: int, ahead: int) -> None:
    assert list(prefetch(items, lambda item: item + 1, workers=workers, ahead=ahead)) == [
        item + 1 for item in items
    ]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 2), (3, 5)])
def test_prefetch_is_bounded(workers: int, ahead: int) -> None:
    taken: list[int] = []
    threads = set(threading.enumerate())
    read = prefetch(counted(taken), str, workers=workers, ahead=ahead)
    assert taken == []
    for number in range(20):
        assert next(read) == str(number)
        assert len(taken) <= number + 1 + ahead
    assert len(set(threading.enumerate()) - threads) >= 2
    read.close()
    assert set(threading.enumerate()) <= threads
    assert len(taken) <= 20 + ahead


def test_items_are_prepared_in_background() -> None:
    """Check that the second item is prepared in another thread before the caller takes it."""
    ready = threading.Event()
    threads = set()

    def prepare(item: int) -> int:
        threads.add(threading.current_thread())
        if item == 1:
            ready.set()
        return item

    read = prefetch([0, 1], prepare, workers=1, ahead=2)
    assert next(read) == 0
    assert ready.wait(60)
    assert list(read) == [1]
    assert threading.current_thread() not in threads


def test_errors_are_raised_in_order() -> None:
    threads = set(threading.enumerate())
    read = prefetch([1, 0, 2], lambda item: 1 // item, workers=2, ahead=3)
    assert next(read) == 1
    with pytest.raises(ZeroDivisionError):
        next(read)
    assert set(threading.enumerate()) <= threads

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("camera unplugged")

    read = prefetch(broken(), str, workers=1, ahead=3)
    assert next(read) == "1"
    with pytest.raises(OSError, match="unplugged"):
        next(read)
    assert set(threading.enumerate()) <= threads


def test_source_is_read_by_one_thread() -> None:
    """Check with a generator, which raises if two threads use it at once."""
    pause = threading.Event()

    def slow() -> Iterator[int]:
        for number in range(30):
            pause.wait(0.001)
            yield number

    assert list(prefetch(slow(), int, workers=4, ahead=8)) == list(range(30))


@dataclass(frozen=True)
class Framed:
    frame: str | None
    num_bytes: int = 1


ROOMY = 10**6
letters = st.lists(st.sampled_from(["wide", "high", "square"]).map(Framed), max_size=40)


@given(letters, st.integers(1, 5), st.integers(1, 12))
def test_batches_have_one_frame(items: list[Framed], size: int, window: int) -> None:
    batches = list(make_batches(items, batch_size=lambda item: size, max_items=window, max_bytes=ROOMY))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(items)))
    for batch in batches:
        assert len({item.frame for item in batch.values()}) == 1
        assert len(batch) <= size
        assert list(batch) == sorted(batch)
        assert max(batch) - min(batch) < window * size  # every item is emitted within the window
        assert all(items[place] is item for place, item in batch.items())
    firsts = [min(batch) for batch in batches]
    assert firsts == sorted(firsts)


@given(letters, st.integers(1, 5), st.integers(1, 12))
def test_window_bounds_buffer(items: list[Framed], size: int, window: int) -> None:
    taken: list[int] = []
    given_out = 0
    source = (items[number] for number in itertools.islice(counted(taken), len(items)))
    for batch in make_batches(source, batch_size=lambda item: size, max_items=window, max_bytes=ROOMY):
        assert len(taken) - given_out <= window
        given_out += len(batch)
    assert given_out == len(items)


def test_batches_look_ahead() -> None:
    items = [Framed(name) for name in "abaabb"]
    batches = make_batches(items, batch_size=lambda item: 3, max_items=6, max_bytes=ROOMY)
    assert [list(batch) for batch in batches] == [[0, 2, 3], [1, 4, 5]]
    batches = make_batches(items, batch_size=lambda item: 3, max_items=2, max_bytes=ROOMY)
    assert [list(batch) for batch in batches] == [[0], [1], [2, 3], [4, 5]]


def test_bytes_bound_buffer() -> None:
    items = [Framed("a"), Framed("b", 50), Framed("b", 50), Framed("a"), Framed("b", 1)]
    batches = make_batches(items, batch_size=lambda item: 2, max_items=5, max_bytes=60)
    assert [list(batch) for batch in batches] == [[0], [1, 2], [3], [4]]


def test_single_items_are_not_delayed() -> None:
    taken: list[int] = []
    numbered = (Framed(None if number < 2 else "a") for number in counted(taken))
    batches = make_batches(
        numbered, batch_size=lambda item: 1 if item.frame is None else 4, max_items=8, max_bytes=ROOMY
    )
    assert list(next(batches)) == [0]
    assert taken == [0]
    assert list(next(batches)) == [1]
    assert list(next(batches)) == [2, 3, 4, 5]
