from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from embedmask.config import DataConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.loader import (
    AspectRatioBatchSampler,
    SeededEpochSampler,
    eval_loader,
    group_batches,
    process_share,
    train_loader,
)
from embedmask.data.transforms import EvalTransform, TrainTransform
from embedmask.errors import BadInput

from .conftest import MakeFolder, annotation, polygon

# input and output of the authors' grouped sampler
GROUP_IDS = [0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]
ORDER = [19, 0, 13, 18, 7, 22, 6, 14, 1, 17, 15, 2, 5, 9, 16, 21, 12, 3, 10, 8]
BATCHES = [[19, 0, 18, 7], [13, 6, 1, 15], [22, 14, 17, 2], [5, 9, 16, 21], [12, 3], [10, 8]]


def make_dataset(make_folder: MakeFolder, count: int = 11, **config: Any) -> CocoInstances:
    """Write images of which every third is landscape; image i has i % 3 objects."""
    sizes = {i: (40, 60) if i % 3 == 0 else (50, 44) for i in range(1, count + 1)}
    objects = [
        annotation(10 * i + k, i, segmentation=[polygon(5 + 9 * k, 8, 7, 20)], bbox=[5 + 9 * k, 8, 7, 20])
        for i in sizes
        for k in range(i % 3)
    ]
    pixels = {
        i: np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8) for i, size in sizes.items()
    }
    transform = TrainTransform(DataConfig(short_sides=(), crop_size=32, rotate90=True, **config))
    return CocoInstances.open(make_folder(objects, sizes, pixels), "train", transform)


def signature(loader: Any, epoch: int) -> list[tuple[list[int | None], int]]:
    """Return the image ids and a checksum of the pixels of each batch."""
    loader.batch_sampler.sampler.set_epoch(epoch)
    return [
        (
            [t.image_id for t in targets],
            sum(int((i.long() * torch.arange(i.numel()).view_as(i)).sum()) for i in images),
        )
        for images, targets in loader
    ]


def test_batches_match_the_authors_sampler() -> None:
    assert group_batches(ORDER, GROUP_IDS, 4) == BATCHES


def test_batches_are_lists_of_images_and_targets(make_folder: MakeFolder) -> None:
    loader = train_loader(make_dataset(make_folder), batch_size=4, workers=0, seed=0)
    batches = list(loader)
    assert len(batches) == len(loader) == 3  # 8 that are not landscape, 3 that are
    for images, targets in batches:
        assert len(images) == len(targets) <= 4
        for image, target in zip(images, targets, strict=True):
            assert image.dtype == torch.uint8
            assert target.dense_masks().shape[-2:] == image.shape[-2:]


def test_batches_have_one_aspect_and_every_image_once(make_folder: MakeFolder) -> None:
    loader = train_loader(make_dataset(make_folder), batch_size=4, workers=0, seed=0)
    ids = [batch for batch, _ in signature(loader, 0)]
    assert sorted(i for batch in ids for i in batch if i) == list(range(1, 12))
    assert all(len({i % 3 == 0 for i in batch if i}) == 1 for batch in ids)


def test_order_and_transforms_depend_on_seed_and_epoch(make_folder: MakeFolder) -> None:
    dataset = make_dataset(make_folder, color_jitter=0.3)
    loader = train_loader(dataset, batch_size=4, workers=0, seed=1)
    first = [signature(loader, epoch) for epoch in range(3)]
    resumed = train_loader(dataset, batch_size=4, workers=0, seed=1)
    assert signature(resumed, 2) == first[2]
    assert first[0] != first[1] != first[2]
    assert signature(train_loader(dataset, batch_size=4, workers=0, seed=2), 0) != first[0]


def test_workers_do_not_change_the_samples(make_folder: MakeFolder) -> None:
    dataset = make_dataset(make_folder, color_jitter=0.3)
    alone = train_loader(dataset, batch_size=4, workers=0, seed=1)
    helped = train_loader(dataset, batch_size=4, workers=2, seed=1)
    assert [signature(helped, epoch) for epoch in (0, 1)] == [signature(alone, epoch) for epoch in (0, 1)]


def test_repeats_have_new_order_and_transforms(make_folder: MakeFolder) -> None:
    loader = train_loader(make_dataset(make_folder), batch_size=1, workers=0, seed=0, repeat=3)
    batches = signature(loader, 0)
    assert len(batches) == len(loader) == 33
    ids = sorted(batch[0] for batch, _ in batches if batch[0])
    assert ids == sorted([*range(1, 12)] * 3)
    assert len(set(map(str, batches))) > 30


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("repeat", [1, 2])
def test_processes_share_every_batch(world_size: int, repeat: int) -> None:
    groups = [index % 5 == 0 for index in range(23)]

    def share(rank: int) -> list[list[tuple[int, int]]]:
        order = SeededEpochSampler(23, seed=4, repeat=repeat)
        batches = AspectRatioBatchSampler(order, groups, 6, rank=rank, world_size=world_size)
        own = list(batches)
        assert len(own) == len(batches)
        return own

    shares = [share(rank) for rank in range(world_size)]
    assert len({len(own) for own in shares}) == 1  # as many steps
    for step in zip(*shares, strict=True):  # about as many images a step, and at least one
        assert 1 <= min(map(len, step)) <= max(map(len, step)) <= min(map(len, step)) + 1
    whole = [[item for part in step for item in part] for step in zip(*shares, strict=True)]
    for batch in whole:
        assert len({groups[index] for index, _ in batch}) == 1
    items = [item for batch in whole for item in batch]
    assert set(items) == set(SeededEpochSampler(23, seed=4, repeat=repeat))
    assert len(items) == len(set(items))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 7])
def test_process_share(length: int, world_size: int) -> None:
    batch = list(range(length))
    shares = [list(process_share(batch, rank, world_size)) for rank in range(world_size)]
    assert all(shares)
    if length >= world_size:
        assert [item for share in shares for item in share] == batch
    else:
        assert set().union(*shares) == set(batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_epoch_skips_completed_batches(make_folder: MakeFolder, workers: int) -> None:
    dataset = make_dataset(make_folder, color_jitter=0.3)
    options: dict[str, Any] = {"batch_size": 4, "workers": workers, "seed": 1}
    whole = train_loader(dataset, **options)
    epochs = [signature(whole, epoch) for epoch in range(4)]
    resumed = train_loader(dataset, start=2 * len(whole) + 1, **options)
    assert len(resumed) == len(whole) == 3
    assert signature(resumed, 0) == epochs[2][1:]  # completed epochs cannot be chosen
    assert signature(resumed, 2) == epochs[2][1:]
    assert signature(resumed, 3) == epochs[3]


def test_completed_batches_are_not_loaded(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    sample = CocoInstances.sample

    def record(self: CocoInstances, index: int, generator: torch.Generator) -> Any:
        loaded.append(index)
        return sample(self, index, generator)

    monkeypatch.setattr(CocoInstances, "sample", record)
    loader = train_loader(make_dataset(make_folder), batch_size=4, workers=0, seed=0, start=2)
    assert sum(len(targets) for _, targets in loader) == len(loaded) <= 4


def test_loaders_can_be_pickled(make_folder: MakeFolder) -> None:
    loader = train_loader(make_dataset(make_folder), batch_size=4, workers=0, seed=0)
    pickle.loads(pickle.dumps((loader.dataset, loader.batch_sampler, loader.collate_fn)))


def test_raises_on_indivisible_batch_size(make_folder: MakeFolder) -> None:
    dataset = make_dataset(make_folder)
    with pytest.raises(BadInput, match="cannot be shared by 3 processes"):
        train_loader(dataset, batch_size=4, workers=0, seed=0, world_size=3)


@pytest.mark.parametrize("world_size", [1, 2, 20])
def test_eval_loader_yields_every_image_once(make_folder: MakeFolder, world_size: int) -> None:
    """A process without a share gets the first image."""
    dataset = make_dataset(make_folder)
    result = []
    for rank in range(world_size):
        loader = eval_loader(dataset, EvalTransform(80, 133), workers=0, rank=rank, world_size=world_size)
        assert len(loader) > 0
        for images, image_ids, sizes in loader:
            assert len(images) == len(image_ids) == len(sizes) == 1
            result += [
                (i, size, tuple(image.shape)) for i, size, image in zip(image_ids, sizes, images, strict=True)
            ]
    expected = [
        (i, (40, 60), (3, 80, 120)) if i % 3 == 0 else (i, (50, 44), (3, 90, 80)) for i in range(1, 12)
    ]
    assert sorted(result) == expected[:1] * max(world_size - len(expected), 0) + expected
