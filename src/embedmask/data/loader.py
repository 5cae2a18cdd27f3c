"""Batches: which items, in which order, with which random draws.

The order and the draws of an epoch follow from the seed and the epoch's number alone. They do not depend on
the number of workers or on what ran before, so a resumed run goes on as if it had not been stopped.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.structures import Size, Target

Draw = tuple[int, int]
"""Index of an item and the seed of its random draws."""
TrainBatch = tuple[list[Tensor], list[Target]]
EvalBatch = tuple[list[Tensor], list[int], list[Size]]


def collate(items: Sequence[tuple[Tensor, Target]]) -> TrainBatch:
    """Images and targets as two lists; normalising and padding happen on the device."""
    return [image for image, _ in items], [target for _, target in items]


def train_loader(
    dataset: CocoInstances,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    repeat: int = 1,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[TrainBatch]:
    """Shuffled batches of `(list of uint8 images, list of Target)`; every image is seen.

    A batch holds landscape images only, or none, so that little is padded. Call
    `loader.batch_sampler.sampler.set_epoch(epoch)` before each epoch.

    Args:
        dataset: items, with their sizes.
        batch_size: images a step, all processes together.
        workers: processes that load; 0: this one.
        seed: of the order and of every item's draws.
        repeat: times the dataset is walked in an epoch.
        start: batches that are done, over all epochs: they are passed over without being loaded.
        rank: number of this process.
        world_size: number of processes; each gets its own share of every batch.

    Raises:
        BadInput: `batch_size` cannot be shared evenly.
    """
    if batch_size < 1 or batch_size % world_size:
        raise BadInput(f"batch_size {batch_size} cannot be shared by {world_size} processes; use a multiple")
    order = SeededEpochSampler(len(dataset), seed=seed, repeat=repeat)
    groups = [is_landscape(size) for size in dataset.sizes]
    batches = AspectRatioBatchSampler(
        order, groups, batch_size, start=start, rank=rank, world_size=world_size
    )
    return _loader(partial(_drawn, dataset), batches, collate, workers)


def eval_loader(
    dataset: CocoInstances,
    transform: EvalTransform,
    *,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    wanted: Sequence[int] | None = None,
) -> DataLoader[EvalBatch]:
    """Every image once: `(uint8 images in the network's frame, image ids, original (height, width))`,
    lists.

    One image a batch: padding would change what GroupNorm sees. Ground truth is not painted: evaluators
    read the annotation file.

    Args:
        dataset: items.
        transform: brings an image to the network's frame.
        workers: processes that load; 0: this one.
        rank: number of this process.
        world_size: number of processes; each gets its own share of the images, or the first one where there
            are not enough of them: a process without any would not take part in what all do together.
        wanted: positions of the images that are wanted; None: all.
    """
    every = list(range(len(dataset)) if wanted is None else wanted)
    share = every[rank::world_size] or every[:1]
    return _loader(partial(_image, dataset, transform), [[i] for i in share], _collate_images, workers)


def _loader(
    get: Callable[[Any], Any], batches: Iterable[list[Any]], collate_fn: Callable[[Any], Any], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        _Items(get),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


class _Items(Dataset[Any]):
    """What a function gives for each entry of a batch."""

    def __init__(self, get: Callable[[Any], Any]) -> None:
        self.get = get

    def __getitem__(self, entry: Any) -> Any:
        return self.get(entry)


def _drawn(dataset: CocoInstances, draw: Draw) -> tuple[Tensor, Target]:
    index, seed = draw
    return dataset.sample(index, torch.Generator().manual_seed(seed))


def _image(dataset: CocoInstances, transform: EvalTransform, index: int) -> tuple[Tensor, int, Size]:
    return transform.image(dataset.image(index)), dataset.image_ids[index], dataset.sizes[index]


def _collate_images(items: Sequence[tuple[Tensor, int, Size]]) -> EvalBatch:
    images, ids, sizes = zip(*items, strict=True)
    return list(images), list(ids), list(sizes)


def is_landscape(size: Size) -> bool:
    """Strictly wider than high, as the authors group."""
    return size[1] > size[0]


def group_batches(order: Sequence[int], groups: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Cut an order into batches that hold one group each.

    Inside a group the order stays; batches are ordered by their first item. The last batch of each group
    may be short.

    Args:
        order: item indices, each may come more than once.
        groups: the group of each item of the dataset.
        batch_size: items a batch.
    """
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, index in enumerate(order):
        places[groups[index]].append(place)
    cut = [own[i : i + batch_size] for own in places.values() for i in range(0, len(own), batch_size)]
    return [[order[place] for place in batch] for batch in sorted(cut)]


def process_share(batch: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """The items of a batch that are process `rank`'s; at least one, so that it has something to do."""
    if len(batch) < world_size:
        return [batch[rank % len(batch)]]
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


class SeededEpochSampler(Sampler[Draw]):
    """A shuffled walk over a dataset, with the seed of each item's draws.

    Args:
        length: items of the dataset.
        seed: of everything; the epoch is added.
        repeat: walks an epoch, each in its own order.
    """

    def __init__(self, length: int, *, seed: int, repeat: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.repeat = repeat
        self.epoch = self.first_epoch = 0

    def start_at(self, epoch: int) -> None:
        """Begin with this epoch: those before it are done, and cannot be chosen any more."""
        self.epoch = self.first_epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next, from 0."""
        self.epoch = max(epoch, self.first_epoch)

    def __len__(self) -> int:
        return self.length * self.repeat

    def __iter__(self) -> Iterator[Draw]:
        # mixed, so that seed 0, epoch 1 and seed 1, epoch 0 are strangers
        mixed = np.random.SeedSequence((self.seed % 2**64, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        walks = [torch.randperm(self.length, generator=generator) for _ in range(self.repeat)]
        seeds = torch.randint(2**62, (len(self),), generator=generator)
        return iter(zip(torch.cat(walks).tolist(), seeds.tolist(), strict=True))


class AspectRatioBatchSampler(Sampler[list[Draw]]):
    """Batches of one group each, shared out to the processes.

    Every process gets as many batches. Where a batch does not divide, the shares differ by one item; where it
    has fewer items than there are processes, some come again.

    Args:
        sampler: the order of an epoch.
        groups: the group of each item of the dataset.
        batch_size: items a batch, all processes together.
        start: batches that are done, over all epochs; the first walk begins after them.
        rank: number of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        sampler: SeededEpochSampler,
        groups: Sequence[Hashable],
        batch_size: int,
        *,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sampler = sampler
        self.groups = groups
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        first_epoch, self.first_batch = divmod(start, len(self))
        sampler.start_at(first_epoch)

    def __len__(self) -> int:
        counts = Counter(self.groups).values()
        return sum(math.ceil(count * self.sampler.repeat / self.batch_size) for count in counts)

    def __iter__(self) -> Iterator[list[Draw]]:
        draws = list(self.sampler)
        groups = [self.groups[index] for index, _ in draws]
        batches = group_batches(range(len(draws)), groups, self.batch_size)
        done = self.first_batch if self.sampler.epoch == self.sampler.first_epoch else 0
        for batch in batches[done:]:
            yield [draws[place] for place in process_share(batch, self.rank, self.world_size)]
