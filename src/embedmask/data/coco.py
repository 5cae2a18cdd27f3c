"""COCO-style datasets: where the files of a split are, and the items that training and evaluation see."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedmask.data.annotations import Annotations, read_annotations
from embedmask.data.images import read_image
from embedmask.data.transforms import EvalTransform, Transform
from embedmask.errors import BadInput
from embedmask.structures import Size, Target

Split = Literal["train", "val"]


@dataclass(frozen=True)
class SplitFiles:
    """Where a split lies.

    Attributes:
        annotations: COCO annotation file.
        images: folder that its file names are relative to.
        layout: what the folder was recognised as, for one line to the user.
    """

    annotations: Path
    images: Path
    layout: str


def find_split(data_dir: str | Path, split: Split) -> SplitFiles:
    """Find out how a folder is laid out, by looking.

    Known layouts: `{split}.json` beside `images/`; COCO's own `annotations/instances_{split}{year}.json` with
    `{split}{year}/`.

    Raises:
        BadInput: no such folder, none of the layouts, or the folder of images is missing; says which.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such data folder; check the path")
    for finder in LAYOUTS:
        files = finder(folder, split)
        if files is not None:
            return files
    raise BadInput(
        f"{folder}: has no {split} split; looked for {split}.json beside images/ and "
        f"annotations/instances_{split}2017.json (or another year) with {split}2017/"
    )


def _plain_layout(folder: Path, split: Split) -> SplitFiles | None:
    annotations = folder / f"{split}.json"
    if not annotations.is_file():
        return None
    return _with_images(SplitFiles(annotations, folder / "images", f"{split}.json beside images/"))


def _coco_layout(folder: Path, split: Split) -> SplitFiles | None:
    pattern = re.compile(rf"instances_({split}\d{{4}})\.json")
    files = sorted((folder / "annotations").glob(f"instances_{split}*.json"))
    matches = [(file, match[1]) for file in files if (match := pattern.fullmatch(file.name))]
    if not matches:
        return None
    file, name = matches[-1]  # the newest year
    return _with_images(SplitFiles(file, folder / name, f"COCO, annotations/{file.name} with {name}/"))


def _with_images(files: SplitFiles) -> SplitFiles:
    if not files.images.is_dir():
        raise BadInput(
            f"{files.images}: no such folder, but {files.annotations} needs its images there; add it"
        )
    return files


LAYOUTS: list[Callable[[Path, Split], SplitFiles | None]] = [_plain_layout, _coco_layout]
"""Tried in this order; each gives the files of a split, or None where the folder is laid out otherwise."""


class CocoInstances(Dataset[tuple[Tensor, Target]]):
    """Pictures with instance masks.

    Item i is `(image uint8 [3, H, W] RGB, Target)` after the transform; G = 0 without objects.

    Attributes:
        class_names: names of labels 0..C-1.
        category_ids: the file's category id of each label, ascending.
        image_ids: the file's id of each item.
        sizes: `(height, width)` of each item's picture, from the annotation file.
        layout: how its folder was recognised, for one line to the user; empty where no folder was looked at.
        annotations_file: where the ground truth comes from (the evaluator reads it again, with its crowds).
    """

    def __init__(self, annotations: Path, images: Path, transform: Transform | None = None) -> None:
        """Read and check the annotations, and that every picture is there.

        Args:
            annotations: COCO annotation file.
            images: folder of its pictures.
            transform: makes the item; None: the whole picture at its own size.

        Raises:
            BadInput: see `read_annotations`; or a picture is missing.
        """
        self.annotations_file = Path(annotations)
        self.images_dir = Path(images)
        self.layout = ""
        self.transform: Transform = transform or EvalTransform(None, 0)
        content = read_annotations(self.annotations_file)
        self.class_names = content.class_names
        self.category_ids = content.category_ids
        self.image_ids = content.image_ids
        self.sizes = content.sizes
        self._file_names = content.file_names
        self._annotations = content.annotations
        self._check_files()

    @classmethod
    def open(cls, data_dir: str | Path, split: Split, transform: Transform | None = None) -> CocoInstances:
        """The split of a folder, see `find_split`."""
        files = find_split(data_dir, split)
        dataset = cls(files.annotations, files.images, transform)
        dataset.layout = files.layout
        return dataset

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Item with draws from torch's global generator."""
        seed = int(torch.randint(2**62, ()))
        return self.sample(index, torch.Generator().manual_seed(seed))

    def sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Item whose random draws come from `generator` alone.

        Raises:
            BadInput: the picture is damaged or has not the size that the annotations say; names the file.
        """
        return self.transform(self.image(index), self.annotations(index), generator)

    def annotations(self, index: int) -> Annotations:
        """Ground truth of item `index` in the file's frame, masks not painted."""
        return self._annotations[index]

    def image_path(self, index: int) -> Path:
        """File of item `index`."""
        return self.images_dir / self._file_names[index]

    def image(self, index: int) -> Tensor:
        """Picture of item `index`, uint8 `[3, H, W]`, in the frame of its annotations.

        Tools disagree on pictures that carry an EXIF rotation: some annotate them upright, some as stored.
        The size in the annotation file decides; upright where both fit.
        """
        path, expected = self.image_path(index), self.sizes[index]
        upright = read_image(path)
        if _size(upright) == expected:
            return upright
        stored = read_image(path, upright=False)
        if _size(stored) == expected:
            return stored
        raise BadInput(
            f"{path}: is {_size(upright)} (height, width), but {self.annotations_file} says {expected} for "
            f"image {self.image_ids[index]}; correct the file or its annotations"
        )

    def _check_files(self) -> None:
        for index, image_id in enumerate(self.image_ids):
            path = self.image_path(index)
            if not path.is_file():
                raise BadInput(
                    f"{path}: no such file, but image {image_id} of {self.annotations_file} names it; add it"
                )


def _size(image: Tensor) -> Size:
    height, width = image.shape[-2:]
    return height, width
