"""The ground truth that results are measured against: read, checked, every mask as run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from faster_coco_eval import COCO
from faster_coco_eval.core import mask as mask_api

from embedmask.data.annotations import read_coco
from embedmask.data.segmentation import parse_segmentation
from embedmask.errors import BadInput
from embedmask.structures import Size


def read_truth(annotations: str | Path | Mapping[str, Any]) -> COCO:
    """The library's index over a copy of the ground truth, annotations numbered from 1.

    The library, like pycocotools, marks "unmatched" by id 0 and keeps one annotation an id: a file that
    counts from 0, or has an id twice, would be measured wrongly.

    Args:
        annotations: a COCO annotation file or what it holds; any ids, in any order.

    Returns:
        Objects with `segmentation` as compressed RLE, and with `area`, `bbox` and `iscrowd`, completed from
        the mask where the file lacks them.

    Raises:
        BadInput: a file that cannot be read, or an annotation of an unknown image or category or without a
            usable mask.
    """
    where = str(annotations) if isinstance(annotations, (str, Path)) else "annotations"
    values = annotations if isinstance(annotations, Mapping) else read_coco(Path(annotations), compact=False)
    for key in ("images", "annotations", "categories"):
        if not isinstance(values.get(key), Sequence):
            raise BadInput(f"{where}: no list of {key}; give a COCO annotation file")
    images = {_require(image, "id", f"{where}: image"): image for image in values["images"]}
    categories = {_require(entry, "id", f"{where}: category"): entry for entry in values["categories"]}
    objects = []
    for number, annotation in enumerate(values["annotations"], start=1):
        name = f"{where}: annotation {annotation.get('id', f'number {number}')}"
        for key, known in (("image", images), ("category", categories)):
            if annotation.get(f"{key}_id") not in known:
                raise BadInput(f"{name} is of {key} {annotation.get(f'{key}_id')}, which the file lacks")
        objects.append({**_completed(annotation, images[annotation["image_id"]], name), "id": number})
    return COCO({"images": [*images.values()], "categories": [*categories.values()], "annotations": objects})


def _require(entry: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in entry:
        raise BadInput(f"{name} {entry.get('id', '')} has no {key}; see COCO's annotation format")
    return entry[key]


def _completed(annotation: Mapping[str, Any], image: Mapping[str, Any], name: str) -> dict[str, Any]:
    size = (_require(image, "height", f"{name}: image"), _require(image, "width", f"{name}: image"))
    segmentation = annotation.get("segmentation")
    try:
        parse_segmentation(segmentation, size)
    except BadInput as error:
        raise BadInput(f"{name} {error}") from None
    rle = _to_rle(segmentation, size)
    area, bbox = float(mask_api.area(rle)), [float(value) for value in mask_api.toBbox(rle)]
    return {"area": area, "bbox": bbox, "iscrowd": 0, **annotation, "segmentation": rle}


def _to_rle(segmentation: Any, size: Size) -> dict[str, Any]:
    if isinstance(segmentation, Mapping) and isinstance(segmentation["counts"], (str, bytes)):
        return dict(segmentation)
    rles = mask_api.frPyObjects(segmentation, *size)
    merged: dict[str, Any] = mask_api.merge(rles) if isinstance(rles, list) else rles
    return merged
