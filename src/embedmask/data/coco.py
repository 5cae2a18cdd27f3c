"""The data set: the items that training and evaluation see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from embedmask.config.data import Degenerate, Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.annotations import Annotations, Content, check_annotations
from embedmask.data.images import read_extent, read_image, size_of
from embedmask.data.layouts import ROBOFLOW_FILE, SplitFiles, find_split
from embedmask.data.pages import note_defaults
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
        notes: what is left out, and what else the user should hear, a line each; `layout` says it too.
        annotations_file: where the ground truth comes from; for messages.
    """

    def __init__(
        self,
        files: SplitFiles,
        transform: Transform | None = None,
        note: Note = refuse,
        where: str | None = None,
        *,
        options: ReadOptions = DEFAULT_READING,
    ) -> None:
        """Read and check the annotations, and that every picture is there.

        Args:
            files: where the split lies.
            transform: makes the item; None: the whole picture at its own size.
            note: is told of every problem; by default the first that is fatal is raised.
            where: as in `open`.
            options: how image files, and label images, are read.

        Raises:
            BadInput: see `check_annotations`; or a picture is missing, or `where` leaves none.
        """
        self.annotations_file = files.annotations
        self.images_dir = files.images
        self.layout = files.layout
        self.transform: Transform = transform or EvalTransform(None, 0)
        self.options = options
        self.notes: list[str] = []
        self._where = where
        content = check_annotations(self._part(files.read(note, options)), self.annotations_file, note)
        self.class_names = content.class_names
        self.category_ids = content.category_ids
        self.image_ids = content.image_ids
        self.sizes = content.sizes
        self._file_names = content.file_names
        self._annotations = content.annotations
        self._dropped = content.dropped
        self._check_files(note)

    @classmethod
    def open(
        cls,
        data_dir: str | Path,
        split: Split,
        transform: Transform | None = None,
        degenerate: Degenerate = "refuse",
        where: str | None = None,
        *,
        options: ReadOptions = DEFAULT_READING,
    ) -> CocoInstances:
        """The split of a folder, see `find_split`.

        Args:
            data_dir: the folder.
            split: which of its splits.
            transform: makes the item; None: the whole picture at its own size.
            degenerate: whether objects that cover nothing are refused, or left out; `layout` says how many.
            where: `KEY=VALUE`, only the pictures whose record in the annotation file says so; None: all.
            options: how image files, and label images, are read.

        Raises:
            BadInput: see `find_split` and `__init__`; or `where` leaves no picture.
        """
        decide = drop_degenerate if degenerate == "drop" else refuse
        notes: list[str] = []

        def note(problem: Problem) -> None:
            if problem.kind in TOLD:
                notes.append(problem.message)
            decide(problem)

        dataset = cls(find_split(data_dir, split), transform, note, where, options=options)
        if dataset._dropped:
            notes.insert(0, f"{len(dataset._dropped)} degenerate objects of {split} left out")
        dataset.notes = notes
        dataset.layout = "; ".join((dataset.layout, *notes))
        return dataset

    @property
    def ground_truth(self) -> Path | dict[str, Any]:
        """What an evaluator compares with: a COCO file's path, or what such a file would hold.

        Crowds are in it; objects and categories that were left out are not.
        """
        if self.annotations_file.suffix != ".json":
            return self._as_coco()
        if not self._dropped and self._where is None and self.annotations_file.name != ROBOFLOW_FILE:
            return self.annotations_file
        content = self._part(json.loads(self.annotations_file.read_text(encoding="utf-8")))
        dropped = set(self._dropped)
        kept = [entry for i, entry in enumerate(content["annotations"]) if i not in dropped]
        categories = [entry for entry in content["categories"] if entry["id"] in self.category_ids]
        return {**content, "annotations": kept, "categories": categories}

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
        upright = read_image(path, options=self.options)
        if size_of(upright) == expected:
            return upright
        stored = read_image(path, upright=False, options=self.options)
        if size_of(stored) == expected:
            return stored
        raise BadInput(
            f"{path}: is {size_of(upright)} (height, width), but {self.annotations_file} says {expected} for "
            f"image {self.image_ids[index]}; correct the file or its annotations"
        )

    def _check_files(self, note: Note) -> None:
        for index, image_id in enumerate(self.image_ids):
            path = self.image_path(index)
            if not path.is_file():
                message = (
                    f"{path}: no such file, but image {image_id} of {self.annotations_file} names it; add it"
                )
                note(Problem("missing image", message))
        for line in note_defaults(map(self.image_path, range(len(self))), self.options, read_extent):
            note(Problem("several pages", line, fatal=False))


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
