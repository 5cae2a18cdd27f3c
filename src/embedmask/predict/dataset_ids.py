"""`predict --ids-from`: results with the image and category ids of a data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedmask.config.data import Split
from embedmask.data.class_matching import match_classes
from embedmask.data.coco import CocoInstances
from embedmask.data.layouts import SPLITS, find_split
from embedmask.errors import BadInput
from embedmask.predict.sources import Source


@dataclass(frozen=True)
class DatasetIds:
    """Image and category ids of a data set, assigned to the sources and classes of a prediction.

    Attributes:
        images: Image id of each source, by `Source.name`.
        categories: Category id of each label of the model, C.
    """

    images: dict[str, int]
    categories: list[int]

    @classmethod
    def read(cls, folder: Path, sources: Sequence[Source], class_names: Sequence[str]) -> DatasetIds:
        """Match each source to an image of the data set, by path or else by unique file name; all splits are searched.

        Raises:
            BadInput: A source is a video, matches no image or several, or shares its id with another source; the model
                lacks a class of the data set; or the splits of the sources have different category ids.
        """
        datasets = [CocoInstances.open(folder, split, degenerate="drop") for split in existing_splits(folder)]
        # each image is entered twice, by resolved path and by file name: its path and id, and the data set that has it
        known: dict[str, dict[tuple[Path, int], CocoInstances]] = defaultdict(dict)
        for dataset in datasets:
            for index, image_id in enumerate(dataset.image_ids):
                path = dataset.image_path(index).resolve()
                known[str(path)].setdefault((path, image_id), dataset)
                known[path.name].setdefault((path, image_id), dataset)
        matches = {source.name: _find(source, known, folder) for source in sources}
        # splits may number their images independently, so ids of different splits can collide
        first_source: dict[int, Source] = {}
        for source in sources:
            image_id, dataset = matches[source.name]
            first = first_source.setdefault(image_id, source)
            if first is not source:
                is_same = matches[first.name][1] is dataset
                raise BadInput(
                    f"--ids-from: {first.path} and {source.path} both have image id {image_id}"
                    + (
                        "; predict one of them"
                        if is_same
                        else ", in two splits; predict the images of one split"
                    )
                )
        used = [dataset for dataset in datasets if any(dataset is own for _, own in matches.values())]
        categories = {dataset.annotations_file: match_classes(list(class_names), dataset) for dataset in used}
        (first_file, ids), *others = categories.items()
        for file, other in others:
            if other != ids:
                raise BadInput(
                    f"--ids-from: {first_file} and {file} have different category ids; predict the images of one split"
                )
        return cls({name: image_id for name, (image_id, _) in matches.items()}, ids)


def existing_splits(folder: Path) -> list[Split]:
    """Return the splits that the data set has.

    Raises:
        BadInput: The data set has no splits.
    """
    existing: list[Split] = []
    for split in SPLITS:
        try:
            find_split(folder, split)
        except BadInput:
            continue
        existing.append(split)
    if not existing:
        find_split(folder, "val")  # raises with the reason
    return existing


def _find(
    source: Source, known: Mapping[str, Mapping[tuple[Path, int], CocoInstances]], folder: Path
) -> tuple[int, CocoInstances]:
    """Return the image id of a source, and the data set that has it.

    Raises:
        BadInput: The source is a video, or matches no image or several.
    """
    if source.is_video:
        raise BadInput(f"{source.path}: a video has no image id in {folder}; omit --ids-from")
    # the path decides; a copy elsewhere is matched by its file name, if only one image has it
    images = known.get(str(source.path.resolve())) or known.get(source.path.name) or {}
    if len(images) != 1:
        fault = "has the same file name as several images of" if images else "is in no split of"
        raise BadInput(f"{source.path}: {fault} {folder}; predict images of the data set, or omit --ids-from")
    (((_, image_id), dataset),) = images.items()
    return image_id, dataset
