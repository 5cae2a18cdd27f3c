"""COCO's box, mask and boundary AP, computed by faster-coco-eval.

Results are expected in the frame of the original image. Nothing is resized or thresholded here.

The figures equal those of pycocotools, with three intended differences:
- AP and AR are read at `max_detections`; pycocotools reads AP at 100 detections only.
- The area range (small, medium, large) of a result is that of its mask in mask and boundary AP, of its box in box AP.
- An undefined figure, such as AP_large without large objects, is nan instead of -1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray
from tqdm import tqdm

from embedmask.data.annotations import AnnotationFile, collector_paused
from embedmask.data.records import as_id
from embedmask.errors import BadInput
from embedmask.evaluation.ground_truth import GroundTruthRecords, read_ground_truth
from embedmask.evaluation.overlap import Overlaps, boundary_ious, box_ious, mask_ious
from embedmask.run_lengths import check_counts, decode_counts

IouType = Literal["bbox", "segm", "boundary"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "boundary")
AREAS = ("all", "small", "medium", "large")
Pair = tuple[int, int]
"""Image id and category id."""
BLOCK = 1000
"""Masks whose run lengths are checked at once."""


@dataclass(frozen=True)
class Curves:
    """Precision and recall at the largest number of detections; -1 where a category has no ground truth.

    Attributes:
        precision: float64 `[10 IoU thresholds, 101 recall thresholds, categories, 4 areas]`.
        recall: float64 `[10 IoU thresholds, categories, 4 areas]`.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]

    def ap(self, iou: float | None = None, area: str = "all", category: int | None = None) -> float:
        """Return the mean precision.

        Args:
            iou: one of the IoU thresholds 0.5, 0.55 .. 0.95; None: the mean over all.
            area: one of `AREAS`.
            category: index of one category; None: the mean over all.
        """
        values = self.precision[..., AREAS.index(area)]
        if iou is not None:
            # IoU threshold t is row (t - 0.5) / 0.05; a list index keeps the axis
            values = values[[round((iou - 0.5) / 0.05)]]
        if category is not None:
            values = values[:, :, category]
        return _mean(values)

    def ar(self, area: str = "all") -> float:
        """Return the mean recall over IoU thresholds and categories."""
        return _mean(self.recall[..., AREAS.index(area)])

    def at(self, iou: float) -> NDArray[np.float64]:
        """Return the precision at recall 0, 0.01 .. 1, averaged over categories, float64 `[101]`; nan if undefined."""
        # [10, 101, categories, 4] -> [101, categories], all areas
        values = self.precision[round((iou - 0.5) / 0.05), :, :, 0]
        return np.array([_mean(row) for row in values])

    def metrics(self) -> dict[str, float]:
        """Return AP, AP50, AP75, AP90, AR, and AP and AR by size."""
        by_size = {f"AP_{area}": self.ap(area=area) for area in AREAS[1:]}
        by_size |= {f"AR_{area}": self.ar(area) for area in AREAS[1:]}
        thresholds = {f"AP{round(100 * iou)}": self.ap(iou) for iou in (0.5, 0.75, 0.9)}
        return {"AP": self.ap(), **thresholds, "AR": self.ar(), **by_size}


class CocoEvaluator:
    """Accumulator of results that computes AP against a ground truth. The ground truth is read once.

    Attributes:
        max_detections: number of highest-scoring results counted per image and category (maxDets).
        ground_truth: the ground truth; its masks are compressed RLE.
        results: the results added so far, with the ids of the ground truth.

    Examples:
        >>> evaluator = CocoEvaluator("val.json", max_detections=1000)
        >>> evaluator.add(results)
        >>> evaluator.compute()["segm/AP"]
        >>> evaluator.reset()  # removes the results, keeps the ground truth
    """

    def __init__(
        self, annotations: AnnotationFile | str | Path | Mapping[str, Any], max_detections: int = 100
    ) -> None:
        """Read the ground truth.

        Args:
            annotations: `CocoInstances.ground_truth`, or a COCO annotation file or its content, which is checked
                in the same way. Ids may be of any size and in any order. An `area` or `bbox` that is missing or
                does not fit its mask is computed from the mask, with a line in `ground_truth.warnings`.
            max_detections: see the attribute.

        Raises:
            BadInput: `max_detections` is less than 1; or as `read_ground_truth`.
        """
        if max_detections < 1:
            raise BadInput(f"max_detections must be at least 1, got {max_detections}")
        self.max_detections = max_detections
        self._source = str(annotations) if isinstance(annotations, (str, Path)) else "annotations"
        self.ground_truth: GroundTruthRecords = read_ground_truth(annotations)
        self.results: list[dict[str, Any]] = []
        self._curves: dict[tuple[int, ...], dict[IouType, Curves]] = {}

    @property
    def class_names(self) -> list[str]:
        """Return the names of the categories, by ascending id."""
        return [*self.ground_truth.categories.values()]

    def add(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Add results of any number of images, in COCO's result format. They are copied, not changed.

        Args:
            results: `image_id`, `category_id` (the data set's own), `bbox` (xywh px), `score` and
                `segmentation` (RLE in the frame of the original image).

        Raises:
            BadInput: a result lacks one of these fields, names an unknown image or category, or has a mask of
                another size or with damaged run lengths. No result of the call is added then.
        """
        checked = []
        for number, result in enumerate(results, start=len(self.results)):
            if not isinstance(result, Mapping):
                raise BadInput(f"result {number} is not a mapping; see COCO's result format")
            for key in ("image_id", "category_id", "bbox", "score", "segmentation"):
                if key not in result:
                    raise BadInput(f"result {number} has no {key}; see COCO's result format")
            image_id, category_id = as_id(result["image_id"]), as_id(result["category_id"])
            if image_id not in self.ground_truth.sizes:
                raise BadInput(f"result {number}: {self._source} has no image {result['image_id']!r}")
            if category_id not in self.ground_truth.categories:
                raise BadInput(f"result {number}: {self._source} has no category {result['category_id']!r}")
            size, mask = [*self.ground_truth.sizes[image_id]], result["segmentation"]
            # compressed RLE only: polygons and uncompressed counts are not results
            is_rle = isinstance(mask, Mapping) and isinstance(mask.get("counts"), (str, bytes))
            own_size = mask.get("size") if is_rle else None
            sides = list(np.ravel(own_size)) if isinstance(own_size, (Sequence, np.ndarray)) else []
            if sides != size or not all(isinstance(side, Integral) for side in sides):
                raise BadInput(f"result {number}: its mask must be an RLE of image {image_id}, size {size}")
            score, box = result["score"], result["bbox"]
            if not isinstance(score, Real) or not math.isfinite(score):
                raise BadInput(f"result {number}: score {score} is not a finite number")
            values = list(box) if isinstance(box, (Sequence, np.ndarray)) else []
            if len(values) != 4 or not all(
                isinstance(value, Real) and math.isfinite(value) for value in values
            ):
                raise BadInput(f"result {number}: bbox {box} is not [x, y, width, height]")
            ids = {"image_id": image_id, "category_id": category_id}
            checked.append({**result, **ids, "segmentation": {**mask, "size": size}})
        _check_run_lengths(checked, first=len(self.results))
        # all or none: an error above leaves the evaluator unchanged
        self.results.extend(checked)
        self._curves.clear()

    def reset(self) -> None:
        """Remove all results."""
        self.results = []
        self._curves.clear()

    def compute(self, image_ids: Sequence[int] | None = None, *, progress: bool = False) -> dict[str, float]:
        """Compute the COCO metrics of the results added so far.

        Args:
            image_ids: the images to evaluate; None: all images of the ground truth. Objects of images without
                results count as missed.

        Returns:
            `IOU_TYPE/METRIC` for bbox, segm and boundary (a band of 2 % of the image's diagonal): AP, AP50,
            AP75, AP90, AR, AP_small, AP_medium, AP_large, AR_small, AR_medium, AR_large; 0..1, or nan without
            ground truth.

        Raises:
            BadInput: no image is selected, or one that the ground truth lacks.
        """
        measured = self.curves(image_ids, progress=progress)
        return {
            f"{iou_type}/{name}": v
            for iou_type in IOU_TYPES
            for name, v in measured[iou_type].metrics().items()
        }

    def per_class(self) -> dict[str, dict[str, float]]:
        """Compute AP, AP50, AP75 and AP90 of each category, over all images.

        Returns:
            Category name -> `IOU_TYPE/METRIC` -> value, by ascending category id; nan without ground truth.
        """
        measured = self.curves()
        thresholds = {"AP": None, "AP50": 0.5, "AP75": 0.75, "AP90": 0.9}
        return {
            name: {
                f"{iou_type}/{metric}": measured[iou_type].ap(iou, category=index)
                for iou_type in IOU_TYPES
                for metric, iou in thresholds.items()
            }
            for index, name in enumerate(self.class_names)
        }

    def curves(
        self, image_ids: Sequence[int] | None = None, *, progress: bool = False
    ) -> dict[IouType, Curves]:
        """Return precision and recall by IoU type. They are cached until results are added.

        Raises:
            BadInput: as `compute`.
        """
        ids = self.image_ids(image_ids)
        if ids in self._curves:
            return self._curves[ids]
        # the library stores ids as floats: pass indices, which are exact and keep the order
        indices = {image_id: index for index, image_id in enumerate(self.ground_truth.sizes)}
        chosen = [indices[image_id] for image_id in ids]
        with collector_paused(), tqdm(unit="pair", desc="AP", disable=not progress) as bar:
            gts = self._index(indices, [gt for image_id in ids for gt in self.ground_truth.records[image_id]])
            results = self._index(indices, self._with_areas("bbox"))
            boxes = _Evaluation(gts, results, chosen, self.max_detections, bar).measure("bbox")
            # one index of the results at a time, to bound the memory; segm and boundary share the second
            del results
            results = self._index(indices, self._with_areas("segmentation"))
            masks = _Evaluation(gts, results, chosen, self.max_detections, bar)
            segm, boundary = masks.measure("segm"), masks.measure("boundary")
        self._curves[ids] = {"bbox": boxes, "segm": segm, "boundary": boundary}
        return self._curves[ids]

    def image_ids(self, requested: Sequence[int] | None = None) -> tuple[int, ...]:
        """Return the ids of the images to evaluate, ascending; all for None.

        Raises:
            BadInput: no image is selected, or one that the ground truth lacks.
        """
        ids = tuple(sorted(self.ground_truth.sizes if requested is None else {int(i) for i in requested}))
        if not ids:
            raise BadInput(f"{self._source}: no images to evaluate; select at least one")
        for image_id in ids:
            if image_id not in self.ground_truth.sizes:
                raise BadInput(
                    f"{self._source}: no image {image_id} to evaluate; select images of this data set"
                )
        return ids

    def results_by_image(self, image_ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
        """Return the results of each image by descending score, at most `max_detections` per category."""
        grouped: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
        counts: Counter[Pair] = Counter()
        for result in sorted(self.results, key=lambda result: -result["score"]):
            pair = result["image_id"], result["category_id"]
            counts[pair] += 1
            if pair[0] in grouped and counts[pair] <= self.max_detections:
                grouped[pair[0]].append(result)
        return grouped

    def _index(self, indices: Mapping[int, int], records: Iterable[Mapping[str, Any]]) -> COCO:
        """Return the library's index of copies of the records, with image and category ids replaced by indices."""
        categories = {category_id: index for index, category_id in enumerate(self.ground_truth.categories)}
        copies = [
            {
                **record,
                "image_id": indices[record["image_id"]],
                "category_id": categories[record["category_id"]],
            }
            for record in records
        ]
        return COCO(
            {
                "images": [{"id": index} for index in indices.values()],
                "categories": [{"id": index} for index in categories.values()],
                "annotations": copies,
            }
        )

    def _with_areas(self, shape: Literal["bbox", "segmentation"]) -> Iterator[dict[str, Any]]:
        """Yield the results with one shape only and its area, numbered from 1."""
        # the area decides the range (small, medium, large) of an unmatched result
        shapes = [result[shape] for result in self.results]
        areas = [w * h for _, _, w, h in shapes] if shape == "bbox" else mask_api.area(shapes).tolist()
        for number, (result, area) in enumerate(zip(self.results, areas, strict=True), start=1):
            keys = ("image_id", "category_id", "score", shape)
            yield {**{key: result[key] for key in keys}, "id": number, "area": area}


def _check_run_lengths(results: Sequence[Mapping[str, Any]], first: int) -> None:
    """Raise `BadInput` for the first result with damaged run lengths; `first` is the number of the first result."""

    def check(block: Sequence[Mapping[str, Any]]) -> None:
        masks = [result["segmentation"] for result in block]
        for counts, mask in zip(decode_counts(mask["counts"] for mask in masks), masks, strict=True):
            check_counts(counts, tuple(mask["size"]))

    for begin in range(0, len(results), BLOCK):
        block = results[begin : begin + BLOCK]
        try:
            check(block)
        except BadInput:
            # one by one, to name the result
            for number, result in enumerate(block, start=first + begin):
                try:
                    check([result])
                except BadInput as error:
                    raise BadInput(f"result {number}: {error}") from None


class _Evaluation(COCOeval_faster):
    """Matching and accumulation of the library, with overlaps computed by `embedmask.evaluation.overlap`.

    The library would encode every mask again, rasterize each boundary over the whole image and keep all of it once
    per IoU type. Here, masks and boundaries share one index and one set of mask overlaps.
    """

    def __init__(self, gts: COCO, results: COCO, ids: list[int], max_detections: int, bar: tqdm[Any]) -> None:
        super().__init__(gts, results, "bbox")
        self.params.imgIds = ids
        self.params.maxDets = [max_detections]
        self._iou_type: IouType = "bbox"
        self._bar = bar
        self._mask_ious: dict[Pair, Overlaps] = {}
        super()._prepare()  # type: ignore[no-untyped-call]

    def measure(self, iou_type: IouType) -> Curves:
        """Return precision and recall of one IoU type; "segm" must precede "boundary"."""
        self._iou_type = iou_type
        self._bar.set_description(f"{iou_type} AP")
        self._bar.reset(total=len(self._nonempty_iou_pairs))
        self.evaluate()  # type: ignore[no-untyped-call]
        # maxDets has one entry, the last axis
        return Curves(self.eval["precision"][..., -1], self.eval["recall"][..., -1])

    def _prepare(self) -> None:
        """Skip the library's preparation, which `__init__` has already run for all IoU types."""

    def computeIoU(self, imgId: int, catId: int) -> Overlaps:
        """Return the overlaps of one image and category, `[results by descending score, ground truth]`."""
        self._bar.update()
        gts = self.gt_dataset.get(imgId, catId)
        results = sorted(self.dt_dataset.get(imgId, catId), key=lambda result: -result["score"])
        results = results[: self.params.maxDets[-1]]
        if self._iou_type == "bbox":
            return box_ious(results, gts)
        if self._iou_type == "boundary":
            return boundary_ious(results, gts, self._mask_ious[imgId, catId])
        return self._mask_ious.setdefault((imgId, catId), mask_ious(results, gts))


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the defined values; nan where there is none."""
    # -1 marks a category without ground truth
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan
