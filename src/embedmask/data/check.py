"""Everything that is wrong with a data set, in one report; training stops at the first of the same problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.config.data import Degenerate, Exif, Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.check_images import Copies, look_at_all
from embedmask.data.check_masks import MaskCheck
from embedmask.data.coco import CocoInstances, check_same_classes, refuse_val_split
from embedmask.data.exif import mixed_frames
from embedmask.data.layouts import find_split
from embedmask.data.problems import DEGENERATE, KINDS, Example, Kind, OnIssue, Problem
from embedmask.errors import BadInput

CHECKED: tuple[Split, ...] = ("train", "val", "test")
Sizes = tuple[int, int, int]
"""Number of small, medium and large objects."""
THIN = 30
"""An image that is so many times longer than wide is named."""
NUM_EXAMPLES = 8
"""Of each kind of problem, kept to be drawn."""


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds.

    Attributes:
        layout: how its folder was recognised.
        num_images: images.
        num_empty: images without objects.
        most: objects of the image with the most.
        counts: of each class, by area as in AP; crowds are not counted.
    """

    layout: str
    num_images: int
    num_empty: int
    most: int
    counts: dict[str, Sizes]


@dataclass
class Report:
    """What was found.

    Attributes:
        splits: a summary of each split that could be read.
        problems: in the order in which they were met.
        datasets: the splits that could be read.
        examples: some of each kind of problem that can be drawn, each with its split.
    """

    splits: dict[str, SplitSummary] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    datasets: dict[Split, CocoInstances] = field(default_factory=dict)
    examples: dict[Kind, list[tuple[Split, Example]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, split: Split, degenerate: Degenerate, problem: Problem) -> None:
        """Keep a problem of a split; training does not read test."""
        harmless = split == "test" or (degenerate == "drop" and problem.kind in DEGENERATE)
        problem = replace(problem, fatal=problem.fatal and not harmless)
        if problem.example is not None and len(self.examples[problem.kind]) < NUM_EXAMPLES:
            self.examples[problem.kind].append((split, problem.example))
        self.problems.append(replace(problem, example=None))  # masks would take memory

    @property
    def fatal(self) -> bool:
        """Whether training would stop."""
        return any(problem.fatal for problem in self.problems)

    def by_kind(self) -> list[tuple[Kind, list[Problem]]]:
        """The problems of each kind, those that stop training first."""
        kinds: dict[tuple[bool, Kind], list[Problem]] = defaultdict(list)
        for problem in self.problems:
            kinds[not problem.fatal, problem.kind].append(problem)
        order = sorted(kinds, key=lambda key: (key[0], KINDS.index(key[1])))
        return [(key[1], kinds[key]) for key in order]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, of which JSON can be written."""
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
    """Look for every problem of train, val and test.

    Missing, broken and wrongly sized images, objects and records that cannot be used, classes that no
    object has, crowded images, and images that two splits, or one twice, have in common: equal pixels,
    whatever the file. Masks to look at: see `check_masks`; images whose frame EXIF leaves open: see `exif`; turned
    copies with the objects of each other: see `turned_copies`.

    Args:
        folder: data set of any layout, see `find_split`.
        max_detections: images with more objects are named: a model would miss the rest.
        degenerate: "drop": objects that cover nothing do not stop training.
        exif: as `DataConfig.exif`: "auto" warns of images that may be annotated upright or as stored.
        quick: of images, read the header and compare the bytes of the files; they are not decoded, so a file
            that is cut short, the same image stored in another way, or a turned copy is not seen.
        workers: threads that read images; None: one a core.
        options: how image files are read.
        progress: is told how many of all images have been read.
        val_fraction: of train, held out as val; 0: there is a val split.

    Raises:
        BadInput: no such folder, or less than one thread.
    """
    if workers is not None and workers < 1:
        raise BadInput(f"--workers must be at least 1, got {workers}")
    report = Report()
    if val_fraction:
        refuse_val_split(folder)
    handlers: dict[Split, OnIssue] = {split: partial(report.add, split, degenerate) for split in CHECKED}
    for split, on_issue in handlers.items():
        masks = MaskCheck(on_issue)
        for part, dataset in _open(
            folder, split, on_issue, masks, exif=exif, options=options, val_fraction=val_fraction
        ).items():
            report.datasets[part] = dataset
            report.splits[part] = _summarize(dataset, masks, max_detections, handlers[part])
    sets = report.datasets
    report.problems += _between_splits(sets)
    copies = Copies(sets, handlers)
    total = sum(map(len, sets.values()))
    for done, (place, found) in enumerate(look_at_all(sets, quick, workers), start=1):
        if isinstance(found, Problem):
            handlers[place[0]](found)
        elif found is not None:
            copies.add(place, found)
        progress(done, total)
    copies.compare_turned()
    return report


def _between_splits(sets: Mapping[Split, CocoInstances]) -> Iterator[Problem]:
    if "train" in sets and "val" in sets:
        try:
            check_same_classes(sets["train"], sets["val"])
        except BadInput as error:
            yield Problem("different classes", str(error))
    mixed = mixed_frames({split: dataset.frames for split, dataset in sets.items()})
    if mixed is not None:
        yield mixed


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
    """Open a split; with `val_fraction`, train and the part of it that is held out as val."""
    if split == "val" and val_fraction:
        return {}  # it came with train
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
    dataset: CocoInstances, masks: MaskCheck, max_detections: int, on_issue: OnIssue
) -> SplitSummary:
    numbers = [masks.per_image[image_id] for image_id in dataset.image_ids]
    for index, number in enumerate(numbers):
        path, (height, width) = dataset.image_path(index), dataset.sizes[index]
        if number > max_detections:
            kept = f"but {max_detections} detections are kept an image; raise max_detections"
            on_issue(Problem("crowded image", f"{path}: has {number} objects, {kept}", fatal=False))
        if max(height, width) > THIN * min(height, width):
            fault = "resizing leaves little of its short side, and its batch is padded to its long side"
            message = f"{path}: is {height} px high and {width} px wide; {fault}; cut it into pieces"
            on_issue(Problem("thin image", message, fatal=False))
    table = np.zeros((len(dataset.class_names), 3), dtype=np.int64)
    own = set(dataset.image_ids)
    for (image_id, label, size), count in masks.sizes.items():
        table[label, size] += count if image_id in own else 0
    counts: list[Sizes] = [(small, medium, large) for small, medium, large in table.tolist()]
    _report_unused(dataset, [sum(sizes) for sizes in counts], on_issue)
    named = dict(zip(dataset.ground_truth.distinct_names, counts, strict=True))
    return SplitSummary(dataset.layout, len(dataset), numbers.count(0), max(numbers, default=0), named)


def _report_unused(dataset: CocoInstances, counts: list[int], on_issue: OnIssue) -> None:
    where = dataset.annotations_file
    if not any(counts):
        on_issue(
            Problem("no objects", f"{where}: has no objects; there is nothing to learn from it", fatal=False)
        )
        return
    for count, number, name in zip(counts, dataset.category_ids, dataset.class_names, strict=True):
        if not count:
            message = f"{where}: no object has category {number} ({name}); add some or remove the category"
            on_issue(Problem("unused category", message, fatal=False))
