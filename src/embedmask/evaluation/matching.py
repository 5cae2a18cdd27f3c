"""AP as microscopy counts it: TP / (TP + FP + FN) between two label images, at an IoU threshold.

Objects are paired so that as many pairs as possible reach the threshold and, among such pairings, their IoU is
largest. The figures are those of `stardist.matching`: "matching" is its `by_image=True`, the mean over images,
"matching_pooled" its default, the counts of all images together. As there, an image without any object in
truth and result counts 0 in the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.overlap import Crop, crop_of
from embedmask.evaluation.thresholds import Thresholds, is_decided
from embedmask.structures import Size

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
Labels = NDArray[np.int32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MatchCounts:
    """What was found, at each of K thresholds.

    Attributes:
        hits: TP, int64 `[K]`.
        hit_iou: sum of the IoU of the pairs, float64 `[K]`.
        num_true: objects of the ground truth, TP + FN.
        num_found: objects found, TP + FP.
    """

    hits: NDArray[np.int64]
    hit_iou: Floats
    num_true: int
    num_found: int

    def __add__(self, other: MatchCounts) -> MatchCounts:
        """Both pooled."""
        return MatchCounts(
            self.hits + other.hits,
            self.hit_iou + other.hit_iou,
            self.num_true + other.num_true,
            self.num_found + other.num_found,
        )

    @property
    def ap(self) -> Floats:
        """TP / (TP + FP + FN); 0 without objects."""
        return _share(self.hits, self.num_true + self.num_found - self.hits)

    @property
    def precision(self) -> Floats:
        """TP / (TP + FP)."""
        return _share(self.hits, self.num_found)

    @property
    def recall(self) -> Floats:
        """TP / (TP + FN)."""
        return _share(self.hits, self.num_true)

    @property
    def f1(self) -> Floats:
        """2 TP / (2 TP + FP + FN)."""
        return _share(2 * self.hits, self.num_true + self.num_found)

    @property
    def panoptic_quality(self) -> Floats:
        """Sum of IoU / (TP + FP / 2 + FN / 2)."""
        return _share(2 * self.hit_iou, self.num_true + self.num_found)


def _share(part: NDArray[Any], whole: NDArray[Any] | int) -> Floats:
    return np.asarray(part / np.maximum(whole, 1), dtype=np.float64)


def match_labels(truth: Labels, found: Labels, thresholds: Sequence[float] = THRESHOLDS) -> MatchCounts:
    """Compare two label images of one image.

    Args:
        truth: integers `[H, W]`, 0 is background; which numbers stand for the objects does not matter.
        found: the same.
        thresholds: K of them; a pair counts when its IoU is at least as large.

    Raises:
        BadInput: images of different sizes.
    """
    if truth.shape != found.shape:
        raise BadInput(f"label images of different sizes, {truth.shape} and {found.shape}; compare one image")
    true_ids, true_areas = np.unique(truth[truth > 0], return_counts=True)
    found_ids, found_areas = np.unique(found[found > 0], return_counts=True)
    shared = (truth > 0) & (found > 0)
    rows, columns = np.searchsorted(true_ids, truth[shared]), np.searchsorted(found_ids, found[shared])
    codes, both = np.unique(rows * max(len(found_ids), 1) + columns, return_counts=True)
    rows, columns = np.divmod(codes, max(len(found_ids), 1))
    ious = both / (true_areas[rows] + found_areas[columns] - both)
    return match_pairs(rows, columns, ious, (len(true_ids), len(found_ids)), thresholds)


def match_pairs(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    ious: Floats,
    counts: tuple[int, int],
    thresholds: Sequence[float] = THRESHOLDS,
) -> MatchCounts:
    """Pair objects one to one at each threshold.

    Args:
        rows: of each pair that overlaps, the object of the ground truth.
        columns: the object found.
        ious: their IoU, float64.
        counts: how many objects there are in truth and found, those without overlap too.
    """
    kept = [_assign(rows, columns, ious, threshold) for threshold in thresholds]
    hits = np.array([len(values) for values in kept], dtype=np.int64)
    return MatchCounts(hits, np.array([values.sum() for values in kept]), *counts)


def _assign(rows: NDArray[np.int64], columns: NDArray[np.int64], ious: Floats, threshold: float) -> Floats:
    """IoU of the pairs of the best one-to-one pairing.

    Masks that do not overlap each other leave no choice above 0.5: each object has one partner at most.
    """
    enough = ious >= threshold
    rows, columns, ious = rows[enough], columns[enough], ious[enough]
    if len(np.unique(rows)) == len(rows) and len(np.unique(columns)) == len(columns):
        return ious
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    (row_ids, rows), (column_ids, columns) = (np.unique(i, return_inverse=True) for i in (rows, columns))
    gains = np.zeros((len(row_ids), len(column_ids)))
    gains[rows, columns] = 1 + ious / (2 * min(gains.shape))  # one more pair outweighs any IoU
    chosen = linear_sum_assignment(gains, maximize=True)
    table = np.zeros_like(gains)
    table[rows, columns] = ious
    values: Floats = table[chosen]
    return values[values > 0]


def label_image(masks: Iterable[Crop], size: Size) -> Labels:
    """Masks as one label image, int32 `[H, W]`: 1, 2, ... in their order, 0 is background.

    Where masks overlap, the pixel belongs to the one that comes first; one that is wholly covered disappears.
    """
    image = np.zeros(size, dtype=np.int32)
    for label, mask in enumerate(masks, start=1):
        (y, x), (h, w) = mask.offset, mask.pixels.shape
        window = image[y : y + h, x : x + w]
        window[mask.pixels & (window == 0)] = label
    return image


def matching_metrics(
    evaluator: CocoEvaluator, score_threshold: Thresholds, image_ids: Sequence[int] | None = None
) -> dict[str, float]:
    """The microscopy figures of what the evaluator holds.

    They need final decisions, where COCO's AP ranks: results that score below the threshold are left out, and
    where results overlap the higher score keeps the pixels. Classes are compared apart and counted together.
    Crowds have no place in a label image and are left out.

    Args:
        score_threshold: 0..1, for all categories or by category id.
        image_ids: as in `CocoEvaluator.compute`.

    Returns:
        `matching/` (mean over images) and `matching_pooled/`: AP50, AP55 .. AP90, their mean mAP, and at IoU
        0.5 precision50, recall50, F1_50, PQ50.

    Raises:
        BadInput: as `CocoEvaluator.compute`; or a mask whose run lengths are damaged.
    """
    ids = evaluator.image_ids(image_ids)
    truths = evaluator.truths_by_image(ids)
    found = evaluator.results_by_image(ids)
    none = MatchCounts(np.zeros(len(THRESHOLDS), dtype=np.int64), np.zeros(len(THRESHOLDS)), 0, 0)
    tallies = []
    for image_id in ids:
        kept = [r for r in found[image_id] if is_decided(r["score"], r["category_id"], score_threshold)]
        tallies.append(sum(_match_image(truths[image_id], kept, evaluator.size_of(image_id)), none))
    pooled = sum(tallies, none)
    per_image = {name: np.mean([values[name] for values in map(_named, tallies)]) for name in _named(none)}
    return {
        **{f"matching/{name}": float(value) for name, value in per_image.items()},
        **{f"matching_pooled/{name}": value for name, value in _named(pooled).items()},
    }


def _match_image(
    truths: list[dict[str, Any]], found: list[dict[str, Any]], size: Size
) -> Iterable[MatchCounts]:
    """A tally of each class."""
    for category in {record["category_id"] for record in (*truths, *found)}:
        objects = [t for t in truths if t["category_id"] == category and not t["iscrowd"]]
        results = [r for r in found if r["category_id"] == category]
        yield match_labels(label_image(_crops(objects), size), label_image(_crops(results), size))


def _crops(records: Iterable[dict[str, Any]]) -> Iterable[Crop]:
    return (crop_of(record["segmentation"]) for record in records)


def _named(tally: MatchCounts) -> dict[str, float]:
    ap = tally.ap.tolist()
    at_half = {
        "precision50": tally.precision[0],
        "recall50": tally.recall[0],
        "F1_50": tally.f1[0],
        "PQ50": tally.panoptic_quality[0],
    }
    return {
        "mAP": sum(ap) / len(ap),
        **{f"AP{round(100 * iou)}": value for iou, value in zip(THRESHOLDS, ap, strict=True)},
        **{name: float(value) for name, value in at_half.items()},
    }
