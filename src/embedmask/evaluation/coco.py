"""Box, mask and boundary AP of COCO, by faster-coco-eval.

Results arrive finished, in each image's own frame: nothing is resized or thresholded here.

The figures are those of pycocotools, with three differences that are meant:
- AP and AR are read at the number of detections asked for, whatever it is; pycocotools reads AP at 100 alone.
- A detection's area (small, medium, large) is that of its mask in mask and boundary AP, of its box in box AP.
- What cannot be measured, such as AP_large without large objects, is nan instead of -1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
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
from embedmask.structures import Size

Kind = Literal["bbox", "segm", "boundary"]
KINDS: tuple[Kind, ...] = ("bbox", "segm", "boundary")
AREAS = ("all", "small", "medium", "large")
Pair = tuple[int, int]
"""Image and category."""


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
        """Mean precision, at one IoU threshold or all, for one category (its position) or all."""
        values = self.precision[..., AREAS.index(area)]
        if iou is not None:
            values = values[[round((iou - 0.5) / 0.05)]]
        if category is not None:
            values = values[:, :, category]
        return _mean(values)

    def ar(self, area: str = "all") -> float:
        """Mean recall over IoU thresholds and categories."""
        return _mean(self.recall[..., AREAS.index(area)])

    def at(self, iou: float) -> NDArray[np.float64]:
        """Precision at recall 0, 0.01 .. 1, mean over the categories, float64 `[101]`; nan without objects."""
        values = self.precision[round((iou - 0.5) / 0.05), :, :, 0]
        return np.array([_mean(row) for row in values])

    def metrics(self) -> dict[str, float]:
        """AP, AP50, AP75, AP90, AR, and AP and AR by size."""
        by_size = {f"AP_{area}": self.ap(area=area) for area in AREAS[1:]}
        by_size |= {f"AR_{area}": self.ar(area) for area in AREAS[1:]}
        thresholds = {f"AP{round(100 * iou)}": self.ap(iou) for iou in (0.5, 0.75, 0.9)}
        return {"AP": self.ap(), **thresholds, "AR": self.ar(), **by_size}


class CocoEvaluator:
    """Gathers results and measures them against a ground truth, which is read once.

    Attributes:
        max_detections: the highest-scoring results of an image and category that count (maxDets).
        truth: the ground truth; its masks are compressed RLE.
        results: what has been added, under the ids of the ground truth.

    Example:
        >>> evaluator = CocoEvaluator("val.json", max_detections=1000)
        >>> evaluator.add(results)
        >>> evaluator.compute()["segm/AP"]
        >>> evaluator.reset()  # the results are forgotten, the ground truth stays
    """

    def __init__(
        self, annotations: AnnotationFile | str | Path | Mapping[str, Any], max_detections: int = 100
    ) -> None:
        """Read the ground truth.

        Args:
            annotations: `CocoInstances.ground_truth`, or a COCO annotation file or its content, which is checked
                in the same way; ids of any size, in any order. An `area` or `bbox` that is missing or does not
                fit its mask is taken from the mask; `truth.warnings` tells.
            max_detections: see the attribute.

        Raises:
            BadInput: see `read_ground_truth`; or not a number of detections.
        """
        if max_detections < 1:
            raise BadInput(f"max_detections must be at least 1, got {max_detections}")
        self.max_detections = max_detections
        self._where = str(annotations) if isinstance(annotations, (str, Path)) else "annotations"
        self.truth: GroundTruthRecords = read_ground_truth(annotations)
        self.results: list[dict[str, Any]] = []
        self._curves: dict[tuple[int, ...], dict[Kind, Curves]] = {}

    @property
    def class_names(self) -> list[str]:
        """Names of the categories, by ascending id."""
        return [*self.truth.categories.values()]

    def add(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Add results of any number of images, in COCO's result format; they are not changed.

        Args:
            results: `image_id`, `category_id` (the dataset's own), `bbox` (xywh px), `score` and
                `segmentation` (RLE in the image's frame).

        Raises:
            BadInput: a result of an unknown image or category, without one of these, or whose mask has
                another size.
        """
        checked = [self._checked(result, len(self.results) + i) for i, result in enumerate(results)]
        self.results.extend(checked)
        self._curves.clear()

    def reset(self) -> None:
        """Forget all results."""
        self.results = []
        self._curves.clear()

    def compute(self, image_ids: Sequence[int] | None = None, *, progress: bool = False) -> dict[str, float]:
        """Measure what has been added.

        Args:
            image_ids: only these images; None: all of the ground truth. Objects of images
                without results count as missed.
            progress: show a bar on stderr.

        Returns:
            `KIND/METRIC` for bbox, segm and boundary (its band is 2 % of the image's diagonal): AP, AP50,
            AP75, AP90, AR, AP_small, AP_medium, AP_large, AR_small, AR_medium, AR_large; 0..1, nan where no
            object of the kind exists.

        Raises:
            BadInput: no image, or one that the ground truth lacks.
        """
        measured = self.curves(image_ids, progress=progress)
        return {f"{kind}/{name}": v for kind in KINDS for name, v in measured[kind].metrics().items()}

    def per_class(self, image_ids: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """By category name, in the order of the ids: AP, AP50, AP75 and AP90 of each kind, named as in `compute`.

        Returns:
            nan where the category has no object.

        Raises:
            BadInput: as `compute`.
        """
        measured = self.curves(image_ids)
        thresholds = {"AP": None, "AP50": 0.5, "AP75": 0.75, "AP90": 0.9}
        return {
            name: {
                f"{kind}/{metric}": measured[kind].ap(iou, category=position)
                for kind in KINDS
                for metric, iou in thresholds.items()
            }
            for position, name in enumerate(self.class_names)
        }

    def curves(self, image_ids: Sequence[int] | None = None, *, progress: bool = False) -> dict[Kind, Curves]:
        """Precision and recall of each kind; measured once for what has been added.

        Raises:
            BadInput: as `compute`.
        """
        ids = self.image_ids(image_ids)
        if ids not in self._curves:
            with collector_paused(), tqdm(unit="pair", desc="AP", disable=not progress) as bar:
                self._curves[ids] = self._measure(ids, bar)
        return self._curves[ids]

    def image_ids(self, wanted: Sequence[int] | None = None) -> tuple[int, ...]:
        """The images to measure, ascending; None: all.

        Raises:
            BadInput: no image, or one that the ground truth lacks.
        """
        ids = tuple(sorted(self.truth.sizes if wanted is None else {int(i) for i in wanted}))
        if not ids:
            raise BadInput(f"{self._where}: no images to evaluate")
        for image_id in ids:
            if image_id not in self.truth.sizes:
                raise BadInput(f"{self._where}: no image {image_id} to evaluate")
        return ids

    def size_of(self, image_id: int) -> Size:
        """`(height, width)` of an image."""
        return self.truth.sizes[image_id]

    def truths_by_image(self, image_ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
        """The ground truth of each image, crowds included, in the file's order."""
        return {image_id: self.truth.records[image_id] for image_id in image_ids}

    def results_by_image(self, image_ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
        """The results of each image by descending score, of each category no more than count."""
        grouped: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
        counts: Counter[Pair] = Counter()
        for result in sorted(self.results, key=lambda result: -result["score"]):
            pair = result["image_id"], result["category_id"]
            counts[pair] += 1
            if pair[0] in grouped and counts[pair] <= self.max_detections:
                grouped[pair[0]].append(result)
        return grouped

    def _checked(self, result: Mapping[str, Any], index: int) -> dict[str, Any]:
        missing = [k for k in ("image_id", "category_id", "bbox", "score", "segmentation") if k not in result]
        if missing:
            raise BadInput(f"result {index} has no {missing[0]}; see COCO's result format")
        image_id, category_id = as_id(result["image_id"]), as_id(result["category_id"])
        if image_id not in self.truth.sizes:
            raise BadInput(f"result {index}: {self._where} has no image {result['image_id']!r}")
        if category_id not in self.truth.categories:
            raise BadInput(f"result {index}: {self._where} has no category {result['category_id']!r}")
        size, mask = [*self.truth.sizes[image_id]], result["segmentation"]
        is_rle = isinstance(mask, Mapping) and isinstance(mask.get("counts"), (str, bytes))
        if not is_rle or [*mask.get("size", ())] != size:
            raise BadInput(f"result {index}: its mask must be an RLE of image {image_id}, size {size}")
        score, box = result["score"], result["bbox"]
        if not isinstance(score, Real) or not math.isfinite(score):
            raise BadInput(f"result {index}: score {score} is not a number")
        sides = list(box) if isinstance(box, (Sequence, np.ndarray)) else []
        if len(sides) != 4 or not all(isinstance(side, Real) and math.isfinite(side) for side in sides):
            raise BadInput(f"result {index}: bbox {box} is not [x, y, width, height]")
        return {**result, "image_id": image_id, "category_id": category_id}

    def _measure(self, ids: tuple[int, ...], bar: tqdm[Any]) -> dict[Kind, Curves]:
        # The library keeps ids as floats: it is given positions, which are exact and keep the order.
        numbers = {image_id: number for number, image_id in enumerate(self.truth.sizes)}
        chosen = [numbers[image_id] for image_id in ids]
        truth = self._index(numbers, [record for image_id in ids for record in self.truth.records[image_id]])
        boxes = _Evaluation(
            truth, self._index(numbers, self._found("bbox")), chosen, self.max_detections, bar
        )
        measured: dict[Kind, Curves] = {"bbox": boxes.measure("bbox")}
        del boxes
        found = self._index(numbers, self._found("segmentation"))
        masks = _Evaluation(truth, found, chosen, self.max_detections, bar)
        return {**measured, "segm": masks.measure("segm"), "boundary": masks.measure("boundary")}

    def _index(self, numbers: Mapping[int, int], records: Iterable[Mapping[str, Any]]) -> COCO:
        """Return the library's index over copies of the records, images and categories by their positions."""
        categories = {category_id: number for number, category_id in enumerate(self.truth.categories)}
        copies = [
            {
                **record,
                "image_id": numbers[record["image_id"]],
                "category_id": categories[record["category_id"]],
            }
            for record in records
        ]
        return COCO(
            {
                "images": [{"id": number} for number in numbers.values()],
                "categories": [{"id": number} for number in categories.values()],
                "annotations": copies,
            }
        )

    def _found(self, shape: Literal["bbox", "segmentation"]) -> Iterator[dict[str, Any]]:
        """Yield the results with the area of their box or of their mask."""
        shapes = [result[shape] for result in self.results]
        areas = [w * h for _, _, w, h in shapes] if shape == "bbox" else mask_api.area(shapes).tolist()
        for number, (result, area) in enumerate(zip(self.results, areas, strict=True), start=1):
            keys = ("image_id", "category_id", "score", shape)
            yield {**{key: result[key] for key in keys}, "id": number, "area": area}


class _Evaluation(COCOeval_faster):
    """The library's matching and accumulation over our overlaps.

    The library would encode every mask anew, draw the boundary of each over the whole image, and hold all of
    it once for every kind of AP. Here masks and boundaries share one index and one set of mask overlaps.
    """

    def __init__(self, truth: COCO, found: COCO, ids: list[int], max_detections: int, bar: tqdm[Any]) -> None:
        super().__init__(truth, found, "bbox")
        self.params.imgIds = ids
        self.params.maxDets = [max_detections]
        self._kind: Kind = "bbox"
        self._bar = bar
        self._mask_ious: dict[Pair, Overlaps] = {}
        super()._prepare()  # type: ignore[no-untyped-call]

    def measure(self, kind: Kind) -> Curves:
        """One kind of AP; boundaries after masks."""
        self._kind = kind
        self._bar.set_description(f"{kind} AP")
        self._bar.reset(total=len(self._nonempty_iou_pairs))
        self.evaluate()  # type: ignore[no-untyped-call]
        return Curves(self.eval["precision"][..., -1], self.eval["recall"][..., -1])

    def _prepare(self) -> None:
        """Done once, for all kinds."""

    def computeIoU(self, imgId: int, catId: int) -> Overlaps:
        """Overlaps of one image's objects of one category, the results by descending score."""
        self._bar.update()
        truths = self.gt_dataset.get(imgId, catId)
        found = sorted(self.dt_dataset.get(imgId, catId), key=lambda result: -result["score"])
        found = found[: self.params.maxDets[-1]]
        if self._kind == "bbox":
            return box_ious(found, truths)
        if self._kind == "boundary":
            return boundary_ious(found, truths, self._mask_ious[imgId, catId])
        return self._mask_ious.setdefault((imgId, catId), mask_ious(found, truths))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan
