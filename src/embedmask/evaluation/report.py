"""One page that shows how good a model is, and where it errs: figures, curves, errors, images."""

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
from embedmask.evaluation.coco import KINDS, CocoEvaluator
from embedmask.evaluation.error_analysis import (
    ERROR_KINDS,
    ErrorKind,
    ImageErrors,
    ap50,
    classify_errors,
    count_errors,
)
from embedmask.evaluation.overlap import boundary_of, crop_of
from embedmask.evaluation.threshold_curves import ThresholdCurves
from embedmask.evaluation.thresholds import Thresholds, describe, is_decided
from embedmask.files import write_text
from embedmask.inference.results import to_detections
from embedmask.structures import CropMasks, Instances
from embedmask.visualize import draw_detections

Record = Mapping[str, Any]
IMAGES = 6
"""Shown of the worst and of the best images."""
KIND_NAMES = {"bbox": "boxes", "segm": "masks", "boundary": "boundaries"}
ERROR_HEAD = ("error", "count", "share", "gain", "")
DEFINITIONS: dict[ErrorKind, str] = {
    "classification": "overlaps an object of another class (IoU at least 0.5)",
    "localisation": "overlaps an object of its class, but too little (IoU 0.1 to 0.5)",
    "both": "overlaps an object of another class, and too little (IoU 0.1 to 0.5)",
    "duplicate": "an object that a surer result has found already",
    "background": "no object there (IoU below 0.1)",
    "missed": "an object that no result is about",
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
    """Write `index.html`, which holds its images and needs no network.

    Args:
        folder: made where it is missing.
        evaluator: holds the results.
        dataset: the images; its ids and classes are the evaluator's.
        metrics: what stands in the table, by `KIND/METRIC`.
        title: of the page.
        score_threshold: results from here on are drawn, counted as errors, and decide how good an image is; for all
            categories or by category id.

    Raises:
        BadInput: as `CocoEvaluator.compute`, or an image cannot be read.
    """
    images = classify_errors(evaluator, score_threshold)
    sections = [
        _summary(evaluator, images, score_threshold),
        _metrics(metrics, thin_share(evaluator)),
        _curves(evaluator),
        _thresholds(images, score_threshold),
        _classes(evaluator, images),
        _errors(images, score_threshold),
        *_images(evaluator, dataset, images, score_threshold),
    ]
    path = folder / "index.html"
    write_text(path, page.document(title, sections))
    return path


def _summary(evaluator: CocoEvaluator, images: list[ImageErrors], score_threshold: Thresholds) -> str:
    facts = {
        "images": len(images),
        "objects": sum(len(image.truths) for image in images),
        "classes": len(evaluator.class_names),
        "results": sum(len(image.findings) for image in images),
        f"results that score {describe(score_threshold)}": sum(image.num_decided for image in images),
        "results of an image and class that count, at most": evaluator.max_detections,
    }
    return page.table(("", ""), [(name, str(value)) for name, value in facts.items()])


def thin_share(evaluator: CocoEvaluator) -> float:
    """Return the share of objects that lie wholly inside their boundary band, 0..1; 0 without objects.

    For them boundary AP and mask AP measure the same pixels.
    """
    objects = [
        truth for truths in evaluator.truths_by_image(evaluator.image_ids()).values() for truth in truths
    ]
    masks = [truth["segmentation"] for truth in objects if not truth["iscrowd"]]
    thin = [np.array_equal(boundary_of(mask).pixels, crop_of(mask).pixels) for mask in masks]
    return float(np.mean(thin)) if thin else 0.0


def _metrics(metrics: Mapping[str, float], thin: float) -> str:
    """One table for each group of kinds that have their metrics in common."""
    kinds: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, _, metric = name.partition("/")
        kinds.setdefault(kind, {})[metric] = value
    heads = dict.fromkeys(tuple(values) for values in kinds.values())
    tables = [
        page.table(
            ("", *head),
            [
                (KIND_NAMES.get(kind, kind.replace("_", ", ")), *map(page.number, values.values()))
                for kind, values in kinds.items()
                if tuple(values) == head
            ],
        )
        for head in heads
    ]
    text = (
        "AP is the mean over IoU 0.5 to 0.95, AP50 at 0.5 alone; small is below 32 x 32 px, large from 96 x 96. "
        "Boundary AP looks at a band along the outline, 2 % of the image's diagonal wide. "
        "Matching is TP / (TP + FP + FN) of the decided results, mean over images, or of all images pooled."
    )
    if thin > 0:
        text += (
            f" {thin:.0%} of the objects lie wholly inside that band: for them boundary AP equals mask AP."
        )
    return page.section("Figures", text, *tables)


def _curves(evaluator: CocoEvaluator) -> str:
    measured = evaluator.curves()
    charts = [
        page.chart(
            KIND_NAMES[kind],
            [(f"IoU {iou}", measured[kind].at(iou)) for iou in (0.5, 0.75, 0.9)],
        )
        for kind in KINDS
    ]
    text = "Precision at each recall, mean over the classes; AP is the area below."
    return page.section("Precision and recall", text, f'<div class="row">{"".join(charts)}</div>')


def _thresholds(images: list[ImageErrors], used: Thresholds) -> str:
    """Precision, recall and F1 against the score threshold, and the best one beside the one in use."""
    curves = ThresholdCurves.of(images)
    text = "At mask IoU 0.5, of the results that score at least the threshold, all classes pooled."
    if curves.best is not None:
        text += f" F1 is highest at {curves.best:g}: {page.number(float(curves.f1.max()))}."
    decided = [finding for image in images for finding in image.findings if finding.is_decided(used)]
    hits = sum(finding.verdict == "right" for finding in decided)
    results = sum(finding.verdict != "ignored" for finding in decided)
    f1 = 2 * hits / max(results + sum(len(image.truths) for image in images), 1)
    text += f" Of the results that score {describe(used)}, as in this report, it is {page.number(f1)}."
    lines = [("F1", curves.f1), ("precision", curves.precision), ("recall", curves.recall)]
    return page.section("Score threshold", text, page.chart("", lines, axes=("score threshold", "")))


def _classes(evaluator: CocoEvaluator, images: list[ImageErrors]) -> str:
    per_class = evaluator.per_class()
    categories = Counter(truth["category_id"] for image in images for truth in image.truths)
    rows = []
    for category, (name, values) in zip(evaluator.truth.categories, per_class.items(), strict=True):
        aps = [values[f"{kind}/AP"] for kind in KINDS]
        best = ThresholdCurves.of(images, category).best
        threshold = "–" if best is None else f"{best:.2f}"
        row = [name, page.bar(aps[1]), *map(page.number, aps), str(categories[category]), threshold]
        rows.append((-math.inf if math.isnan(aps[1]) else aps[1], row))
    rows.sort(key=lambda row: row[0], reverse=True)
    head = ("class", "mask AP", *(f"AP {KIND_NAMES[kind]}" for kind in KINDS), "objects", "best threshold")
    return page.section("Classes", "By mask AP, the best first.", page.table(head, [row for _, row in rows]))


def _errors(images: list[ImageErrors], score_threshold: Thresholds) -> str:
    counts, base = count_errors(images, score_threshold), ap50(images)
    gains: dict[ErrorKind, float] = {kind: ap50(images, kind) - base for kind in ERROR_KINDS}
    total = max(sum(counts.values()), 1)
    rows = [
        (
            kind,
            str(counts[kind]),
            f"{counts[kind] / total:.0%}",
            page.number(gains[kind]),
            page.bar(gains[kind]),
            page.note(DEFINITIONS[kind]),
        )
        for kind in ERROR_KINDS
    ]
    text = (
        f"Of the results that score {describe(score_threshold)}, judged by their masks; a wrong one counts as "
        "the first error of the list that fits. The gain is what mask AP50, "
        f"{page.number(base)} over all results, would rise by if this error did not occur: a wrong class or "
        "place corrected, other wrong results taken away, missed objects not asked for."
    )
    return page.section("Errors", text, page.table((*ERROR_HEAD, page.note("what it is", "th")), rows))


def _images(
    evaluator: CocoEvaluator, dataset: CocoInstances, images: list[ImageErrors], score_threshold: Thresholds
) -> list[str]:
    """The worst and the best images; one with nothing to see is neither."""
    ranked = sorted(
        (image for image in images if not math.isnan(image.quality)),
        key=lambda image: (image.quality, -len(image.truths) - image.num_decided),
    )
    count = min(IMAGES, (len(ranked) + 1) // 2)
    text = (
        f"Left the ground truth, right the results that score {describe(score_threshold)}. "
        "The figure is TP / (TP + FP + FN), mean over IoU 0.5 to 0.9."
    )
    parts = []
    for title, chosen in (("Worst images", ranked[:count]), ("Best images", ranked[count:][::-1][:IMAGES])):
        found = evaluator.results_by_image([image.image_id for image in chosen])
        pairs = [_pair(dataset, image, found[image.image_id], score_threshold) for image in chosen]
        if pairs:
            parts.append(page.section(title, text, f'<div class="row">{"".join(pairs)}</div>'))
    return parts


def _pair(
    dataset: CocoInstances, image: ImageErrors, found: list[dict[str, Any]], thresholds: Thresholds
) -> str:
    index = dataset.image_ids.index(image.image_id)
    decided = [r for r in found if is_decided(r["score"], r["category_id"], thresholds)]
    caption = (
        f"{dataset.image_path(index).name} · {image.quality:.3f} · objects {len(image.truths)}, "
        f"results {len(decided)}"
    )
    return page.pair(_drawn(dataset, index, image.truths), _drawn(dataset, index, decided), caption)


def _drawn(dataset: CocoInstances, index: int, records: Sequence[Record]) -> NDArray[np.uint8]:
    """Item `index` with objects of the ground truth or results drawn; only results have a score."""
    crops = [crop_of(record["segmentation"]) for record in records]
    pixels = [torch.from_numpy(np.ascontiguousarray(crop.pixels)) for crop in crops]
    masks = CropMasks(pixels, [crop.offset for crop in crops], dataset.sizes[index])
    boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([dataset.category_ids.index(record["category_id"]) for record in records]).long()
    scores = torch.tensor([record.get("score", 1.0) for record in records])
    xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    detections = to_detections(Instances(xyxy, scores, labels, masks), dataset.class_names)
    if any("score" not in record for record in records):
        detections.confidence = None
    return draw_detections(dataset.image(index), detections, dataset.class_names)
