"""Microscopy's AP: TP / (TP + FP + FN) between two label images, at an IoU threshold.

Objects are paired one to one so that the number of pairs that reach the threshold is largest and, among such pairings,
the sum of their IoU. The figures equal those of `stardist.matching`: "matching" is its `by_image=True`, the mean over
images; "matching_pooled" is its default, the pooled counts of all images. As in stardist, an image without objects in
both the ground truth and the results counts as 0 in the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.overlap import Record, mask_ious
from embedmask.evaluation.thresholds import Thresholds, is_decided
from embedmask.masks import RunMasks
from embedmask.structures import Size

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
Labels = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MatchCounts:
    """Counts of matched objects at each of K thresholds.

    Attributes:
        hits: TP, int64 `[K]`.
        hit_iou: sum of the IoU of the pairs, float64 `[K]`.
        num_gt: objects of the ground truth, TP + FN.
        num_pred: predicted objects, TP + FP.
    """

    hits: NDArray[np.int64]
    hit_iou: Floats
    num_gt: int
    num_pred: int

    def __add__(self, other: MatchCounts) -> MatchCounts:
        """Return the pooled counts."""
        return MatchCounts(
            self.hits + other.hits,
            self.hit_iou + other.hit_iou,
            self.num_gt + other.num_gt,
            self.num_pred + other.num_pred,
        )

    @property
    def ap(self) -> Floats:
        """Return TP / (TP + FP + FN), `[K]`; 0 without objects."""
        return _ratio(self.hits, self.num_gt + self.num_pred - self.hits)

    @property
    def precision(self) -> Floats:
        """Return TP / (TP + FP), `[K]`."""
        return _ratio(self.hits, self.num_pred)

    @property
    def recall(self) -> Floats:
        """Return TP / (TP + FN), `[K]`."""
        return _ratio(self.hits, self.num_gt)

    @property
    def f1(self) -> Floats:
        """Return 2 TP / (2 TP + FP + FN), `[K]`."""
        return _ratio(2 * self.hits, self.num_gt + self.num_pred)

    @property
    def panoptic_quality(self) -> Floats:
        """Return the sum of IoU / (TP + FP / 2 + FN / 2), `[K]`."""
        return _ratio(2 * self.hit_iou, self.num_gt + self.num_pred)

    def metrics(self) -> dict[str, float]:
        """Return AP50, AP55 .. AP90 and their mean mAP, and at IoU 0.5 precision50, recall50, F1_50 and PQ50.

        The counts must be those of `THRESHOLDS`.
        """
        ap = self.ap.tolist()
        at_half = {
            "precision50": self.precision[0],
            "recall50": self.recall[0],
            "F1_50": self.f1[0],
            "PQ50": self.panoptic_quality[0],
        }
        return {
            "mAP": sum(ap) / len(ap),
            **{f"AP{round(100 * iou)}": value for iou, value in zip(THRESHOLDS, ap, strict=True)},
            **{name: float(value) for name, value in at_half.items()},
        }


def _ratio(part: NDArray[Any], whole: NDArray[Any] | int) -> Floats:
    # part <= whole, so 0 / 0 becomes 0
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)


def match_labels(gt: Labels, pred: Labels, thresholds: Sequence[float] = THRESHOLDS) -> MatchCounts:
    """Match the objects of two label images of one image.

    Args:
        gt: ground truth, integers `[H, W]`; 0 is background, every other number an object.
        pred: prediction, the same.
        thresholds: as in `match_pairs`.

    Raises:
        BadInput: the label images differ in size.
    """
    if gt.shape != pred.shape:
        raise BadInput(f"label images of different sizes, {gt.shape} and {pred.shape}; compare one image")
    gt_ids, gt_areas = np.unique(gt[gt > 0], return_counts=True)  # [G]
    pred_ids, pred_areas = np.unique(pred[pred > 0], return_counts=True)  # [R]
    # count the pixels of each overlapping pair: one code per pair, row * R + column
    shared = (gt > 0) & (pred > 0)
    rows, columns = np.searchsorted(gt_ids, gt[shared]), np.searchsorted(pred_ids, pred[shared])
    codes, intersections = np.unique(rows * max(len(pred_ids), 1) + columns, return_counts=True)
    rows, columns = np.divmod(codes, max(len(pred_ids), 1))
    ious = intersections / (gt_areas[rows] + pred_areas[columns] - intersections)
    return match_pairs(rows, columns, ious, (len(gt_ids), len(pred_ids)), thresholds)


def match_pairs(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    ious: Floats,
    counts: tuple[int, int],
    thresholds: Sequence[float] = THRESHOLDS,
) -> MatchCounts:
    """Match objects one to one at each of K thresholds.

    Args:
        rows: index of the ground truth of each overlapping pair, int64 `[P]`.
        columns: index of the prediction of each pair, int64 `[P]`.
        ious: IoU of each pair, float64 `[P]`.
        counts: number of objects in the ground truth and in the prediction, including those without overlap.
        thresholds: a pair counts if its IoU is at least as large.
    """
    hits, hit_iou = np.zeros(len(thresholds), dtype=np.int64), np.zeros(len(thresholds))
    for k, threshold in enumerate(thresholds):
        candidates = ious >= threshold
        i, j, values = rows[candidates], columns[candidates], ious[candidates]
        # disjoint masks have at most one partner with an IoU above 0.5: nothing to choose then
        if len(np.unique(i)) < len(i) or len(np.unique(j)) < len(j):
            from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

            (row_ids, i), (column_ids, j) = (np.unique(index, return_inverse=True) for index in (i, j))
            table = np.zeros((len(row_ids), len(column_ids)))
            table[i, j] = values
            # all IoU terms together stay below 1, so that one more pair outweighs them
            gains = np.where(table > 0, 1 + table / (2 * min(table.shape)), 0)
            values = table[linear_sum_assignment(gains, maximize=True)]
            values = values[values > 0]
        hits[k], hit_iou[k] = len(values), values.sum()
    return MatchCounts(hits, hit_iou, *counts)


def matching_metrics(
    evaluator: CocoEvaluator, score_threshold: Thresholds, image_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """Compute the matching metrics of the results of an evaluator.

    COCO's AP ranks results; matching needs decisions. Results below the threshold are dropped, and where results
    overlap, the higher score keeps the pixels. Classes are matched separately and counted together. Crowds are left
    out, since a label image cannot represent them, and so are the results that lie in a crowd of their class by at
    least half and match no object, as in COCO's AP.

    Returns:
        `matching/` (mean over images) and `matching_pooled/` (pooled counts) with the names of
        `MatchCounts.metrics`.

    Raises:
        BadInput: as `CocoEvaluator.compute`; or the run lengths of a mask are damaged.
    """
    ids = evaluator.image_ids(image_ids)
    ground_truth, results = evaluator.ground_truth, evaluator.results_by_image(ids)
    zero = MatchCounts(np.zeros(len(THRESHOLDS), dtype=np.int64), np.zeros(len(THRESHOLDS)), 0, 0)
    counts = []
    for image_id in ids:
        objects = [gt for gt in ground_truth.records[image_id] if not gt["iscrowd"]]
        crowds = [gt for gt in ground_truth.records[image_id] if gt["iscrowd"]]
        decided = [r for r in results[image_id] if is_decided(r["score"], r["category_id"], score_threshold)]
        decided = _outside_crowds(decided, objects, crowds)
        categories = {record["category_id"] for record in (*objects, *decided)}
        size = ground_truth.sizes[image_id]
        labels = ((_labels(objects, c, size), _labels(decided, c, size)) for c in categories)
        counts.append(sum((match_labels(*pair) for pair in labels), zero))
    by_image = [image.metrics() for image in counts]
    mean = {name: float(np.mean([values[name] for values in by_image])) for name in by_image[0]}
    return {
        **{f"matching/{name}": value for name, value in mean.items()},
        **{f"matching_pooled/{name}": value for name, value in sum(counts, zero).metrics().items()},
    }


def _outside_crowds(results: list[Any], objects: list[Any], crowds: list[Any]) -> list[Any]:
    """Return the results that do not lie in a crowd of their class, or match an object of their class."""
    if not results or not crowds:
        return results
    inside, matching = (
        np.where(_same_class(results, others), mask_ious(results, others), 0).max(1, initial=0.0)
        >= THRESHOLDS[0]
        for others in (crowds, objects)
    )
    return [result for result, drop in zip(results, inside & ~matching, strict=True) if not drop]


def _same_class(results: Sequence[Record], others: Sequence[Record]) -> NDArray[np.bool_]:
    """Return which pairs have the same category, bool `[R, G]`."""
    rows = [[result["category_id"] == other["category_id"] for other in others] for result in results]
    return np.array(rows, dtype=bool).reshape(len(results), len(others))


def _labels(records: Iterable[dict[str, Any]], category: int, size: Size) -> Labels:
    """Return the masks of one category as a label image."""
    rles = (record["segmentation"] for record in records if record["category_id"] == category)
    return RunMasks.from_rle(rles, size).to_label_image()
