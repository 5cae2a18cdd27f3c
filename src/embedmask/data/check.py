"""Everything that is wrong with a data set, in one report; training stops at the first of the same problems."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.config.data import Degenerate, Split
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.coco import CocoInstances, check_same_classes
from embedmask.data.images import read_image, read_size, size_of
from embedmask.data.layouts import find_split
from embedmask.data.problems import DEGENERATE, KINDS, Kind, Note, Problem
from embedmask.errors import BadInput
from embedmask.structures import Size

CHECKED: tuple[Split, ...] = ("train", "val", "test")
SMALL, MEDIUM = 32**2, 96**2
"""Areas from which objects are medium and large for COCO, px²."""
CHUNK = 512
"""Pictures that wait for a thread."""
Sizes = tuple[int, int, int]
"""Number of small, medium and large objects."""


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds.

    Attributes:
        layout: how its folder was recognised.
        num_images: pictures.
        num_empty: pictures without objects.
        most: objects of the picture with the most.
        counts: of each class, by the area of the mask; crowds are not counted.
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
    """

    splits: dict[str, SplitSummary] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

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
        """Plain values."""
        return {"fatal": self.fatal, **asdict(self)}


def check_folder(
    folder: Path,
    *,
    max_detections: int = 100,
    degenerate: Degenerate = "refuse",
    quick: bool = False,
    workers: int | None = None,
    options: ReadOptions = DEFAULT_READING,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Look for every problem of train, val and test.

    Missing, broken and wrongly sized pictures, objects and records that cannot be used, classes that no
    object has, crowded pictures, and pictures that two splits, or one twice, have in common: equal pixels,
    whatever the file.

    Args:
        folder: data set of any layout, see `find_split`.
        max_detections: pictures with more objects are named: a model would miss the rest.
        degenerate: "drop": objects that cover nothing do not stop training.
        quick: of pictures, read the header and compare the bytes of the files; they are not decoded, so a file
            that is cut short, or the same picture stored in another way, is not seen.
        workers: threads that read pictures; None: one a core.
        options: how image files are read.
        progress: is told how many of all pictures have been read.

    Raises:
        BadInput: no such folder, or less than one thread.
    """
    if workers is not None and workers < 1:
        raise BadInput(f"--workers must be at least 1, got {workers}")
    report = Report()
    sets: dict[Split, CocoInstances] = {}
    notes = {split: partial(_note, report.problems, split, degenerate) for split in CHECKED}
    for split, note in notes.items():
        dataset = _open(folder, split, note, options)
        if dataset is not None:
            sets[split] = dataset
            report.splits[split] = _summarize(dataset, max_detections, note)
    if "train" in sets and "val" in sets:
        try:
            check_same_classes(sets["train"], sets["val"])
        except BadInput as error:
            report.problems.append(Problem("different classes", str(error)))
    total = sum(map(len, sets.values()))
    seen: dict[bytes, tuple[Split, Path]] = {}
    for done, (split, path, found) in enumerate(_look_at_all(sets, quick, workers), start=1):
        twin = _twin(seen, found, split, path) if isinstance(found, bytes) else found
        if twin is not None:
            notes[split](twin)
        progress(done, total)
    return report


def _note(problems: list[Problem], split: Split, degenerate: Degenerate, problem: Problem) -> None:
    """Keep a problem; training does not read test."""
    harmless = split == "test" or (degenerate == "drop" and problem.kind in DEGENERATE)
    problems.append(replace(problem, fatal=problem.fatal and not harmless))


def _open(folder: Path, split: Split, note: Note, options: ReadOptions) -> CocoInstances | None:
    try:
        files = find_split(folder, split)
    except BadInput as error:
        if not folder.is_dir():
            raise
        if split != "test":
            note(Problem("missing split", str(error)))
        return None
    try:
        return CocoInstances(files, note=note, options=options)
    except BadInput as error:
        note(Problem("unreadable annotations", str(error)))
        return None


def _summarize(dataset: CocoInstances, max_detections: int, note: Note) -> SplitSummary:
    counts = np.zeros((len(dataset.class_names), 3), dtype=np.int64)
    numbers = []
    for index in range(len(dataset)):
        item = dataset.annotations(index)
        areas = [mask.area() for mask in item.segmentations]
        np.add.at(counts, (item.labels, np.digitize(areas, (SMALL, MEDIUM))), 1)
        numbers.append(len(item))
        name = dataset.image_path(index)
        if len(item) > max_detections:
            message = f"{name}: has {len(item)} objects, but {max_detections} detections are kept an image"
            note(Problem("crowded image", f"{message}; raise max_detections", fatal=False))
        tiny = sum(area < 1 for area in areas)
        if tiny:
            message = f"{name}: has {tiny} objects smaller than a pixel, which teach nothing; look at them"
            note(Problem("tiny object", message, fatal=False))
    _note_unused(dataset, counts.sum(1).tolist(), note)
    named: dict[str, Sizes] = {}
    for class_name, (small, medium, large) in zip(dataset.class_names, counts.tolist(), strict=True):
        named[class_name] = (small, medium, large)
    return SplitSummary(dataset.layout, len(dataset), numbers.count(0), max(numbers, default=0), named)


def _note_unused(dataset: CocoInstances, counts: list[int], note: Note) -> None:
    where = dataset.annotations_file
    if not any(counts):
        note(
            Problem("no objects", f"{where}: has no objects; there is nothing to learn from it", fatal=False)
        )
        return
    for count, number, name in zip(counts, dataset.category_ids, dataset.class_names, strict=True):
        if not count:
            message = f"{where}: no object has category {number} ({name}); add some or remove the category"
            note(Problem("unused category", message, fatal=False))


def _look_at_all(
    sets: Mapping[Split, CocoInstances], quick: bool, workers: int | None
) -> Iterator[tuple[Split, Path, bytes | Problem | None]]:
    places = [(split, index) for split, dataset in sets.items() for index in range(len(dataset))]

    def look(place: tuple[Split, int]) -> tuple[Split, Path, bytes | Problem | None]:
        split, index = place
        return split, sets[split].image_path(index), _look(sets[split], index, quick)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # decoding leaves the interpreter free
        for start in range(0, len(places), CHUNK):
            yield from pool.map(look, places[start : start + CHUNK])


def _twin(seen: dict[bytes, tuple[Split, Path]], content: bytes, split: Split, path: Path) -> Problem | None:
    """A problem when the content was seen before; known from then on."""
    if content not in seen:
        seen[content] = (split, path)
        return None
    other, twin = seen[content]
    message = f"{path} of {split}: is the same picture as {twin} of {other}; remove one"
    return Problem("leak" if split != other else "same picture twice", message, fatal=False)


def _look(dataset: CocoInstances, index: int, quick: bool) -> bytes | Problem | None:
    """A hash of the picture, or what is wrong with it; None where it is missing, which is known already."""
    path = dataset.image_path(index)
    if not path.is_file():
        return None
    try:
        size, content = _read(path, quick, dataset.options)
    except BadInput as error:
        return Problem("broken image", str(error))
    if size != dataset.sizes[index]:
        try:
            dataset.image(index)  # it may be meant as it is stored, not upright
        except BadInput as error:
            return Problem("wrong size", str(error))
    return hashlib.blake2b(content, digest_size=16).digest()


def _read(path: Path, quick: bool, options: ReadOptions) -> tuple[Size, bytes]:
    """Size, upright, and what tells the picture from others."""
    if quick:
        return read_size(path, options), path.read_bytes()
    image = read_image(path, options=options)
    size = size_of(image)
    return size, repr(size).encode() + image.permute(1, 2, 0).numpy().tobytes()
