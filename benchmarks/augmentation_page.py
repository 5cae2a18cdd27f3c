"""Draw the images of docs/augmentation.md: each YAML block of the page, on the nuclei set.

    python benchmarks/augmentation_page.py DIR

DIR is the nuclei set (BBBC038, CC0) as a COCO-style folder. An image of the page is named under its block.
Left: the image as it is; then three draws; below, the same with masks and boxes.
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
from embedmask.data.annotations import Annotations
from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform, TrainTransform
from embedmask.structures import Target
from embedmask.training.samples import draw_target
from embedmask.visualize import contact_sheet, write_image

PAGE = Path(__file__).parents[1] / "docs" / "augmentation.md"
OFF: dict[str, Any] = {"short_sides": [], "flip_horizontal": 0}
"""What the blocks do not say: nothing else happens."""
IMAGE_IDS = (40, 75, 5, 38)
"""Stained tissue: the first is shown, objects are pasted from all."""
NUM_DRAWS = 3
Pixels = NDArray[np.uint8]


class Few:
    """Some items of a data set."""

    def __init__(self, dataset: CocoInstances, image_ids: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.places = [dataset.image_ids.index(image_id) for image_id in image_ids]

    def __len__(self) -> int:
        return len(self.places)

    def image(self, index: int) -> Tensor:
        return self.dataset.image(self.places[index])

    def annotations(self, index: int) -> Annotations:
        return self.dataset.annotations(self.places[index])


def blocks(page: str) -> dict[str, dict[str, Any]]:
    """ImageSource's file, relative to the page -> the data section of the YAML block above it."""
    found = re.findall(r"```yaml\n(.*?)```\s*!\[[^\]]*\]\(([^)]+)\)", page, re.DOTALL)
    return {name: yaml.safe_load(text)["data"] for text, name in found}


def sheet(items: Few, config: DataConfig) -> Pixels:
    """The first item as it is, then draws that differ; plain above, with its objects below."""
    first = items.image(0), items.annotations(0)
    transform = TrainTransform(config)
    views = [EvalTransform(None, 0)(*first, torch.Generator())]
    for seed in range(100):
        view = transform(*first, torch.Generator().manual_seed(seed), items)
        if len(views) <= NUM_DRAWS and not any(torch.equal(view[0], shown) for shown, _ in views):
            views.append(view)
    plain = [image.permute(1, 2, 0).numpy() for image, _ in views]
    return contact_sheet([*plain, *map(_drawn, views)], columns=len(views))


def _drawn(view: tuple[Tensor, Target]) -> Pixels:
    return draw_target(*view, class_names=[""])


def main() -> None:
    items = Few(CocoInstances.open(sys.argv[1], "train"), IMAGE_IDS)
    for name, fields in blocks(PAGE.read_text(encoding="utf-8")).items():
        config = from_dict(DataConfig, {**OFF, **fields}, where=name)
        write_image(sheet(items, config), PAGE.parent / name)


if __name__ == "__main__":
    main()
