"""Images on their way to the network: read in the background, put into batches of one frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from embedmask.data.images import size_of
from embedmask.errors import BadInput
from embedmask.inference.image_source import ImageSource
from embedmask.model.detector import frame_of
from embedmask.structures import Instances, Size

Item = TypeVar("Item")
Ready = TypeVar("Ready")


@dataclass
class ImageResult:
    """What became of one image of `Predictor.stream`.

    Attributes:
        source: as it was given.
        image: uint8 RGB `[3, H, W]`, upright; None where it cannot be read.
        instances: in the image's own frame, on the device; None likewise.
        error: why it cannot be read.
    """

    source: ImageSource
    image: Tensor | None = None
    instances: Instances | None = None
    error: BadInput | None = None


@dataclass
class LoadedImage:
    """An image on its way; `resized` where it goes to the network whole."""

    result: ImageResult
    resized: Tensor | None = None

    @property
    def frame(self) -> Size | None:
        """What it is padded to when it is alone."""
        return None if self.resized is None else frame_of([size_of(self.resized)])

    @property
    def num_bytes(self) -> int:
        return sum(one.numel() for one in (self.result.image, self.resized) if one is not None)


def prefetch(
    source: Iterable[Item], prepare: Callable[[Item], Ready], *, workers: int, ahead: int
) -> Generator[Ready, None, None]:
    """`prepare` of every item, in order, done in threads while the caller is busy with those before.

    The source is asked for items by one thread, one at a time. What it or `prepare` raises is raised here, when its
    turn has come. Closing the iterator early waits for what has begun, then no thread is left.

    Args:
        workers: threads that prepare.
        ahead: items that are asked for before the caller wants them: the bound of memory.
    """
    items = iter(source)
    with ThreadPoolExecutor(workers) as preparing, ThreadPoolExecutor(1) as asking:

        def ask() -> Future[Ready] | None:
            for item in items:
                return preparing.submit(prepare, item)
            return None

        asked = deque(asking.submit(ask) for _ in range(ahead))
        try:
            while (begun := asked.popleft().result()) is not None:
                asked.append(asking.submit(ask))
                yield begun.result()
        finally:
            asking.shutdown(cancel_futures=True)
            preparing.shutdown(cancel_futures=True)


def make_batches(
    items: Iterable[LoadedImage], *, size: Callable[[LoadedImage], int], window: int, room: int
) -> Iterator[dict[int, LoadedImage]]:
    """Batches of one frame each, numbered from 0 by their places in `items`.

    Every batch begins with the first item that is in none yet and takes along those of its frame that come soon after.
    What is in a batch depends on the items alone, never on how fast they come.

    Args:
        size: how many of this item's frame a batch may hold; 1: it goes alone.
        window: items held at most while companions are looked for.
        room: bytes beyond which no more are looked for.
    """
    held: dict[int, LoadedImage] = {}

    def batch() -> tuple[list[int], bool]:
        """Places of the first item and its companions, and whether to look for more."""
        head = next(iter(held.values()))
        most = size(head)
        places = [place for place, item in held.items() if item.frame == head.frame][:most]
        wanting = len(places) < most and len(held) < window
        return places, wanting and sum(item.num_bytes for item in held.values()) < room

    for place, item in enumerate(items):
        held[place] = item
        while held and not (found := batch())[1]:
            yield {place: held.pop(place) for place in found[0]}
    while held:
        yield {place: held.pop(place) for place in batch()[0]}
