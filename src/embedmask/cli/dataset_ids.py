"""`predict --ids-from`: results that carry the image and category ids of a data set, so that they can be evaluated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedmask.cli.sources import Source
from embedmask.config.data import Split
from embedmask.data.coco import CocoInstances
from embedmask.data.layouts import SPLITS, find_split
from embedmask.errors import BadInput
from embedmask.evaluation.run import match_classes


@dataclass(frozen=True)
class DatasetIds:
    """Ids of a data set.

    Attributes:
        images: image id of each source, by the name of its results.
        categories: category id of each label, C.
        class_names: of the model, C.
    """

    images: dict[str, int]
    categories: list[int]
    class_names: list[str]

    @classmethod
    def read(cls, folder: Path, sources: Sequence[Source], class_names: Sequence[str]) -> DatasetIds:
        """Find each source among the images of a data set: by its path, else by a file name that only one image has.

        Args:
            folder: of a data set, with any layout; all its splits are looked through.
            class_names: of the model.

        Raises:
            BadInput: a source that the data set lacks or that fits several images, a video, sources of two splits
                with one id, or a class of the data set that the model lacks.
        """
        sets = [CocoInstances.open(folder, split, degenerate="drop") for split in _splits(folder)]
        names = list(class_names)
        known = _lookup(sets)
        ids = {source.name: _image_id(source, known, folder) for source in sources}
        owner: dict[int, Source] = {}
        for source in sources:
            first = owner.setdefault(ids[source.name], source)
            if first is not source:
                raise BadInput(
                    f"--ids-from: {first.path} and {source.path} both have image id {ids[source.name]}, in two "
                    "splits; predict the images of one split"
                )
        return cls(ids, match_classes(names, sets[0]), names)


def _splits(folder: Path) -> list[Split]:
    found: list[Split] = []
    for split in SPLITS:
        try:
            find_split(folder, split)
        except BadInput:
            continue
        found.append(split)
    if not found:
        find_split(folder, "val")  # says what is missing
    return found


def _lookup(sets: Iterable[CocoInstances]) -> dict[str, set[int]]:
    """Image ids by resolved path and by file name."""
    ids: dict[str, set[int]] = defaultdict(set)
    for dataset in sets:
        for index, image_id in enumerate(dataset.image_ids):
            path = dataset.image_path(index).resolve()
            ids[str(path)].add(image_id)
            ids[path.name].add(image_id)
    return ids


def _image_id(source: Source, ids: dict[str, set[int]], folder: Path) -> int:
    if source.is_video:
        raise BadInput(f"{source.path}: a video has no image id in {folder}; leave out --ids-from")
    found = ids.get(str(source.path.resolve())) or ids.get(source.path.name) or set()
    if len(found) != 1:
        fault = "is in no split of" if not found else "has the file name of several images of"
        raise BadInput(f"{source.path}: {fault} {folder}; predict its own files, or leave out --ids-from")
    return next(iter(found))
