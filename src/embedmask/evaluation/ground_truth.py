"""Ground truth for evaluation: the annotations of a data set with every mask as run lengths."""

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
from embedmask.data.segmentation import shortest_decimals, to_coco_rle
from embedmask.errors import BadInput
from embedmask.structures import Size

Record = dict[str, Any]


@dataclass(frozen=True)
class GroundTruthRecords:
    """Ground truth with the ids of its file.

    Attributes:
        sizes: image id -> `(height, width)`, by ascending id.
        categories: category id -> name, by ascending id; the name includes the id where several share it.
        records: image id -> objects and crowds in the order of the file: `id` (from 1, over all images),
            `image_id`, `category_id`, `segmentation` (compressed RLE), `area`, `bbox` (xywh px) and `iscrowd`.
        warnings: one line per type of doubtful annotation.
    """

    sizes: dict[int, Size]
    categories: dict[int, str]
    records: dict[int, list[Record]]
    warnings: list[str]


def read_ground_truth(annotations: AnnotationFile | str | Path | Mapping[str, Any]) -> GroundTruthRecords:
    """Return the ground truth of a data set, of a COCO annotation file, or of its content.

    Args:
        annotations: checked annotations, or a file or content to check with `check_annotations`. It is not changed.

    Raises:
        BadInput: the file cannot be read, or a list is missing; or as `check_annotations`.
    """
    warnings: list[str] = []
    if not isinstance(annotations, AnnotationFile):
        content, path = (
            (annotations, Path("annotations"))
            if isinstance(annotations, Mapping)
            else (read_coco(Path(annotations)), Path(annotations))
        )
        lists: dict[str, list[Any]] = {}
        for key, name in (("images", "file_name"), ("annotations", ""), ("categories", "name")):
            entries = content.get(key)
            if not isinstance(entries, Sequence):
                raise BadInput(f"{path}: no list of {key}; give a COCO annotation file")
            # evaluation does not need names: an id stands in for a missing one
            lists[key] = [
                {name: str(e.get("id")), **e} if name and isinstance(e, dict) else e for e in entries
            ]
        collector = WarningCollector(raise_issue)
        annotations = check_annotations(lists, path, collector)
        warnings = warning_lines(collector.warnings)
    count, records = 0, {}
    for item in map(annotations.annotations.__getitem__, range(len(annotations.image_ids))):
        records[item.image_id] = _records(item, annotations.category_ids, count)
        count += len(item)
    return GroundTruthRecords(
        dict(sorted(zip(annotations.image_ids, annotations.sizes, strict=True))),
        dict(zip(annotations.category_ids, annotations.distinct_names, strict=True)),
        records,
        warnings,
    )


def _records(item: GroundTruth, category_ids: Sequence[int], count: int) -> list[Record]:
    """Return the objects and crowds of one image, numbered from `count + 1`."""
    rles = [to_coco_rle(mask, item.size) for mask in item.segmentations]
    # nan marks a missing area or box: compute it from the mask
    areas = np.where(np.isnan(item.areas), mask_api.area(rles) if rles else 0, item.areas).tolist()
    boxes = shortest_decimals(item.boxes)  # float64 [G, 4], xywh
    missing = np.isnan(boxes[:, 0])
    if missing.any():
        boxes[missing] = mask_api.toBbox(rles)[missing]
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
