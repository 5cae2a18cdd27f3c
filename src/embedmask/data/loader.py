"""Load batches: which items, in which order, with which random seeds.

Order and seeds of an epoch depend only on the run's seed and the number of the epoch. They do not depend on the number
of workers or on earlier epochs, so a resumed run continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.structures import Size, Target

SeededIndex = tuple[int, int]
"""Index of an item, and the seed of its random transforms."""
TrainBatch = tuple[list[Tensor], list[Target]]
EvalBatch = tuple[list[Tensor], list[int], list[Size]]


def collate(items: Sequence[tuple[Tensor, Target]]) -> TrainBatch:
    """Convert items to a list of images and a list of targets; they are normalized and padded on the device."""
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
    """Build the loader of shuffled batches `(list of uint8 images [3, h, w], list of Target)`; no image is dropped.

    The images of a batch are all landscape or all not, which reduces padding. Call
    `loader.batch_sampler.sampler.set_epoch(epoch)` before each epoch.

    Args:
        batch_size: images per step, over all processes.
        workers: worker processes; 0: load in this process.
        seed: seed of the order and of the random transforms of each item.
        repeat: passes over the dataset per epoch.
        start: completed batches, over all epochs; they are skipped without loading.
        world_size: number of processes; each gets its own share of every batch.

    Raises:
        BadInput: `batch_size` is not a multiple of `world_size`.
    """
    if batch_size < 1 or batch_size % world_size:
        raise BadInput(f"batch_size {batch_size} cannot be shared by {world_size} processes; use a multiple")
    order = SeededEpochSampler(len(dataset), seed=seed, repeat=repeat)
    groups = [is_landscape(size) for size in dataset.sizes]
    batches = AspectRatioBatchSampler(
        order, groups, batch_size, start=start, rank=rank, world_size=world_size
    )
    return _loader(_TrainItems(dataset), batches, collate, workers)


def eval_loader(
    dataset: CocoInstances,
    transform: EvalTransform,
    *,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    positions: Sequence[int] | None = None,
) -> DataLoader[EvalBatch]:
    """Build the loader of batches `(uint8 images in the network's frame, image ids, original (height, width))`, lists.

    A batch has one image: padding would change the statistics of GroupNorm. Ground truth is not loaded: evaluators
    read it from the annotations.

    Args:
        transform: converts an image to the network's frame.
        workers: worker processes; 0: load in this process.
        world_size: number of processes; each gets its own share of the images. A process without a share gets the
            first image, because every process has to take part in collective operations.
        positions: positions of the images to load; None: all.
    """
    every = list(range(len(dataset)) if positions is None else positions)
    share = every[rank::world_size] or every[:1]
    return _loader(_EvalItems(dataset, transform), [[index] for index in share], _collate_eval, workers)


def _loader(
    items: Dataset[Any], batches: Iterable[list[Any]], collate_fn: Callable[[Any], Any], workers: int
) -> DataLoader[Any]:
    return DataLoader(
        items,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate_fn,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


class _TrainItems(Dataset[tuple[Tensor, Target]]):
    """Training items, by index and seed."""

    def __init__(self, dataset: CocoInstances) -> None:
        self.dataset = dataset

    def __getitem__(self, item: SeededIndex) -> tuple[Tensor, Target]:
        index, seed = item
        return self.dataset.sample(index, torch.Generator().manual_seed(seed))


class _EvalItems(Dataset[tuple[Tensor, int, Size]]):
    """Images for evaluation, with their ids and original sizes."""

    def __init__(self, dataset: CocoInstances, transform: EvalTransform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, int, Size]:
        image = self.transform.image(self.dataset.image(index))
        return image, self.dataset.image_ids[index], self.dataset.sizes[index]


def _collate_eval(items: Sequence[tuple[Tensor, int, Size]]) -> EvalBatch:
    images, ids, sizes = zip(*items, strict=True)
    return list(images), list(ids), list(sizes)


def is_landscape(size: Size) -> bool:
    """Return whether an image is wider than high, the authors' criterion for grouping."""
    return size[1] > size[0]


def group_batches(order: Sequence[int], groups: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Split an order into batches of a single group each.

    The order within a group is preserved; batches are ordered by their first item. The last batch of each group may be
    smaller.

    Args:
        order: item indices, possibly repeated.
        groups: the group of each item of the dataset.
        batch_size: items per batch.
    """
    # positions in the order, by group
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place, index in enumerate(order):
        places[groups[index]].append(place)
    batches = [
        members[i : i + batch_size] for members in places.values() for i in range(0, len(members), batch_size)
    ]
    # lists of positions sort by their first position
    return [[order[place] for place in batch] for batch in sorted(batches)]


def process_share(batch: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """Return the items of a batch for process `rank`: at least one, repeated if there are fewer than processes."""
    if len(batch) < world_size:
        return [batch[rank % len(batch)]]
    return batch[len(batch) * rank // world_size : len(batch) * (rank + 1) // world_size]


class SeededEpochSampler(Sampler[SeededIndex]):
    """Shuffled order of a dataset, with a seed for the random transforms of each item.

    Args:
        seed: seed of all epochs; it is combined with the number of the epoch.
        repeat: passes over the dataset per epoch, each in its own order.
    """

    def __init__(self, length: int, *, seed: int, repeat: int = 1) -> None:
        self.length = length
        self.seed = seed
        self.repeat = repeat
        self.epoch = self.first_epoch = 0

    def start_at(self, epoch: int) -> None:
        """Start at this epoch: `set_epoch` cannot return to earlier ones."""
        self.epoch = self.first_epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order comes next, from 0."""
        self.epoch = max(epoch, self.first_epoch)

    def __len__(self) -> int:
        return self.length * self.repeat

    def __iter__(self) -> Iterator[SeededIndex]:
        # hashed, not added: seed 0, epoch 1 and seed 1, epoch 0 must be independent
        mixed = np.random.SeedSequence((self.seed % 2**64, self.epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        passes = [torch.randperm(self.length, generator=generator) for _ in range(self.repeat)]
        # a new seed for each repetition of an item
        seeds = torch.randint(2**62, (len(self),), generator=generator)
        return iter(zip(torch.cat(passes).tolist(), seeds.tolist(), strict=True))


class AspectRatioBatchSampler(Sampler[list[SeededIndex]]):
    """Batches of a single group each, divided among the processes.

    Every process gets the same number of batches. If a batch cannot be divided evenly, the shares differ by one item;
    if it has fewer items than there are processes, some items are repeated.

    Args:
        groups: the group of each item of the dataset.
        batch_size: items per batch, over all processes.
        start: completed batches, over all epochs; the first epoch starts after them.
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
        # the batches of an epoch depend on the group sizes only; each group has at most one smaller batch
        counts = Counter(self.groups).values()
        return sum(math.ceil(count * self.sampler.repeat / self.batch_size) for count in counts)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        items = list(self.sampler)
        groups = [self.groups[index] for index, _ in items]
        # batches of positions in `items`, which distinguish repetitions of an item
        batches = group_batches(range(len(items)), groups, self.batch_size)
        # a resumed run skips the completed batches of its first epoch
        done = self.first_batch if self.sampler.epoch == self.sampler.first_epoch else 0
        for batch in batches[done:]:
            yield [items[place] for place in process_share(batch, self.rank, self.world_size)]
