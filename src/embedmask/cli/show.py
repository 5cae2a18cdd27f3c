"""Pictures of a data set on one sheet: what `data show` does."""

from __future__ import annotations

from pathlib import Path

import torch

from embedmask.config import DEFAULT_READING, DataConfig, ReadOptions
from embedmask.config.data import Split
from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import TrainTransform
from embedmask.errors import BadInput
from embedmask.training.samples import draw_target, spread
from embedmask.visualize import contact_sheet, write_picture

NUM_COLUMNS = 4


def write_contact_sheet(
    folder: Path,
    split: Split,
    out: Path,
    count: int,
    *,
    augment: DataConfig | None = None,
    options: ReadOptions = DEFAULT_READING,
) -> int:
    """Pictures spread over a split, with their ground truth drawn, on one sheet; gives how many.

    With `augment`, each is one of the items that training would see.
    """
    if count < 1:
        raise BadInput(f"--count must be at least 1, got {count}")
    if augment is None:
        dataset = CocoInstances.open(folder, split, options=options)
    else:
        transform = TrainTransform(augment)
        dataset = CocoInstances.open(
            folder, split, transform, degenerate=augment.degenerate, where=augment.where, options=options
        )
    items = [dataset.sample(i, torch.Generator().manual_seed(i)) for i in spread(len(dataset), count)]
    pictures = [draw_target(image, target, dataset.class_names) for image, target in items]
    write_picture(contact_sheet(pictures, columns=min(NUM_COLUMNS, len(pictures))), out)
    return len(pictures)
