"""Data set of images with instance masks, for training and evaluation."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedmask.config.data import DataConfig, Degenerate, Exif, Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.annotations import AnnotationFile, check_annotations
from embedmask.data.exif import count_frames, find_turned, frame_problems
from embedmask.data.image_files import ImageFiles, find_image_files
from embedmask.data.images import read_extent, read_image, size_of
from embedmask.data.layouts import SplitFiles, find_split, has_split
from embedmask.data.near_duplicates import split_by_content
from embedmask.data.packed import GroundTruth
from embedmask.data.pages import report_defaults
from embedmask.data.problems import (
    OnIssue,
    OnObject,
    Problem,
    WarningCollector,
    drop_degenerate,
    raise_issue,
    warning_lines,
)
from embedmask.data.subset import balanced_indices, filter_images, image_values
from embedmask.data.transforms import EvalTransform, Transform
from embedmask.errors import BadInput
from embedmask.structures import Size, Target

IMAGE_INFO = "image_info_"
"""Prefix of COCO's files of images without annotations."""


class CocoInstances(Dataset[tuple[Tensor, Target]]):
    """Data set of images with instance masks.

    Item i is `(image uint8 [3, H, W] RGB, Target)` after the transform; the target may have no objects (G = 0).

    Attributes:
        class_names: names of labels 0..C-1.
        category_ids: category id of each label, ascending.
        image_ids: image id of each item.
        sizes: `(height, width)` of each image according to the annotation file.
        layout: one-line description of the recognized folder layout; empty if no folder was examined.
        annotations_file: source of the ground truth, for messages.
        exif: frame of the annotations where an image's EXIF orientation allows two, see `DataConfig.exif`.
        frames: images with an EXIF orientation, counted by the frame that fits; empty unless `exif` is "auto".
        image_values: value of the record's key `value_key` for each image, as text; None without a key.
        warnings: problems that do not stop training.
    """

    def __init__(
        self,
        files: SplitFiles,
        transform: Transform | None = None,
        on_issue: OnIssue = raise_issue,
        image_filter: str | None = None,
        *,
        exif: Exif = "auto",
        options: ReadOptions = DEFAULT_READING,
        inspect: OnObject | None = None,
        value_key: str | None = None,
    ) -> None:
        """Read and check the annotations, and check that every image file exists.

        Args:
            on_issue: called with every problem; by default raises the first fatal one.
            transform, image_filter, exif, options, value_key: as in `open`.
            inspect: called with every accepted object.

        Raises:
            BadInput: see `check_annotations`; or an image is missing, or no image matches `image_filter`.
        """
        self.annotations_file = files.annotations
        self.layout = files.layout
        self.transform: Transform = transform or EvalTransform.full_size()
        self.options = options
        self.exif = exif
        collector = WarningCollector(on_issue)
        read = files.read_stored if exif == "stored" and files.read_stored is not None else files.read
        records = read(collector, options)
        if image_filter is not None:
            records = filter_images(records, image_filter, self.annotations_file)
        content = check_annotations(records, self.annotations_file, collector, inspect)
        self.class_names = content.class_names
        self.category_ids = content.category_ids
        self.image_ids = content.image_ids
        self.sizes = content.sizes
        self.image_values = (
            None
            if value_key is None
            else image_values(records, value_key, content.image_ids, files.annotations)
        )
        self._content = content
        image_files = find_image_files(content.file_names, files.images, files.others)
        self.images_dir, self._file_names = image_files.folder, image_files.names
        self._report_files(image_files, files, collector)
        paths = [self.image_path(index) for index in range(len(self))] if exif == "auto" else []
        turned = find_turned(paths, self.image_ids, self.sizes, relative=files.read_stored is not None)
        self.frames = count_frames(turned)
        for problem in frame_problems(turned):
            collector(problem)
        self.warnings = collector.warnings

    @classmethod
    def open(
        cls,
        data_dir: str | Path,
        split: Split,
        transform: Transform | None = None,
        degenerate: Degenerate = "refuse",
        image_filter: str | None = None,
        *,
        exif: Exif = "auto",
        options: ReadOptions = DEFAULT_READING,
        val_fraction: float = 0.0,
        value_key: str | None = None,
    ) -> CocoInstances:
        """Open a split of a data set folder, see `find_split`.

        Args:
            transform: makes an item from an image and its annotations; None for the whole image at its own size.
            degenerate: "refuse" objects that cover no pixel, or "drop" them; `layout` reports their number.
            image_filter: condition `KEY=VALUE` on the image records of the annotation file; None for all images.
            exif: frame of the annotations where an image's EXIF orientation allows two: "upright" or "stored";
                "auto" is upright with a warning.
            options: how image files and label images are read.
            val_fraction: fraction of train to hold out as val, see `hold_out`; 0 if the folder has a val split.
            value_key: key of the image records for `balanced`; None: not needed.

        Raises:
            BadInput: see `find_split` and `__init__`; or `val_fraction` is set for a folder with a val split.
        """
        if val_fraction and split in ("train", "val"):
            held_out = open_held_out(
                data_dir, val_fraction, transform=transform, degenerate=degenerate, image_filter=image_filter,
                exif=exif, options=options, value_key=value_key,
            )  # fmt: skip
            return held_out[split == "val"]
        on_issue = drop_degenerate if degenerate == "drop" else raise_issue
        dataset = cls(
            find_split(data_dir, split), transform, on_issue, image_filter,
            exif=exif, options=options, value_key=value_key,
        )  # fmt: skip
        objects, parts = len(dataset._content.dropped), dataset._content.dropped_parts
        for count, name in ((objects, "objects"), (parts, "polygons of objects")):
            if count:
                dataset.layout += f"; {count} degenerate {name} of {split} left out"
        return dataset

    def hold_out(self, fraction: float) -> tuple[CocoInstances, CocoInstances]:
        """Split the images into train and val by content, see `split_by_content`; near-duplicates stay together.

        Args:
            fraction: fraction of the images for val, between 0 and 1.

        Raises:
            BadInput: all images are near-duplicates of each other, or an image cannot be read.
        """
        paths = [self.image_path(index) for index in range(len(self))]
        parts = split_by_content(paths, {"val": fraction}, self.options)
        train, val = self.select(parts["train"]), self.select(parts["val"])
        train.layout = val.layout = f"{self.layout}; {len(val)} of {len(self)} images held out as val"
        return train, val

    def without_empty(self) -> CocoInstances:
        """Return the data set of the images with objects other than crowds; `layout` reports the number of others."""
        annotations = self._content.annotations
        full = np.unique(annotations.owners[~annotations.crowd]).tolist()
        part = self.select(full)
        if len(part) < len(self):
            part.layout = f"{self.layout}; {len(self) - len(part)} images without objects left out"
        return part

    def balanced(self, power: float) -> CocoInstances:
        """Return the data set with images of rare values repeated; `layout` reports how often each value is used.

        The data set must have been opened with a `value_key`. `power` is `DataConfig.balance_power`.
        """
        assert self.image_values is not None
        part = self.select(balanced_indices(self.image_values, power))
        counts = Counter(part.image_values)
        part.layout = (
            f"{self.layout}; balanced: {', '.join(f'{n} of {value}' for value, n in counts.items())}"
        )
        return part

    def select(self, indices: Sequence[int]) -> CocoInstances:
        """Return a data set of the images at `indices`, in that order."""
        part = copy.copy(self)
        if self.image_values is not None:
            part.image_values = [self.image_values[i] for i in indices]
        part._content = self._content.select(indices)
        part.image_ids, part.sizes = part._content.image_ids, part._content.sizes
        part._file_names = [self._file_names[i] for i in indices]
        return part

    @property
    def has_annotations(self) -> bool:
        """Return whether the split has annotations. COCO's test sets have none; only the evaluation server has them."""
        return not self.annotations_file.name.startswith(IMAGE_INFO)

    @property
    def ground_truth(self) -> AnnotationFile:
        """Return the checked annotations, including crowds, as used by evaluation."""
        return self._content

    @property
    def has_dropped_objects(self) -> bool:
        """Return whether degenerate objects or polygons were dropped."""
        return bool(self._content.dropped or self._content.dropped_parts)

    def warning_lines(self) -> list[str]:
        """Return one line for each type of warning."""
        return warning_lines(self.warnings)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return item `index`, with random numbers seeded by torch's global generator."""
        seed = int(torch.randint(2**62, ()))
        return self.sample(index, torch.Generator().manual_seed(seed))

    def sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Return item `index`, with random numbers from `generator` only; errors as in `image`."""
        return self.transform(self.image(index), self.annotations(index), generator, self)

    def annotations(self, index: int) -> GroundTruth:
        """Return the annotations of item `index` without crowds, in the coordinates of the annotation file."""
        return self._content.annotations[index].without_crowds()

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of images and digests of the file names and of all annotations."""
        names = hashlib.sha256(json.dumps(self._file_names).encode()).hexdigest()
        return {"images": len(self), "file names": names, "annotations": self._content.annotations.digest()}

    def image_path(self, index: int) -> Path:
        """Return the image file of item `index`."""
        return self.images_dir / self._file_names[index]

    def image(self, index: int) -> Tensor:
        """Read the image of item `index`, uint8 `[3, H, W]` RGB, in the frame of its annotations.

        Some tools annotate images with an EXIF rotation upright, others as stored. The size in the annotation file
        decides which one applies; if both fit, `exif` decides, by default upright.

        Raises:
            BadInput: the image file is damaged or its size differs from the annotations.
        """
        path, expected = self.image_path(index), self.sizes[index]
        sizes: dict[bool, Size] = {}
        for upright in (False, True) if self.exif == "stored" else (True, False):
            image = read_image(path, upright=upright, options=self.options)
            sizes[upright] = size_of(image)
            if sizes[upright] == expected:
                return image
        raise BadInput(
            f"{path}: is {sizes[True]} (height, width), but {self.annotations_file} says {expected} for "
            f"image {self.image_ids[index]}; correct the file or its annotations"
        )

    def _report_files(self, image_files: ImageFiles, files: SplitFiles, on_issue: OnIssue) -> None:
        """Add an unusual image folder to `layout`; report missing, uncertain and differently spelled file names."""
        has_place = files.images not in files.others
        if not has_place or image_files.folder != files.images:
            place = image_files.common_folder()
            if not has_place or not place.is_relative_to(files.images):
                self.layout += f" with images in {os.path.relpath(place, files.root)}/"
        written = self._content.file_names
        for index in image_files.missing:
            near = (
                f" (the most similar name is {image_files.nearest[index]})"
                if index in image_files.nearest
                else ""
            )
            message = (
                f"{self.image_path(index)}: no such file, but image {self.image_ids[index]} of "
                f"{self.annotations_file} lists it; add the file{near}"
            )
            on_issue(Problem("missing image", message))
        for index, rivals in image_files.uncertain.items():
            message = f"image {self.image_ids[index]} names {written[index]!r}, which is ambiguous"
            advice = f"it may also refer to {', '.join(rivals[:3])}; write the exact name of one file"
            on_issue(Problem("missing image", f"{self.annotations_file}: {message}: {advice}"))
        for index, earlier in image_files.repeated.items():
            ids = f"images {self.image_ids[earlier]} and {self.image_ids[index]} name the same file"
            advice = "give the objects of both one image, or correct the name"
            on_issue(Problem("duplicate id", f"{self.annotations_file}: {ids}, {written[index]!r}; {advice}"))
        respelled = [index for index in image_files.respelled if index not in image_files.uncertain]
        if respelled:
            first = respelled[0]
            message = f"{len(respelled)} image names differ from those of the files and were matched to them"
            example = f"{written[first]!r} as {str(self.image_path(first))!r}"
            on_issue(Problem("image name", f"{self.annotations_file}: {message}, {example}", fatal=False))
        for line in report_defaults(map(self.image_path, range(len(self))), self.options, read_extent):
            on_issue(Problem("several pages", line, fatal=False))


def open_train_val(
    data_dir: str | Path, config: DataConfig, transform: Transform, options: ReadOptions = DEFAULT_READING
) -> tuple[CocoInstances, CocoInstances]:
    """Open the train and the val split of a folder according to the data section of a recipe.

    Args:
        transform: training transform; val images are not transformed.

    Raises:
        BadInput: see `CocoInstances.open`; or train has no objects.
    """
    how: dict[str, Any] = {
        "degenerate": config.degenerate,
        "image_filter": config.image_filter,
        "exif": config.exif,
        "options": options,
    }
    if config.val_fraction:
        train, val = open_held_out(data_dir, config.val_fraction, **how, value_key=config.balance)
        train.transform = transform
    else:
        train = CocoInstances.open(data_dir, "train", transform, **how, value_key=config.balance)
        val = CocoInstances.open(data_dir, "val", **how)
    if train.ground_truth.annotations.crowd.all():
        raise BadInput(
            f"{train.annotations_file}: train has no objects other than crowds, so there is nothing to learn; "
            "add annotations"
        )
    train = train if config.keep_empty else train.without_empty()
    return train if config.balance is None else train.balanced(config.balance_power), val


def open_held_out(
    data_dir: str | Path, fraction: float, *, image_filter: str | None, value_key: str | None, **how: Any
) -> tuple[CocoInstances, CocoInstances]:
    """Open the train split of a folder as train and val, see `CocoInstances.hold_out`.

    All images are split before those that meet `image_filter` are selected, so that evaluation with another filter than
    in training includes no training images.

    Args:
        image_filter, value_key, how: as in `CocoInstances.open`.

    Raises:
        BadInput: see `CocoInstances.open` and `hold_out`; or train or val has no image that meets `image_filter`.
    """
    check_no_val_split(data_dir)
    chosen = CocoInstances.open(data_dir, "train", image_filter=image_filter, value_key=value_key, **how)
    if image_filter is None:
        return chosen.hold_out(fraction)
    parts = CocoInstances.open(data_dir, "train", **how).hold_out(fraction)
    return (
        _common_images(chosen, parts[0], "train", image_filter),
        _common_images(chosen, parts[1], "val", image_filter),
    )


def _common_images(chosen: CocoInstances, part: CocoInstances, name: str, image_filter: str) -> CocoInstances:
    """Return the images of `chosen` that are also in `part`, the split `name`; `BadInput` without any."""
    ids = set(part.image_ids)
    common = chosen.select([index for index, image_id in enumerate(chosen.image_ids) if image_id in ids])
    if not len(common):
        raise BadInput(
            f"image filter {image_filter}: none of the {len(part)} images of {name} meets it; hold out another "
            "fraction, or mark a val split in the data set"
        )
    common.layout = f"{part.layout}; {len(common)} images of {name} with {image_filter}"
    return common


def check_no_val_split(data_dir: str | Path) -> None:
    """Raise `BadInput` if a folder has a val split, before images of train are held out."""
    if has_split(data_dir, "val"):
        raise BadInput(
            f"{data_dir}: already has a val split, so nothing is held out; use it, or remove it first"
        )


def check_same_classes(train: CocoInstances, val: CocoInstances) -> None:
    """Raise `BadInput` unless both splits have the same list of categories, so that their labels mean the same."""
    train_classes, val_classes = (list(zip(s.category_ids, s.class_names, strict=True)) for s in (train, val))
    if train_classes != val_classes:
        raise BadInput(
            f"{val.annotations_file}: its categories {val_classes[:8]} are not those of train, "
            f"{train_classes[:8]}; give both splits the same list"
        )
