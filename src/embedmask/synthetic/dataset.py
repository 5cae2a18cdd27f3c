"""Synthetic data set in COCO format, easy enough to train on in minutes; `renderer` paints its images.

Every image has its own random stream, seeded by the seed of the set, the split, the image's number and the size. The
result does not depend on the number of workers.
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

from embedmask.errors import BadInput
from embedmask.files import atomic_folder
from embedmask.synthetic.renderer import CLASS_NAMES, MIN_SIZE, make_scene

SPLITS = ("train", "val")
JPEG_QUALITY = 95

Job = tuple[str, int]
"""Split and number of an image."""


@dataclass
class Record:
    """COCO entries of one written image and of its objects, whose ids are assigned later."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


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
    """Write the data set: `train.json`, `val.json` and `images/`, all or nothing.

    Annotations are the visible parts of the objects as compressed RLE; category ids start at 1.

    Args:
        out: folder to create; must be missing or empty.
        size: side of the square images, px.
        seed: equal seeds give equal sets, for any number of workers.
        progress: called with (images done, images in all) after each image.
        workers: rendering threads; None: one per core.

    Raises:
        BadInput: `out` is a file or a folder with files, or a number is out of range.
    """
    if size < MIN_SIZE:
        raise BadInput(f"size must be at least {MIN_SIZE} px, got {size}")
    for name, value in (("train", train), ("val", val), ("seed", seed)):
        if value < 0:
            raise BadInput(f"{name} must be at least 0, got {value}")
    counts = zip(SPLITS, (train, val), strict=True)
    jobs = [(split, number) for split, count in counts for number in range(1, count + 1)]
    records = []
    with atomic_folder(out) as unfinished:
        (unfinished / "images").mkdir()
        for record in _write_images(jobs, unfinished / "images", size, seed, workers):
            records.append(record)
            if progress is not None:
                progress(len(records), len(jobs))
        for split, start, end in zip(SPLITS, (0, train), (train, train + val), strict=True):
            text = json.dumps(_coco(records[start:end], f"synthetic shapes, {split}, seed {seed}"))
            (unfinished / f"{split}.json").write_text(text, encoding="utf-8")


def _write_images(
    jobs: list[Job], images: Path, size: int, seed: int, workers: int | None
) -> Iterator[Record]:
    """Render and write the image of each job, in that order."""
    # numpy and the JPEG encoder release the interpreter lock; threads need no pickling and no guarded main module
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        yield from pool.map(lambda job: _write_image(job, images, size, seed), jobs)
    finally:
        # an interrupted run does not wait for the images that were queued
        pool.shutdown(cancel_futures=True)


def _write_image(job: Job, images: Path, size: int, seed: int) -> Record:
    split, number = job
    scene = make_scene(size, np.random.default_rng([seed, SPLITS.index(split), number]))
    name = f"{split}_{number:06d}.jpg"
    Image.fromarray(scene.image).save(images / name, quality=JPEG_QUALITY, subsampling=0)
    record = Record({"id": number, "file_name": name, "height": size, "width": size}, [])
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
        annotation = {
            "image_id": number,
            "category_id": label + 1,
            "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
            "bbox": [float(value) for value in mask_api.toBbox(rle)],
            "area": int(mask_api.area(rle)),
            "iscrowd": 0,
        }
        record.annotations.append(annotation)
    return record


def _coco(records: list[Record], description: str) -> dict[str, Any]:
    annotations = [annotation for record in records for annotation in record.annotations]
    return {
        "info": {"description": description, "version": "1"},
        "images": [record.image for record in records],
        "annotations": [{"id": index, **annotation} for index, annotation in enumerate(annotations, 1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES, 1)],
    }
