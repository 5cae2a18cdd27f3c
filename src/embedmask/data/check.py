"""Check a data set and report all of its problems; training stops at the first fatal one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.config.data import Degenerate, Exif, Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.check_images import check_images
from embedmask.data.check_masks import MaskCheck
from embedmask.data.coco import CocoInstances, check_no_val_split, check_same_classes
from embedmask.data.exif import mixed_frames
from embedmask.data.layouts import find_split
from embedmask.data.problems import DEGENERATE, PROBLEM_TYPES, Example, OnIssue, Problem, ProblemType
from embedmask.errors import BadInput

CHECKED: tuple[Split, ...] = ("train", "val", "test")
Sizes = tuple[int, int, int]
"""Number of small, medium and large objects."""
THIN = 30
"""Aspect ratio above which an image is reported."""
NUM_EXAMPLES = 8
"""Number of drawable examples stored for each type of problem."""


@dataclass(frozen=True)
class SplitSummary:
    """Number of images and objects of a split.

    Attributes:
        layout: recognized layout of the folder.
        num_images: number of images.
        num_empty: number of images without objects.
        most: largest number of objects in an image.
        counts: number of objects of each class by size, with the size limits of AP; crowds are not counted.
    """

    layout: str
    num_images: int
    num_empty: int
    most: int
    counts: dict[str, Sizes]


@dataclass
class Report:
    """Result of a check.

    Attributes:
        splits: summary of each split that could be read.
        problems: problems in the order in which they were detected.
        datasets: data set of each split that could be read.
        examples: some drawable examples of each type of problem, each with its split.
    """

    splits: dict[str, SplitSummary] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    datasets: dict[Split, CocoInstances] = field(default_factory=dict)
    examples: dict[ProblemType, list[tuple[Split, Example]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, split: Split, degenerate: Degenerate, problem: Problem) -> None:
        """Add a problem of a split. Problems that do not stop training are not fatal."""
        # training does not read the test split
        harmless = split == "test" or (degenerate == "drop" and problem.kind in DEGENERATE)
        problem = replace(problem, fatal=problem.fatal and not harmless)
        if problem.example is not None and len(self.examples[problem.kind]) < NUM_EXAMPLES:
            self.examples[problem.kind].append((split, problem.example))
        self.problems.append(replace(problem, example=None))  # without the mask, to save memory

    @property
    def fatal(self) -> bool:
        """Return whether training would stop."""
        return any(problem.fatal for problem in self.problems)

    def by_kind(self) -> list[tuple[ProblemType, list[Problem]]]:
        """Return the problems of each type, those that stop training first."""
        kinds: dict[tuple[bool, ProblemType], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            kinds[not problem.fatal, problem.kind].append(problem)
        order = sorted(kinds, key=lambda key: (key[0], PROBLEM_TYPES.index(key[1])))
        return [(key[1], kinds[key]) for key in order]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that can be written as JSON."""
        splits = {split: asdict(summary) for split, summary in self.splits.items()}
        problems = [{"kind": p.kind, "message": p.message, "fatal": p.fatal} for p in self.problems]
        return {"fatal": self.fatal, "splits": splits, "problems": problems}


def check_folder(
    folder: Path,
    *,
    max_detections: int = 100,
    degenerate: Degenerate = "refuse",
    exif: Exif = "auto",
    quick: bool = False,
    workers: int | None = None,
    options: ReadOptions = DEFAULT_READING,
    progress: Callable[[int, int], None] = lambda done, total: None,
    val_fraction: float = 0.0,
) -> Report:
    """Check the train, val and test splits of a data set.

    Reports missing, broken and wrongly sized images; objects and records that cannot be used; classes without
    objects; crowded and very thin images; images with equal pixels, in one split or in two; doubtful masks (see
    `check_masks`); images whose EXIF orientation is ambiguous (see `exif`); and turned copies with the objects of the
    other image (see `turned_copies`).

    Args:
        folder: data set of any layout, see `find_split`.
        max_detections: images with more objects are reported, because a model would miss the rest.
        degenerate: "drop" if objects that cover no pixel should not stop training.
        exif: as `DataConfig.exif`; "auto" warns about images that may be annotated upright or as stored.
        quick: read only the headers of images and compare the bytes of the files. Truncated files, images stored in
            another way and turned copies are then not detected.
        workers: number of threads that read images; None for one per core.
        progress: called with the number of images read so far and the total.
        val_fraction: fraction of train that is held out as val; 0 if there is a val split.

    Raises:
        BadInput: the folder does not exist, `workers` is less than 1, or `val_fraction` is set for a folder with a
            val split.
    """
    if workers is not None and workers < 1:
        raise BadInput(f"--workers must be at least 1, got {workers}")
    report = Report()
    if val_fraction:
        check_no_val_split(folder)
    handlers: dict[Split, OnIssue] = {split: partial(report.add, split, degenerate) for split in CHECKED}
    for split, on_issue in handlers.items():
        masks = MaskCheck(on_issue)
        opened = _open(folder, split, on_issue, masks, exif=exif, options=options, val_fraction=val_fraction)
        for part, dataset in opened.items():
            report.datasets[part] = dataset
            report.splits[part] = _summarize(dataset, masks, max_detections, handlers[part], part == "train")
    sets = report.datasets
    if "train" in sets and "val" in sets:
        try:
            check_same_classes(sets["train"], sets["val"])
        except BadInput as error:
            report.problems.append(Problem("different classes", str(error)))
    mixed = mixed_frames({split: dataset.frames for split, dataset in sets.items()})
    if mixed is not None:
        report.problems.append(mixed)
    check_images(sets, handlers, quick=quick, workers=workers, progress=progress)
    return report


def _open(
    folder: Path,
    split: Split,
    on_issue: OnIssue,
    masks: MaskCheck,
    *,
    exif: Exif,
    options: ReadOptions,
    val_fraction: float,
) -> dict[Split, CocoInstances]:
    """Open a split; with `val_fraction`, opening train returns train and the part held out as val.

    Problems are reported, and splits that cannot be read are left out of the result.
    """
    if split == "val" and val_fraction:
        return {}  # returned with train
    try:
        files = find_split(folder, split)
    except BadInput as error:
        if not folder.is_dir():
            raise
        if split != "test":
            on_issue(Problem("missing split", str(error)))
        return {}
    try:
        dataset = CocoInstances(files, on_issue=on_issue, exif=exif, options=options, inspect=masks)
        masks.finish()
        if split == "train" and val_fraction:
            train, val = dataset.hold_out(val_fraction)
            return {"train": train, "val": val}
    except BadInput as error:
        on_issue(Problem("unreadable annotations", str(error)))
        return {}
    return {split: dataset}


def _summarize(
    dataset: CocoInstances, masks: MaskCheck, max_detections: int, on_issue: OnIssue, needs_objects: bool
) -> SplitSummary:
    """Count the images and objects of a split; report crowded and thin images and classes without objects."""
    # number of objects by image, and by label and size, [C, 3]; train and val held out of it share one `masks`
    per_image = dict.fromkeys(dataset.image_ids, 0)
    table = np.zeros((len(dataset.class_names), 3), dtype=np.int64)
    for (image_id, label, size), count in masks.sizes.items():
        if image_id in per_image:
            per_image[image_id] += count
            table[label, size] += count
    numbers = list(per_image.values())
    for index, number in enumerate(numbers):
        path, (height, width) = dataset.image_path(index), dataset.sizes[index]
        if number > max_detections:
            fault = f"but at most {max_detections} detections are returned per image; raise max_detections"
            on_issue(Problem("crowded image", f"{path}: has {number} objects, {fault}", fatal=False))
        if max(height, width) > THIN * min(height, width):
            fault = "resizing leaves little of its short side, and its batch is padded to its long side"
            message = f"{path}: is {height} px high and {width} px wide; {fault}; cut it into pieces"
            on_issue(Problem("thin image", message, fatal=False))
    counts: list[Sizes] = [(small, medium, large) for small, medium, large in table.tolist()]
    where = dataset.annotations_file
    if not any(numbers):
        purpose = "learn" if needs_objects else "evaluate"
        message = f"{where}: has no objects, so there is nothing to {purpose}; add annotations"
        on_issue(Problem("no objects", message, fatal=needs_objects))
    for sizes, number, name in zip(counts, dataset.category_ids, dataset.class_names, strict=True):
        if any(numbers) and not any(sizes):
            message = f"{where}: no object has category {number} ({name}); add some or remove the category"
            on_issue(Problem("unused category", message, fatal=False))
    named = dict(zip(dataset.ground_truth.distinct_names, counts, strict=True))
    return SplitSummary(dataset.layout, len(dataset), numbers.count(0), max(numbers, default=0), named)
