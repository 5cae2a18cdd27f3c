"""Prefetching of images in background threads, and batching of images of one frame."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from embedmask.data.images import size_of
from embedmask.data.slides import Slide
from embedmask.errors import BadInput
from embedmask.inference.image_source import ImageSource
from embedmask.model.detector import padded_size_of
from embedmask.structures import Instances, PixelMap, Size

Item = TypeVar("Item")
Ready = TypeVar("Ready")


@dataclass
class ImageResult:
    """Result of one image of `Predictor.predict_stream`.

    Attributes:
        source: the image as it was passed.
        image: uint8 RGB `[3, H, W]`, upright; a slide if it is read by windows; None if it cannot be read.
        instances: in the frame of the original image, on the device; None if it cannot be read.
        error: why it cannot be read.
        pixels: pixel embedding, on the device; None unless it is requested, and for images in tiles.
    """

    source: ImageSource
    image: Tensor | Slide | None = None
    instances: Instances | None = None
    error: BadInput | None = None
    pixels: PixelMap | None = None


@dataclass
class LoadedImage:
    """Image to predict; `resized` is its input to the network, None for an image that is processed in tiles."""

    result: ImageResult
    resized: Tensor | None = None

    @property
    def frame(self) -> Size | None:
        """Return the size that the resized image alone is padded to."""
        return None if self.resized is None else padded_size_of([size_of(self.resized)])

    @property
    def num_bytes(self) -> int:
        return sum(one.numel() for one in (self.result.image, self.resized) if isinstance(one, Tensor))


def prefetch(
    source: Iterable[Item], prepare: Callable[[Item], Ready], *, workers: int, ahead: int
) -> Generator[Ready, None, None]:
    """Yield `prepare(item)` for every item in order, computed in threads while the caller is busy.

    One thread iterates the source, one item at a time. Exceptions of the source and of `prepare` are raised here, at
    the position of their item. Closing the generator early waits for running calls and leaves no thread.

    Args:
        workers: threads that run `prepare`.
        ahead: maximum number of items in progress, which bounds memory.
    """
    items = iter(source)
    with ThreadPoolExecutor(workers) as preparing, ThreadPoolExecutor(1) as reading:

        def take() -> Future[Ready] | None:
            for item in items:
                return preparing.submit(prepare, item)
            return None

        # futures of `take`, each of which returns the future of its prepared item, in the order of the source:
        # the single thread of `reading` never runs two at once
        pending = deque(reading.submit(take) for _ in range(ahead))
        try:
            while (prepared := pending.popleft().result()) is not None:
                # refill before waiting, so that `ahead` items stay in progress
                pending.append(reading.submit(take))
                yield prepared.result()
        finally:
            reading.shutdown(cancel_futures=True)
            preparing.shutdown(cancel_futures=True)


def make_batches(
    items: Iterable[LoadedImage],
    *,
    batch_size: Callable[[LoadedImage], int],
    max_items: int,
    max_bytes: int,
) -> Iterator[dict[int, LoadedImage]]:
    """Yield batches of items of one frame, keyed by their position in `items`.

    A batch starts with the first item that is not in a batch yet and adds later items of the same frame. It depends
    on the items only, not on their timing.

    Args:
        batch_size: maximum size of a batch that starts with this item.
        max_items: maximum number of items to buffer.
        max_bytes: size of the buffered images from which on no further items are collected.
    """
    buffer: dict[int, LoadedImage] = {}

    def next_batch() -> tuple[list[int], bool]:
        """Return the positions of the next batch, and whether it may still grow."""
        head = next(iter(buffer.values()))
        size = batch_size(head)
        places = [place for place, item in buffer.items() if item.frame == head.frame][:size]
        has_room = len(places) < size and len(buffer) < max_items
        return places, has_room and sum(item.num_bytes for item in buffer.values()) < max_bytes

    for place, item in enumerate(items):
        buffer[place] = item
        while buffer and not (batch := next_batch())[1]:
            yield {place: buffer.pop(place) for place in batch[0]}
    while buffer:
        yield {place: buffer.pop(place) for place in next_batch()[0]}
