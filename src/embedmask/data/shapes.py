"""A synthetic COCO-format set that is worth training on: see `scenes` for what is in its images.

Every image has its own random stream: it depends on the seed, its split, its number and the size alone,
never on how many workers drew the set.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from PIL import Image

from embedmask.data.scenes import CLASS_NAMES, MIN_SIZE, Bools, make_scene
from embedmask.errors import BadInput
from embedmask.files import atomic_folder

SPLITS = ("train", "val")
JPEG_QUALITY = 95

Job = tuple[str, int]
"""Split and number of an image."""


def make_shapes(
    out: str | Path,
    *,
    train: int = 2000,
    val: int = 200,
    size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> None:
    """Write the set: `train.json`, `val.json` and `images/`, all at once or not at all.

    Annotations are what can be seen of each object, as compressed RLE; category ids run from 1.

    Args:
        out: folder to make; must not exist or be empty.
        train, val: images in each split.
        size: side of the square images, px.
        seed: same seed, same set, whatever the number of workers.
        progress: called with (images done, images in all) after each image.
        workers: threads that draw; None: one a core.

    Raises:
        BadInput: `out` is a file or holds something, or a number is out of range.
    """
    _check(train=train, val=val, size=size, seed=seed)
    jobs = [
        (split, n) for split, count in zip(SPLITS, (train, val), strict=True) for n in range(1, count + 1)
    ]
    records = []
    with atomic_folder(out) as unfinished:
        (unfinished / "images").mkdir()
        for record in _draw(jobs, unfinished / "images", size, seed, workers):
            records.append(record)
            if progress is not None:
                progress(len(records), len(jobs))
        for split, start, end in zip(SPLITS, (0, train), (train, train + val), strict=True):
            text = json.dumps(_coco(records[start:end], f"synthetic shapes, {split}, seed {seed}"))
            (unfinished / f"{split}.json").write_text(text, encoding="utf-8")


def _check(*, train: int, val: int, size: int, seed: int) -> None:
    if size < MIN_SIZE:
        raise BadInput(f"size must be at least {MIN_SIZE} px, got {size}")
    for name, value in (("train", train), ("val", val), ("seed", seed)):
        if value < 0:
            raise BadInput(f"{name} must be at least 0, got {value}")


@dataclass
class _Record:
    """A written image: its COCO entry and those of its objects, which get their own ids later."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


def _draw(jobs: list[Job], images: Path, size: int, seed: int, workers: int | None) -> Iterator[_Record]:
    """Draw and write an image for each job, in that order."""
    # numpy and JPEG work outside the interpreter's lock; threads need no pickling and no guarded main module
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield from pool.map(lambda job: _draw_one(job, images, size, seed), jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_one(job: Job, images: Path, size: int, seed: int) -> _Record:
    split, number = job
    scene = make_scene(size, np.random.default_rng([seed, SPLITS.index(split), number]))
    name = f"{split}_{number:06d}.jpg"
    Image.fromarray(scene.image).save(images / name, quality=JPEG_QUALITY, subsampling=0)
    image = {"id": number, "file_name": name, "height": size, "width": size}
    objects = zip(scene.labels, scene.masks, strict=True)
    return _Record(image, [_annotation(number, label, mask) for label, mask in objects])


def _annotation(image_id: int, label: int, mask: Bools) -> dict[str, Any]:
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "image_id": image_id,
        "category_id": label + 1,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
        "bbox": [float(value) for value in mask_api.toBbox(rle)],
        "area": int(mask_api.area(rle)),
        "iscrowd": 0,
    }


def _coco(records: list[_Record], description: str) -> dict[str, Any]:
    annotations = [annotation for record in records for annotation in record.annotations]
    return {
        "info": {"description": description, "version": "1"},
        "images": [record.image for record in records],
        "annotations": [{"id": index, **annotation} for index, annotation in enumerate(annotations, 1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES, 1)],
    }
