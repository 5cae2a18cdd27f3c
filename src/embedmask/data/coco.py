"""The data set: the items that training and evaluation see."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedmask.config.data import DataConfig, Degenerate, Exif, Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.annotations import AnnotationFile, Content, check_annotations
from embedmask.data.exif import count_frames, find_turned, frame_problems
from embedmask.data.image_files import ImageFiles, find_image_files
from embedmask.data.images import read_extent, read_image, size_of
from embedmask.data.layouts import SplitFiles, find_split, has_split
from embedmask.data.near_duplicates import divide
from embedmask.data.packed import GroundTruth
from embedmask.data.pages import report_defaults
from embedmask.data.problems import (
    Inspect,
    OnIssue,
    Problem,
    WarningCollector,
    drop_degenerate,
    raise_issue,
    warning_lines,
)
from embedmask.data.subset import content_where
from embedmask.data.transforms import EvalTransform, Transform
from embedmask.errors import BadInput
from embedmask.structures import Size, Target


class CocoInstances(Dataset[tuple[Tensor, Target]]):
    """Images with instance masks.

    Item i is `(image uint8 [3, H, W] RGB, Target)` after the transform; G = 0 without objects.

    Attributes:
        class_names: names of labels 0..C-1.
        category_ids: the file's category id of each label, ascending.
        image_ids: the file's id of each item.
        sizes: `(height, width)` of each item's image, from the annotation file.
        layout: how its folder was recognised, for one line to the user; empty where no folder was looked at.
        annotations_file: where the ground truth comes from; for messages.
        exif: the frame of the annotations where an image's EXIF orientation leaves two, see `DataConfig.exif`.
        frames: the images with an EXIF orientation by the frame that fits; empty unless `exif` is "auto".
        warnings: problems of the data that do not stop training.
    """

    def __init__(
        self,
        files: SplitFiles,
        transform: Transform | None = None,
        on_issue: OnIssue = raise_issue,
        where: str | None = None,
        *,
        exif: Exif = "auto",
        options: ReadOptions = DEFAULT_READING,
        inspect: Inspect | None = None,
    ) -> None:
        """Read and check the annotations, and that every image is there.

        Args:
            files: where the split lies.
            transform: makes the item; None: the whole image at its own size.
            on_issue: is told of every problem; by default the first that is fatal is raised.
            where: as in `open`.
            exif: as in `open`.
            options: how image files, and label images, are read.
            inspect: is shown every object that is kept.

        Raises:
            BadInput: see `check_annotations`; or an image is missing, or `where` leaves none.
        """
        self.annotations_file = files.annotations
        self.layout = files.layout
        self.transform: Transform = transform or EvalTransform(None, 0)
        self.options = options
        self._where = where
        self.exif = exif
        collector = WarningCollector(on_issue)
        read = files.read_stored if exif == "stored" and files.read_stored is not None else files.read
        records = self._part(read(collector, options))
        content = check_annotations(records, self.annotations_file, collector, inspect)
        self.class_names = content.class_names
        self.category_ids = content.category_ids
        self.image_ids = content.image_ids
        self.sizes = content.sizes
        self._content = content
        found = find_image_files(content.file_names, files.images, files.others)
        self.images_dir, self._file_names = found.folder, found.names
        has_place = files.images not in files.others
        if not has_place or found.folder != files.images:
            place = found.common_folder()
            if not has_place or not place.is_relative_to(files.images):
                self.layout += f" with images in {os.path.relpath(place, files.root)}/"
        self._report_files(found, content.file_names, collector)
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
        where: str | None = None,
        *,
        exif: Exif = "auto",
        options: ReadOptions = DEFAULT_READING,
        val_fraction: float = 0.0,
    ) -> CocoInstances:
        """Open a split of a folder, see `find_split`.

        Args:
            data_dir: the folder.
            split: which of its splits.
            transform: makes the item; None: the whole image at its own size.
            degenerate: whether objects that cover nothing are refused, or left out; `layout` says how many.
            where: `KEY=VALUE`, only the images whose record in the annotation file says so; None: all.
            exif: the frame of the annotations where an image's EXIF orientation leaves two: "upright" or "stored";
                "auto": upright, with a warning.
            options: how image files, and label images, are read.
            val_fraction: hold out this fraction of train as val, see `hold_out`; 0: the folder has a val split.

        Raises:
            BadInput: see `find_split` and `__init__`; or `where` leaves no image; or `val_fraction` is given for a
                folder with a val split.
        """
        if val_fraction and split in ("train", "val"):
            refuse_val_split(data_dir)
            whole = cls.open(data_dir, "train", transform, degenerate, where, exif=exif, options=options)
            return whole.hold_out(val_fraction)[split == "val"]
        on_issue = drop_degenerate if degenerate == "drop" else raise_issue
        dataset = cls(find_split(data_dir, split), transform, on_issue, where, exif=exif, options=options)
        objects, parts = len(dataset._content.dropped), dataset._content.dropped_parts
        for count, name in ((objects, "objects"), (parts, "polygons of objects")):
            if count:
                dataset.layout += f"; {count} degenerate {name} of {split} left out"
        return dataset

    def hold_out(self, fraction: float) -> tuple[CocoInstances, CocoInstances]:
        """Divide the images into train and val by their content, near-duplicates on one side; see `divide`.

        Raises:
            BadInput: there are fewer than two images that are not near-duplicates, or one cannot be read.
        """
        parts = divide([self.image_path(i) for i in range(len(self))], {"val": fraction})
        train, val = self.select(parts["train"]), self.select(parts["val"])
        train.layout = val.layout = f"{self.layout}; {len(val)} of {len(self)} images held out as val"
        return train, val

    def select(self, indices: Sequence[int]) -> CocoInstances:
        """Return the data set of some of the images."""
        part = copy.copy(self)
        part._content = self._content.select(indices)
        part.image_ids, part.sizes = part._content.image_ids, part._content.sizes
        part._file_names = [self._file_names[i] for i in indices]
        return part

    @property
    def ground_truth(self) -> AnnotationFile:
        """The checked annotations, crowds included, as an evaluator takes them."""
        return self._content

    @property
    def leaves_out(self) -> bool:
        """Whether degenerate objects, or polygons of objects, are left out."""
        return bool(self._content.dropped or self._content.dropped_parts)

    def warning_lines(self) -> list[str]:
        """Return a line for each kind of doubtful annotation."""
        return warning_lines(self.warnings)

    def _part(self, content: Content) -> Content:
        return content if self._where is None else content_where(content, self._where, self.annotations_file)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Item with draws from torch's global generator."""
        seed = int(torch.randint(2**62, ()))
        return self.sample(index, torch.Generator().manual_seed(seed))

    def sample(self, index: int, generator: torch.Generator) -> tuple[Tensor, Target]:
        """Item whose random draws come from `generator` alone.

        Raises:
            BadInput: the image is damaged or has not the size that the annotations say; names the file.
        """
        return self.transform(self.image(index), self.annotations(index), generator, self)

    def annotations(self, index: int) -> GroundTruth:
        """Return the objects of item `index` in the file's frame without crowds, masks not painted."""
        return self._content.annotations[index].without_crowds()

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of images, and digests of their files' names and of all annotations."""
        names = hashlib.sha256(json.dumps(self._file_names).encode()).hexdigest()
        return {"images": len(self), "file names": names, "annotations": self._content.annotations.digest()}

    def image_path(self, index: int) -> Path:
        """File of item `index`."""
        return self.images_dir / self._file_names[index]

    def image(self, index: int) -> Tensor:
        """ImageSource of item `index`, uint8 `[3, H, W]`, in the frame of its annotations.

        Tools disagree on images that carry an EXIF rotation: some annotate them upright, some as stored.
        The size in the annotation file decides; where both fit, `exif` does, by default upright.
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

    def _report_files(self, found: ImageFiles, written: Sequence[str], on_issue: OnIssue) -> None:
        """Report images without a certain file, and once all whose name is spelled differently."""
        for index in found.missing:
            near = f" (the most similar name is {found.nearest[index]})" if index in found.nearest else ""
            message = (
                f"{self.image_path(index)}: no such file, but image {self.image_ids[index]} of "
                f"{self.annotations_file} names it; add it{near}"
            )
            on_issue(Problem("missing image", message))
        for index, rivals in found.uncertain.items():
            message = f"image {self.image_ids[index]} names {written[index]!r}, which is not certain"
            advice = f"it may also be that of {', '.join(rivals[:3])}; write the name of one file"
            on_issue(Problem("missing image", f"{self.annotations_file}: {message}: {advice}"))
        respelled = [index for index in found.respelled if index not in found.uncertain]
        if respelled:
            first = respelled[0]
            message = f"{len(respelled)} names of images are read as those of existing files"
            example = f"{written[first]!r} as {str(self.image_path(first))!r}"
            on_issue(Problem("image name", f"{self.annotations_file}: {message}, {example}", fatal=False))
        for line in report_defaults(map(self.image_path, range(len(self))), self.options, read_extent):
            on_issue(Problem("several pages", line, fatal=False))


def open_train_val(
    data_dir: str | Path, config: DataConfig, transform: Transform, options: ReadOptions = DEFAULT_READING
) -> tuple[CocoInstances, CocoInstances]:
    """Open both splits of a folder as a recipe's data section says: train with its random views, val without.

    Args:
        options: how image files are read.

    Raises:
        BadInput: see `CocoInstances.open`.
    """
    how: dict[str, Any] = {
        "degenerate": config.degenerate,
        "where": config.where,
        "exif": config.exif,
        "options": options,
    }
    if config.val_fraction:
        refuse_val_split(data_dir)
        whole = CocoInstances.open(data_dir, "train", **how)
        train, val = whole.hold_out(config.val_fraction)
        train.transform = transform
        return train, val
    train = CocoInstances.open(data_dir, "train", transform, **how)
    return train, CocoInstances.open(data_dir, "val", **how)


def refuse_val_split(data_dir: str | Path) -> None:
    """Refuse to hold out images where a folder has a val split of its own.

    Raises:
        BadInput: it has.
    """
    if has_split(data_dir, "val"):
        raise BadInput(
            f"{data_dir}: has a val split of its own, so nothing is held out; use it without --val-fraction"
        )


def check_same_classes(train: CocoInstances, val: CocoInstances) -> None:
    """Both splits must have the same categories: labels are places in their list.

    Raises:
        BadInput: they differ.
    """
    ours, theirs = (list(zip(s.category_ids, s.class_names, strict=True)) for s in (train, val))
    if ours != theirs:
        raise BadInput(
            f"{val.annotations_file}: its categories {theirs[:8]} are not those of train, "
            f"{ours[:8]}; give both splits the same list"
        )
