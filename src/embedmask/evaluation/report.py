"""Evaluation report on one web page: metrics, curves, errors and images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embedmask.data.coco import CocoInstances
from embedmask.evaluation import page
from embedmask.evaluation.coco import IOU_TYPES, CocoEvaluator
from embedmask.evaluation.error_analysis import (
    ERROR_TYPES,
    ErrorType,
    ImageErrors,
    ap50,
    classify_errors,
    count_errors,
)
from embedmask.evaluation.overlap import boundaries
from embedmask.evaluation.threshold_curves import ThresholdCurves
from embedmask.evaluation.thresholds import Thresholds, describe, is_decided
from embedmask.files import write_text
from embedmask.inference.results import to_detections
from embedmask.masks import RunMasks
from embedmask.structures import Instances
from embedmask.visualize import draw_detections

Record = Mapping[str, Any]
IMAGES = 6
"""Number of images shown as the worst and as the best."""
SHAPE_NAMES = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries"}
ERROR_HEAD = ("error", "count", "share", "gain", "")
DEFINITIONS: dict[ErrorType, str] = {
    "classification": "overlaps an object of another class (IoU at least 0.5)",
    "localization": "overlaps an object of its class, but too little (IoU 0.1 to 0.5)",
    "both": "overlaps an object of another class, and too little (IoU 0.1 to 0.5)",
    "duplicate": "overlaps an object that a higher-scoring result has matched",
    "background": "overlaps no object (IoU below 0.1)",
    "missed": "an object without a matching result",
}


def write_report(
    folder: Path,
    evaluator: CocoEvaluator,
    dataset: CocoInstances,
    metrics: Mapping[str, float],
    *,
    title: str,
    score_threshold: Thresholds,
) -> Path:
    """Write `index.html`, a page that embeds its images and needs no network.

    Args:
        folder: created if missing.
        evaluator: the ground truth and the results.
        dataset: the images; its ids and classes are those of the evaluator.
        metrics: figures of the first table, by `GROUP/METRIC`.
        title: of the page.
        score_threshold: results from here on are drawn, counted as errors and used to rank the images; one for all
            categories, or by category id.

    Returns:
        The path of the page.

    Raises:
        BadInput: an image cannot be read; or as `CocoEvaluator.compute`.
    """
    images = classify_errors(evaluator, score_threshold)
    facts = {
        "images": len(images),
        "objects": sum(len(image.ground_truth) for image in images),
        "classes": len(evaluator.class_names),
        "results": sum(len(image.predictions) for image in images),
        f"results that score {describe(score_threshold)}": sum(image.num_decided for image in images),
        "results of an image and class that count, at most": evaluator.max_detections,
    }
    sections = [
        page.table(("", ""), [(name, str(value)) for name, value in facts.items()]),
        _metrics(metrics, thin_fraction(evaluator)),
        _curves(evaluator),
        _thresholds(images, score_threshold),
        _classes(evaluator, images),
        _errors(images, score_threshold),
        *_images(evaluator, dataset, images, score_threshold),
    ]
    path = folder / "index.html"
    write_text(path, page.document(title, sections))
    return path


def thin_fraction(evaluator: CocoEvaluator) -> float:
    """Return the fraction of objects that lie entirely inside their boundary band, 0..1; 0 without objects.

    For these, boundary AP and mask AP measure the same pixels.
    """
    thin: list[bool] = []
    for image_id, gts in evaluator.ground_truth.records.items():
        rles = (gt["segmentation"] for gt in gts if not gt["iscrowd"])
        masks = RunMasks.from_rle(rles, evaluator.ground_truth.sizes[image_id])
        thin.extend(boundaries(masks).areas() == masks.areas())
    return float(np.mean(thin)) if thin else 0.0


def _metrics(metrics: Mapping[str, float], thin: float) -> str:
    """Return the section of the metrics; groups with the same metrics share a table."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        group, _, metric = name.partition("/")
        groups.setdefault(group, {})[metric] = value
    heads = dict.fromkeys(tuple(values) for values in groups.values())
    tables = [
        page.table(
            ("", *head),
            [
                (SHAPE_NAMES.get(group, group.replace("_", ", ")), *map(page.number, values.values()))
                for group, values in groups.items()
                if tuple(values) == head
            ],
        )
        for head in heads
    ]
    text = (
        "AP is the mean over IoU 0.5 to 0.95, AP50 at 0.5 alone; small is below 32 x 32 px, large from 96 x 96. "
        "Boundary AP compares a band along the outline, 2 % of the image's diagonal wide. "
        "Matching is TP / (TP + FP + FN) of the decided results, mean over images, or pooled over all images."
    )
    if thin > 0:
        text += f" {thin:.0%} of the objects lie entirely inside that band: their boundary AP equals their mask AP."
    return page.section("Figures", text, *tables)


def _curves(evaluator: CocoEvaluator) -> str:
    """Return the section of precision-recall curves."""
    measured = evaluator.curves()
    charts = [
        page.chart(
            SHAPE_NAMES[iou_type],
            [(f"IoU {iou}", measured[iou_type].at(iou)) for iou in (0.5, 0.75, 0.9)],
        )
        for iou_type in IOU_TYPES
    ]
    text = "Precision at each recall, mean over the classes; AP is the area under the curve."
    return page.section("Precision and recall", text, f'<div class="row">{"".join(charts)}</div>')


def _thresholds(images: list[ImageErrors], used: Thresholds) -> str:
    """Return the section of precision, recall and F1 against the score threshold."""
    curves = ThresholdCurves.of(images)
    text = "At mask IoU 0.5, of the results that score at least the threshold, pooled over all classes."
    if curves.best is not None:
        text += f" F1 is highest at {curves.best:g}: {page.number(float(curves.f1.max()))}."
    decided = [p for image in images for p in image.predictions if p.is_decided(used)]
    hits = sum(p.outcome == "correct" for p in decided)
    results = sum(p.outcome != "ignored" for p in decided)
    f1 = 2 * hits / max(results + sum(len(image.ground_truth) for image in images), 1)
    text += f" Of the results that score {describe(used)}, as in this report, it is {page.number(f1)}."
    lines = [("F1", curves.f1), ("precision", curves.precision), ("recall", curves.recall)]
    return page.section("Score threshold", text, page.chart("", lines, axes=("score threshold", "")))


def _classes(evaluator: CocoEvaluator, images: list[ImageErrors]) -> str:
    """Return the section of AP by class."""
    per_class = evaluator.per_class()
    counts = Counter(gt["category_id"] for image in images for gt in image.ground_truth)
    categories = evaluator.ground_truth.categories
    curves = ThresholdCurves.by_category(images, categories)
    rows = []
    for category, (name, values) in zip(categories, per_class.items(), strict=True):
        aps = [values[f"{iou_type}/AP"] for iou_type in IOU_TYPES]
        best = curves[category].best
        threshold = "–" if best is None else f"{best:.2f}"
        row = [name, page.bar(aps[1]), *map(page.number, aps), str(counts[category]), threshold]
        # nan does not sort: classes without objects go last
        rows.append((-math.inf if math.isnan(aps[1]) else aps[1], row))
    rows.sort(key=lambda row: row[0], reverse=True)
    ap_names = [f"AP {SHAPE_NAMES[iou_type]}" for iou_type in IOU_TYPES]
    head = ("class", "mask AP", *ap_names, "objects", "best threshold")
    return page.section("Classes", "By mask AP, highest first.", page.table(head, [row for _, row in rows]))


def _errors(images: list[ImageErrors], score_threshold: Thresholds) -> str:
    """Return the section of error counts and of the AP50 gained by correcting each error type."""
    counts, base = count_errors(images, score_threshold), ap50(images)
    gains: dict[ErrorType, float] = {error: ap50(images, error) - base for error in ERROR_TYPES}
    total = max(sum(counts.values()), 1)
    rows = [
        (
            error,
            str(counts[error]),
            f"{counts[error] / total:.0%}",
            page.number(gains[error]),
            page.bar(gains[error]),
            page.note(DEFINITIONS[error]),
        )
        for error in ERROR_TYPES
    ]
    text = (
        f"Errors of the results that score {describe(score_threshold)}, by mask IoU; each counts as the first type "
        f"of the list that applies. The gain is the rise of mask AP50, {page.number(base)} over all results, if the "
        "error did not occur: a wrong class or location corrected, other wrong results and missed objects removed."
    )
    return page.section("Errors", text, page.table((*ERROR_HEAD, page.note("definition", "th")), rows))


def _images(
    evaluator: CocoEvaluator, dataset: CocoInstances, images: list[ImageErrors], score_threshold: Thresholds
) -> list[str]:
    """Return the sections of the worst and the best images, without those whose quality is undefined."""
    # of images of equal quality, the one with more objects and results first
    ranked = sorted(
        (image for image in images if not math.isnan(image.quality)),
        key=lambda image: (image.quality, -len(image.ground_truth) - image.num_decided),
    )
    # no image is shown twice
    count = min(IMAGES, (len(ranked) + 1) // 2)
    text = (
        f"Left the ground truth, right the results that score {describe(score_threshold)}. "
        "The figure is TP / (TP + FP + FN), mean over IoU 0.5 to 0.9."
    )
    parts = []
    for title, chosen in (("Worst images", ranked[:count]), ("Best images", ranked[count:][::-1][:IMAGES])):
        results = evaluator.results_by_image([image.image_id for image in chosen])
        pairs = []
        for image in chosen:
            index, gts = dataset.image_ids.index(image.image_id), image.ground_truth
            own = results[image.image_id]
            decided = [r for r in own if is_decided(r["score"], r["category_id"], score_threshold)]
            name, counts = dataset.image_path(index).name, f"objects {len(gts)}, results {len(decided)}"
            caption = f"{name} · {image.quality:.3f} · {counts}"
            pairs.append(page.pair(_draw(dataset, index, gts), _draw(dataset, index, decided), caption))
        if pairs:
            parts.append(page.section(title, text, f'<div class="row">{"".join(pairs)}</div>'))
    return parts


def _draw(dataset: CocoInstances, index: int, records: Sequence[Record]) -> NDArray[np.uint8]:
    """Draw ground truth or results over item `index`; scores are written if all records have one."""
    masks = RunMasks.from_rle((record["segmentation"] for record in records), dataset.sizes[index])
    boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([dataset.category_ids.index(record["category_id"]) for record in records]).long()
    scores = torch.tensor([record.get("score", 1.0) for record in records])
    # xywh -> xyxy, float32 [R, 4]
    xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    detections = to_detections(Instances(xyxy, scores, labels, masks), dataset.class_names)
    if any("score" not in record for record in records):
        detections.confidence = None
    return draw_detections(dataset.image(index), detections, dataset.class_names)
