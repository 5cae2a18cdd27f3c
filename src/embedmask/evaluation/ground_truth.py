"""The ground truth that results are compared with: the annotations of a data set, every mask as run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

from embedmask.data.annotations import AnnotationFile, check_annotations, read_coco
from embedmask.data.packed import GroundTruth
from embedmask.data.problems import WarningCollector, raise_issue, warning_lines
from embedmask.data.segmentation import as_written, to_rle
from embedmask.errors import BadInput
from embedmask.structures import Size

Record = dict[str, Any]


@dataclass(frozen=True)
class GroundTruthRecords:
    """Ground truth under the ids of its file.

    Attributes:
        sizes: image id -> `(height, width)`, ascending ids.
        categories: category id -> name, ascending ids; of categories with the same name it tells the id too.
        records: image id -> objects and crowds in the order of the file: `id` (from 1, over all images),
            `image_id`, `category_id`, `segmentation` (compressed RLE), `area`, `bbox` (xywh px) and `iscrowd`.
        warnings: a line for each kind of doubtful annotation.
    """

    sizes: dict[int, Size]
    categories: dict[int, str]
    records: dict[int, list[Record]]
    warnings: list[str]


def read_ground_truth(annotations: AnnotationFile | str | Path | Mapping[str, Any]) -> GroundTruthRecords:
    """Return the ground truth of a data set, or of a COCO annotation file or its content.

    Args:
        annotations: checked annotations, or what `check_annotations` has still to check; it is not changed.

    Raises:
        BadInput: a file that cannot be read; or as `check_annotations`.
    """
    warnings: list[str] = []
    if not isinstance(annotations, AnnotationFile):
        given, path = (
            (annotations, Path("annotations"))
            if isinstance(annotations, Mapping)
            else (read_coco(Path(annotations)), Path(annotations))
        )
        content, collector = _completed(given, path), WarningCollector(raise_issue)
        annotations = check_annotations(content, path, collector)
        warnings = warning_lines(collector.warnings)
    file, count, records = annotations, 0, {}
    for item in map(file.annotations.__getitem__, range(len(file.image_ids))):
        records[item.image_id] = _records(item, file.category_ids, count)
        count += len(item)
    return GroundTruthRecords(
        dict(sorted(zip(file.image_ids, file.sizes, strict=True))),
        dict(zip(file.category_ids, file.distinct_names, strict=True)),
        records,
        warnings,
    )


def _completed(values: Mapping[str, Any], path: Path) -> dict[str, list[Any]]:
    """A copy of the content of a COCO file, with the names that evaluation does without."""
    lists: dict[str, list[Any]] = {}
    for key, name in (("images", "file_name"), ("annotations", ""), ("categories", "name")):
        entries = values.get(key)
        if not isinstance(entries, Sequence):
            raise BadInput(f"{path}: no list of {key}; give a COCO annotation file")
        lists[key] = [{name: str(e.get("id")), **e} if name and isinstance(e, dict) else e for e in entries]
    return lists


def _records(item: GroundTruth, category_ids: Sequence[int], count: int) -> list[Record]:
    """Objects and crowds of one image, numbered from `count + 1`."""
    rles = [to_rle(mask, item.size) for mask in item.segmentations]
    # where the file does not say, the mask does
    areas = np.where(np.isnan(item.areas), mask_api.area(rles) if rles else 0, item.areas).tolist()
    boxes = as_written(item.boxes)
    unknown = np.isnan(boxes[:, 0])
    if unknown.any():
        boxes[unknown] = mask_api.toBbox(rles)[unknown]
    rows = zip(item.labels.tolist(), rles, areas, boxes.tolist(), item.crowd.tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": item.image_id,
            "category_id": category_ids[label],
            "segmentation": rle,
            "area": area,
            "bbox": box,
            "iscrowd": int(crowd),
        }
        for number, (label, rle, area, box, crowd) in enumerate(rows, start=count + 1)
    ]
