"""The data set: the items that training and evaluation see."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedmask.config.data import DataConfig, Degenerate, Split
from embedmask.data.annotations import (
    Annotations,
    Content,
    PackedAnnotations,
    check_annotations,
    read_coco,
)
from embedmask.data.image_files import ImageFiles, find_image_files
from embedmask.data.images import read_image, size_of
from embedmask.data.layouts import ROBOFLOW_FILE, SplitFiles, find_split, has_split
from embedmask.data.near_duplicates import divide
from embedmask.data.problems import TOLD, Note, Problem, drop_degenerate, refuse
from embedmask.data.segmentation import to_coco
from embedmask.data.subset import content_where
from embedmask.data.transforms import EvalTransform, Transform
from embedmask.errors import BadInput
from embedmask.structures import Target


class CocoInstances(Dataset[tuple[Tensor, Target]]):
    """Pictures with instance masks.

    Item i is `(image uint8 [3, H, W] RGB, Target)` after the transform; G = 0 without objects.

    Attributes:
        class_names: names of labels 0..C-1.
        category_ids: the file's category id of each label, ascending.
        image_ids: the file's id of each item.
        sizes: `(height, width)` of each item's picture, from the annotation file.
        layout: how its folder was recognised, for one line to the user; empty where no folder was looked at.
        annotations_file: where the ground truth comes from; for messages.
    """

    def __init__(
        self,
        files: SplitFiles,
        transform: Transform | None = None,
        note: Note = refuse,
        where: str | None = None,
    ) -> None:
        """Read and check the annotations, and that every picture is there.

        Args:
            files: where the split lies.
            transform: makes the item; None: the whole picture at its own size.
            note: is told of every problem; by default the first that is fatal is raised.
            where: as in `open`.

        Raises:
            BadInput: see `check_annotations`; or a picture is missing, or `where` leaves none.
        """
        self.annotations_file = files.annotations
        self.layout = files.layout
        self.transform: Transform = transform or EvalTransform(None, 0)
        self._where = where
        self._is_part = False
        content = check_annotations(self._part(files.read(note)), self.annotations_file, note)
        self.class_names = content.class_names
        self.category_ids = content.category_ids
        self.image_ids = content.image_ids
        self.sizes = content.sizes
        self._annotations = content.annotations
        self._dropped = content.dropped
        found = find_image_files(content.file_names, files.images, files.others)
        self.images_dir, self._file_names = found.folder, found.names
        has_place = files.images not in files.others
        if not has_place or found.folder != files.images:
            place = found.common_folder()
            if not has_place or not place.is_relative_to(files.images):
                self.layout += f" with images in {os.path.relpath(place, files.root)}/"
        self._note_files(found, content.file_names, note)

    @classmethod
    def open(
        cls,
        data_dir: str | Path,
        split: Split,
        transform: Transform | None = None,
        degenerate: Degenerate = "refuse",
        where: str | None = None,
        *,
        val_fraction: float = 0.0,
    ) -> CocoInstances:
        """Open a split of a folder, see `find_split`.

        Args:
            data_dir: the folder.
            split: which of its splits.
            transform: makes the item; None: the whole picture at its own size.
            degenerate: whether objects that cover nothing are refused, or left out; `layout` says how many.
            where: `KEY=VALUE`, only the pictures whose record in the annotation file says so; None: all.
            val_fraction: hold out this fraction of train as val, see `hold_out`; 0: the folder has a val split.

        Raises:
            BadInput: see `find_split` and `__init__`; or `where` leaves no picture; or `val_fraction` is given for a
                folder with a val split.
        """
        if val_fraction and split in ("train", "val"):
            refuse_val_split(data_dir)
            whole = cls.open(data_dir, "train", transform, degenerate, where)
            return whole.hold_out(val_fraction)[split == "val"]
        remarks: list[str] = []

        def tell(problem: Problem) -> None:
            if problem.kind in TOLD and not problem.fatal:
                remarks.append(problem.message)
            (drop_degenerate if degenerate == "drop" else refuse)(problem)

        dataset = cls(find_split(data_dir, split), transform, tell, where)
        if dataset._dropped:
            remarks.append(f"{len(dataset._dropped)} degenerate objects of {split} left out")
        dataset.layout = "; ".join((dataset.layout, *remarks))
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
        part._is_part = True
        part.image_ids = [self.image_ids[i] for i in indices]
        part.sizes = [self.sizes[i] for i in indices]
        part._file_names = [self._file_names[i] for i in indices]
        part._annotations = PackedAnnotations(map(self.annotations, indices))
        return part

    @property
    def ground_truth(self) -> Path | dict[str, Any]:
        """What an evaluator compares with: a COCO file's path, or what such a file would hold.

        Crowds are in it; objects and categories that were left out are not.
        """
        if self.annotations_file.suffix != ".json":
            return self._as_coco()
        is_whole = not self._dropped and self._where is None and not self._is_part
        if is_whole and self.annotations_file.name != ROBOFLOW_FILE:
            return self.annotations_file
        content = self._part(read_coco(self.annotations_file, compact=False))
        dropped, ids = set(self._dropped), set(self.image_ids)
        kept = [entry for i, entry in enumerate(content["annotations"]) if i not in dropped]
        return {
            **content,
            "images": [entry for entry in content["images"] if entry["id"] in ids],
            "annotations": [entry for entry in kept if entry["image_id"] in ids],
            "categories": [entry for entry in content["categories"] if entry["id"] in self.category_ids],
        }

    def _part(self, content: Content) -> Content:
        return content if self._where is None else content_where(content, self._where, self.annotations_file)

    def _as_coco(self) -> dict[str, Any]:
        """The ground truth in the form of a COCO file, made when asked for: as lists it is large."""
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(
                self.image_ids, self._file_names, self.sizes, strict=True
            )
        ]
        annotations = [
            {
                "image_id": item.image_id,
                "category_id": self.category_ids[label],
                "segmentation": to_coco(mask),
            }
            for item in map(self.annotations, range(len(self)))
            for label, mask in zip(item.labels.tolist(), item.segmentations, strict=True)
        ]
        for number, entry in enumerate(annotations, start=1):
            entry["id"] = number
        names = zip(self.category_ids, self.class_names, strict=True)
        categories = [{"id": number, "name": name} for number, name in names]
        return {"images": images, "annotations": annotations, "categories": categories}

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
        return self.transform(self.image(index), self.annotations(index), generator, self)

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
        if size_of(upright) == expected:
            return upright
        stored = read_image(path, upright=False)
        if size_of(stored) == expected:
            return stored
        raise BadInput(
            f"{path}: is {size_of(upright)} (height, width), but {self.annotations_file} says {expected} for "
            f"image {self.image_ids[index]}; correct the file or its annotations"
        )

    def _note_files(self, found: ImageFiles, written: Sequence[str], note: Note) -> None:
        """Report images without a certain file, and once all whose name is spelled differently."""
        for index in found.missing:
            near = f" (the most similar name is {found.nearest[index]})" if index in found.nearest else ""
            message = (
                f"{self.image_path(index)}: no such file, but image {self.image_ids[index]} of "
                f"{self.annotations_file} names it; add it{near}"
            )
            note(Problem("missing image", message))
        for index, rivals in found.uncertain.items():
            message = f"image {self.image_ids[index]} names {written[index]!r}, which is not certain"
            advice = f"it may also be that of {', '.join(rivals[:3])}; write the name of one file"
            note(Problem("missing image", f"{self.annotations_file}: {message}: {advice}"))
        respelled = [index for index in found.respelled if index not in found.uncertain]
        if respelled:
            first = respelled[0]
            message = f"{len(respelled)} names of images are read as those of existing files"
            example = f"{written[first]!r} as {str(self.image_path(first))!r}"
            note(Problem("image name", f"{self.annotations_file}: {message}, {example}", fatal=False))


def open_train_val(
    data_dir: str | Path, config: DataConfig, transform: Transform
) -> tuple[CocoInstances, CocoInstances]:
    """Open both splits of a folder as a recipe's data section says: train with its random views, val without.

    Raises:
        BadInput: see `CocoInstances.open`.
    """
    degenerate, where = config.degenerate, config.where
    if config.val_fraction:
        refuse_val_split(data_dir)
        whole = CocoInstances.open(data_dir, "train", degenerate=degenerate, where=where)
        train, val = whole.hold_out(config.val_fraction)
        train.transform = transform
        return train, val
    train = CocoInstances.open(data_dir, "train", transform, degenerate, where)
    return train, CocoInstances.open(data_dir, "val", degenerate=degenerate, where=where)


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
