"""Items read ahead in order, bounded, without threads left behind; batches of one frame."""

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
    """0, 1, 2, ... for ever, noting what has been asked for."""
    for number in itertools.count():
        taken.append(number)
        yield number


@given(st.lists(st.integers()), st.integers(1, 4), st.integers(1, 5))
def test_everything_comes_once_in_order(items: list[int], workers: int, ahead: int) -> None:
    assert list(prefetch(items, lambda item: item + 1, workers=workers, ahead=ahead)) == [
        item + 1 for item in items
    ]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (1, 2), (3, 5)])
def test_an_endless_source_is_asked_for_a_bounded_number(workers: int, ahead: int) -> None:
    taken: list[int] = []
    read = prefetch(counted(taken), str, workers=workers, ahead=ahead)
    assert taken == []
    for number in range(20):
        assert next(read) == str(number)
        assert len(taken) <= number + 1 + ahead
    before = threading.active_count()
    assert before > 1
    read.close()
    assert threading.active_count() <= before - 2
    assert len(taken) <= 20 + ahead


def test_items_are_prepared_while_the_caller_is_busy() -> None:
    """The second item is ready before it is asked for, and not in the caller's thread."""
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


def test_errors_come_in_their_turn() -> None:
    threads = threading.active_count()
    read = prefetch([1, 0, 2], lambda item: 1 // item, workers=2, ahead=3)
    assert next(read) == 1
    with pytest.raises(ZeroDivisionError):
        next(read)
    assert threading.active_count() == threads

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("camera unplugged")

    read = prefetch(broken(), str, workers=1, ahead=3)
    assert next(read) == "1"
    with pytest.raises(OSError, match="unplugged"):
        next(read)
    assert threading.active_count() == threads


def test_the_source_is_asked_by_one_thread_at_a_time() -> None:
    """A generator that is asked by two threads at once raises."""
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
def test_batches_hold_every_item_once_and_one_frame_each(items: list[Framed], size: int, window: int) -> None:
    batches = list(make_batches(items, size=lambda item: size, window=window, room=ROOMY))
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(len(items)))
    for batch in batches:
        assert len({item.frame for item in batch.values()}) == 1
        assert len(batch) <= size
        assert list(batch) == sorted(batch)
        assert max(batch) - min(batch) < window * size  # nothing waits for ever
        assert all(items[place] is item for place, item in batch.items())
    firsts = [min(batch) for batch in batches]
    assert firsts == sorted(firsts)


@given(letters, st.integers(1, 5), st.integers(1, 12))
def test_no_more_is_taken_than_the_window(items: list[Framed], size: int, window: int) -> None:
    taken: list[int] = []
    given_out = 0
    source = (items[number] for number in itertools.islice(counted(taken), len(items)))
    for batch in make_batches(source, size=lambda item: size, window=window, room=ROOMY):
        assert len(taken) - given_out <= window
        given_out += len(batch)
    assert given_out == len(items)


def test_companions_are_looked_for_ahead() -> None:
    items = [Framed(name) for name in "abaabb"]
    batches = make_batches(items, size=lambda item: 3, window=6, room=ROOMY)
    assert [list(batch) for batch in batches] == [[0, 2, 3], [1, 4, 5]]
    batches = make_batches(items, size=lambda item: 3, window=2, room=ROOMY)
    assert [list(batch) for batch in batches] == [[0], [1], [2, 3], [4, 5]]


def test_large_items_are_not_piled_up() -> None:
    items = [Framed("a"), Framed("b", 50), Framed("b", 50), Framed("a"), Framed("b", 1)]
    batches = make_batches(items, size=lambda item: 2, window=5, room=60)
    assert [list(batch) for batch in batches] == [[0], [1, 2], [3], [4]]


def test_what_goes_alone_goes_at_once() -> None:
    taken: list[int] = []
    numbered = (Framed(None if number < 2 else "a") for number in counted(taken))
    batches = make_batches(numbered, size=lambda item: 1 if item.frame is None else 4, window=8, room=ROOMY)
    assert list(next(batches)) == [0]
    assert taken == [0]
    assert list(next(batches)) == [1]
    assert list(next(batches)) == [2, 3, 4, 5]
