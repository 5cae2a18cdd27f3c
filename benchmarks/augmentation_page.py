"""Draw the images of docs/augmentation.md, one per YAML block of the page, from the nuclei data set.

    python benchmarks/augmentation_page.py DIR

DIR is the nuclei set (BBBC038, CC0) as a COCO-style folder. Each block is followed by the link to its image. The image
shows the original on the left, then three random samples; below, the same with masks and boxes.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from embedmask.config import DataConfig, from_dict
from embedmask.data.coco import CocoInstances
from embedmask.data.packed import Annotations
from embedmask.data.transforms import EvalTransform, TrainTransform
from embedmask.samples import draw_target
from embedmask.visualize import contact_sheet, write_image

PAGE = Path(__file__).parents[1] / "docs" / "augmentation.md"
OFF: dict[str, Any] = {"short_sides": [], "flip_horizontal": 0}
"""Fields that switch off the default augmentations, so that only those of the block apply."""
IMAGE_IDS = (40, 75, 5, 38)
"""Stained tissue; the first is shown, copy-paste takes objects from all."""
NUM_SAMPLES = 3
Pixels = NDArray[np.uint8]


class Subset:
    """Part of a data set, as the source of copy-paste."""

    def __init__(self, dataset: CocoInstances, image_ids: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.indices = [dataset.image_ids.index(image_id) for image_id in image_ids]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor:
        return self.dataset.image(self.indices[index])

    def annotations(self, index: int) -> Annotations:
        return self.dataset.annotations(self.indices[index])


def blocks(page: str) -> dict[str, dict[str, Any]]:
    """Return image file, relative to the page -> the data section of the YAML block above it."""
    # a YAML block followed by the link to its image
    matches = re.findall(r"```yaml\n(.*?)```\s*!\[[^\]]*\]\(([^)]+)\)", page, re.DOTALL)
    return {name: yaml.safe_load(text)["data"] for text, name in matches}


def sheet(items: Subset, config: DataConfig) -> Pixels:
    """Return a sheet of the first item and different random samples of it; with objects in the second row."""
    first = items.image(0), items.annotations(0)
    transform = TrainTransform(config)
    samples = [EvalTransform.full_size()(*first, torch.Generator())]
    # some augmentations apply with a probability: try seeds until enough samples differ
    for seed in range(100):
        sample = transform(*first, torch.Generator().manual_seed(seed), items)
        if len(samples) <= NUM_SAMPLES and not any(torch.equal(sample[0], shown) for shown, _ in samples):
            samples.append(sample)
    plain = [image.permute(1, 2, 0).numpy() for image, _ in samples]
    drawn = [draw_target(*sample, class_names=[""]) for sample in samples]
    return contact_sheet([*plain, *drawn], columns=len(samples))


def main() -> None:
    """Draw the image of every block."""
    items = Subset(CocoInstances.open(sys.argv[1], "train"), IMAGE_IDS)
    for name, fields in blocks(PAGE.read_text(encoding="utf-8")).items():
        config = from_dict(DataConfig, {**OFF, **fields}, where=name)
        write_image(sheet(items, config), PAGE.parent / name)


if __name__ == "__main__":
    main()
