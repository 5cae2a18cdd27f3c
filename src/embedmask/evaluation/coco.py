"""Box, mask and boundary AP of COCO, by faster-coco-eval.

Results arrive finished, in each image's own frame: nothing is resized or thresholded here.

The figures are those of pycocotools, with three differences that are meant:
- AP and AR are read at the number of detections asked for, whatever it is; pycocotools reads AP at 100 alone.
- A detection's area (small, medium, large) is that of its mask in mask and boundary AP, of its box in box AP.
- What cannot be measured, such as AP_large without large objects, is nan instead of -1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from embedmask.data.segmentation import parse_segmentation
from embedmask.errors import BadInput
from embedmask.structures import Size

Kind = Literal["bbox", "segm", "boundary"]
AREAS = ("all", "small", "medium", "large")
BOUNDARY_DILATION = 0.02
"""Width of the boundary band, as a fraction of the image's diagonal (Boundary IoU, Cheng et al. 2021)."""


@dataclass(frozen=True)
class _Curves:
    """Precision and recall at the largest number of detections; -1 where a category has no ground truth.

    Attributes:
        precision: float64 `[10 IoU thresholds, 101 recall thresholds, categories, 4 areas]`.
        recall: float64 `[10 IoU thresholds, categories, 4 areas]`.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def ap(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float:
        """Mean precision, at one IoU threshold or all, for one category (its position) or all."""
        values = self.precision[:, :, :, AREAS.index(area)]
        if iou is not None:
            values = values[[round((iou - 0.5) / 0.05)]]
        if category is not None:
            values = values[:, :, category]
        return _mean(values)

    def ar(self) -> float:
        """Mean recall over IoU thresholds and categories."""
        return _mean(self.recall[:, :, 0])


class CocoEvaluator:
    """Gathers results and measures them against a ground truth.

    Example:
        >>> evaluator = CocoEvaluator("val.json", max_detections=1000)
        >>> evaluator.add(results)
        >>> evaluator.compute()["segm/AP"]
    """

    def __init__(self, annotations: str | Path | Mapping[str, Any], max_detections: int = 100) -> None:
        """Read the ground truth.

        Args:
            annotations: a COCO annotation file or what it holds; any ids, in any order. Objects without
                `area`, `bbox` or `iscrowd` are completed from their mask.
            max_detections: the highest-scoring results of an image and category that count (maxDets).

        Raises:
            BadInput: a file that cannot be read, or an annotation of an unknown image or category or without
                a usable mask.
        """
        if max_detections < 1:
            raise BadInput(f"max_detections must be at least 1, got {max_detections}")
        self.max_detections = max_detections
        self._where = str(annotations) if isinstance(annotations, (str, Path)) else "annotations"
        self._truth = _index(_read(annotations), self._where)
        self._results: list[dict[str, Any]] = []
        self._curves: dict[tuple[Kind, tuple[int, ...]], _Curves] = {}

    def add(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Add results of any number of images, in COCO's result format; they are not changed.

        Args:
            results: `image_id`, `category_id` (the dataset's own), `bbox` (xywh px), `score` and
                `segmentation` (RLE in the image's frame).

        Raises:
            BadInput: a result of an unknown image or category, without one of these, or whose mask has
                another size.
        """
        checked = [self._checked(result, len(self._results) + i) for i, result in enumerate(results)]
        self._results.extend(checked)
        self._curves.clear()

    def compute(self, image_ids: Sequence[int] | None = None) -> dict[str, float]:
        """Measure what has been added.

        Args:
            image_ids: only these images; None: all of the ground truth. Objects of images
                without results count as missed.

        Returns:
            `bbox/` and `segm/` AP, AP50, AP75, AP_small, AP_medium, AP_large, AR, further `segm/AP90` and
            `boundary/` AP, AP50, AP75; 0..1, nan where no object of the kind exists.

        Raises:
            BadInput: no image, or one that the ground truth lacks.
        """
        ids = self._ids(image_ids)
        metrics: dict[str, float] = {}
        for kind in ("bbox", "segm"):
            curves = self._measure(kind, ids)
            metrics |= {
                f"{kind}/AP": curves.ap(),
                f"{kind}/AP50": curves.ap(0.5),
                f"{kind}/AP75": curves.ap(0.75),
            }
            metrics |= {f"{kind}/AP_{area}": curves.ap(area=area) for area in AREAS[1:]}
            metrics[f"{kind}/AR"] = curves.ar()
        metrics["segm/AP90"] = self._measure("segm", ids).ap(0.9)
        edges = self._measure("boundary", ids)
        return metrics | {
            "boundary/AP": edges.ap(),
            "boundary/AP50": edges.ap(0.5),
            "boundary/AP75": edges.ap(0.75),
        }

    def per_class(self, image_ids: Sequence[int] | None = None) -> dict[str, float]:
        """Mask AP by category name, in the order of the categories' ids; nan where it has no object.

        Raises:
            BadInput: as `compute`.
        """
        curves = self._measure("segm", self._ids(image_ids))
        names = [str(self._truth.cats[key].get("name", key)) for key in sorted(self._truth.cats)]
        return {name: curves.ap(category=index) for index, name in enumerate(names)}

    def _ids(self, image_ids: Sequence[int] | None) -> tuple[int, ...]:
        ids = tuple(sorted(self._truth.imgs if image_ids is None else {int(i) for i in image_ids}))
        if not ids:
            raise BadInput(f"{self._where}: no images to evaluate")
        for image_id in ids:
            if image_id not in self._truth.imgs:
                raise BadInput(f"{self._where}: no image {image_id} to evaluate")
        return ids

    def _checked(self, result: Mapping[str, Any], index: int) -> dict[str, Any]:
        missing = [k for k in ("image_id", "category_id", "bbox", "score", "segmentation") if k not in result]
        if missing:
            raise BadInput(f"result {index} has no {missing[0]}; see COCO's result format")
        image = self._truth.imgs.get(result["image_id"])
        if image is None:
            raise BadInput(f"result {index}: {self._where} has no image {result['image_id']}")
        if result["category_id"] not in self._truth.cats:
            raise BadInput(f"result {index}: {self._where} has no category {result['category_id']}")
        size = [image["height"], image["width"]]
        if not isinstance(result["segmentation"], Mapping) or list(result["segmentation"]["size"]) != size:
            raise BadInput(f"result {index}: its mask must be an RLE of image {image['id']}, size {size}")
        if not math.isfinite(result["score"]):
            raise BadInput(f"result {index}: score {result['score']} is not a number")
        return dict(result)

    def _measure(self, kind: Kind, ids: tuple[int, ...]) -> _Curves:
        if (kind, ids) not in self._curves:
            self._curves[kind, ids] = self._run(kind, ids)
        return self._curves[kind, ids]

    def _run(self, kind: Kind, ids: tuple[int, ...]) -> _Curves:
        evaluation: Any = COCOeval_faster(
            self._truth,
            self._truth.loadRes([_of_kind(result, kind) for result in self._results]),
            kind,
            boundary_dilation_ratio=BOUNDARY_DILATION,
        )
        evaluation.params.imgIds = list(ids)
        evaluation.params.maxDets = [self.max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        return _Curves(evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1])


def _of_kind(result: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """A copy that the library may write to; it takes the area from the box where there is one."""
    drop = "segmentation" if kind == "bbox" else "bbox"
    return {key: value for key, value in result.items() if key != drop}


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def _read(annotations: str | Path | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(annotations, Mapping):
        return annotations
    try:
        values = json.loads(Path(annotations).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{annotations}: no such annotation file") from None
    except OSError as error:
        raise BadInput(f"{annotations}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BadInput(f"{annotations}: not JSON ({error}); give a COCO annotation file") from None
    if not isinstance(values, Mapping):
        raise BadInput(f"{annotations}: not a COCO annotation file (images, annotations, categories)")
    return values


def _index(values: Mapping[str, Any], where: str) -> COCO:
    """The library's index over a copy, annotations numbered from 1.

    The library, like pycocotools, marks "unmatched" by id 0 and keeps one annotation an id: a file that
    counts from 0, or has an id twice, would be measured wrongly.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(values.get(key), Sequence):
            raise BadInput(f"{where}: no list of {key}; give a COCO annotation file")
    images = {_require(image, "id", f"{where}: image"): image for image in values["images"]}
    categories = {_require(entry, "id", f"{where}: category"): entry for entry in values["categories"]}
    annotations = []
    for number, annotation in enumerate(values["annotations"], start=1):
        name = f"{where}: annotation {annotation.get('id', f'number {number}')}"
        for key, known in (("image", images), ("category", categories)):
            if annotation.get(f"{key}_id") not in known:
                raise BadInput(f"{name} is of {key} {annotation.get(f'{key}_id')}, which the file lacks")
        annotations.append({**_completed(annotation, images[annotation["image_id"]], name), "id": number})
    return COCO(
        {"images": [*images.values()], "categories": [*categories.values()], "annotations": annotations}
    )


def _require(entry: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in entry:
        raise BadInput(f"{name} {entry.get('id', '')} has no {key}; see COCO's annotation format")
    return entry[key]


def _completed(annotation: Mapping[str, Any], image: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy with the mask as compressed RLE, and with `area`, `bbox` and `iscrowd`."""
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
