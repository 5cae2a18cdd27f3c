"""Evaluate a model file on a data set: what `embedmask eval` calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from embedmask.config import Precision, override
from embedmask.config.data import Degenerate
from embedmask.data.coco import CocoInstances
from embedmask.data.label_images import CLASS_NAME
from embedmask.data.layouts import Split
from embedmask.data.loader import eval_loader
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.evaluation.report import write_report
from embedmask.files import atomic_write
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.loop import choose_workers, predict_dataset
from embedmask.inference.results import coco_results
from embedmask.structures import Instances
from embedmask.weights.checkpoint import Checkpoint, load_checkpoint

log = logging.getLogger(__name__)

SCORE_THRESHOLD = 0.3
"""From here on a result counts as decided, as in `embedmask predict`."""


def evaluate_weights(
    weights: Path,
    data: Path,
    split: Split = "val",
    *,
    where: str | None = None,
    max_detections: int | None = None,
    score_threshold: float = SCORE_THRESHOLD,
    matching: bool = False,
    report: Path | None = None,
    degenerate: Degenerate = "refuse",
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    progress: bool = False,
    tell: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """How good a model file is on one split.

    Args:
        weights: written by `embedmask.weights.checkpoint.save`.
        data: folder of the data set.
        split: which split of it.
        where: `KEY=VALUE`, only the images whose record in the ground truth says so; None: all.
        max_detections: per image, in prediction and in AP (maxDets); None: as the model's configuration says.
        score_threshold: from here on a result counts as decided, in `matching` and in the report; AP ranks all.
        matching: the figures of microscopy also where there are several classes.
        report: folder for a page with curves, errors and pictures; None: no page.
        degenerate: objects of the ground truth that cover nothing: refuse them, or leave them out.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: of the convolutions.
        workers: loading processes; None: by the cores.
        progress: show bars on stderr.
        tell: takes the one line on how the data is laid out, before the work begins.

    Returns:
        `KIND/METRIC` of `CocoEvaluator.compute`, with one class or `matching` also of `matching_metrics`, and
        under `classes` what `CocoEvaluator.per_class` gives.

    Raises:
        BadInput: the weights or the data cannot be used, or the data has no annotations, or a class that the
            model lacks.
    """
    if not 0 <= score_threshold <= 1:
        raise BadInput(f"--score-threshold must lie between 0 and 1, got {score_threshold}")
    dataset = CocoInstances.open(data, split, degenerate=degenerate)
    if not has_truth(dataset.annotations_file):
        raise BadInput(
            f"{dataset.annotations_file}: has no annotations to evaluate against; see write_results"
        )
    on, checkpoint = choose_device(device), load_checkpoint(weights)
    category_ids = match_classes(checkpoint.class_names, dataset)
    limit = checkpoint.config.max_detections if max_detections is None else max_detections
    evaluator = CocoEvaluator(dataset.ground_truth, limit)
    image_ids = None if where is None else images_where(evaluator.truth.imgs.values(), where)
    tell(f"{data}: {dataset.layout}")
    found = predict_split(
        checkpoint,
        dataset,
        image_ids,
        limit,
        device=on,
        precision=precision,
        workers=workers,
        progress=progress,
    )
    for image_id, instances in found:
        results = coco_results(instances, image_id, category_ids)
        evaluator.add(result for result in results if result["category_id"] in dataset.category_ids)
    metrics = evaluator.compute(image_ids, progress=progress)
    if matching or len(dataset.class_names) == 1:
        metrics |= matching_metrics(evaluator, score_threshold, image_ids)
    if report is not None:
        title = f"{weights.name} on {split} of {data.resolve().name}" + (f", {where}" if where else "")
        write_report(
            report,
            evaluator,
            dataset,
            metrics,
            title=title,
            score_threshold=score_threshold,
            image_ids=image_ids,
        )
    return {**metrics, "classes": evaluator.per_class(image_ids)}


def write_results(
    weights: Path,
    data: Path,
    split: Split,
    out: Path,
    *,
    max_detections: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int | None = None,
    progress: bool = False,
) -> Path:
    """Results of a model file on one split in the form that COCO's evaluation server takes.

    Args:
        out: a file that ends in .json, or a folder, for a file with the name that the server asks for:
            `detections_SPLIT_NAME_results.json`, NAME that of the weights.

    Returns:
        The file, a list of `image_id`, `category_id`, `bbox`, `score` and `segmentation`; it is written as the
        results come.

    Raises:
        BadInput: the weights or the data cannot be used, or the data has a class that the model lacks.
    """
    dataset = CocoInstances.open(data, split)
    on, checkpoint = choose_device(device), load_checkpoint(weights)
    category_ids = match_classes(checkpoint.class_names, dataset)
    limit = checkpoint.config.max_detections if max_detections is None else max_detections
    name = dataset.annotations_file.stem.removeprefix(NO_TRUTH)
    path = out if out.suffix == ".json" else out / f"detections_{name}_{weights.stem}_results.json"
    found = predict_split(
        checkpoint,
        dataset,
        None,
        limit,
        device=on,
        precision=precision,
        workers=workers,
        progress=progress,
    )
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for image_id, instances in found:
            for result in coco_results(instances, image_id, category_ids):
                if result["category_id"] in dataset.category_ids:
                    file.write(separator + json.dumps(result))
                    separator = ",\n"
        file.write("]" if separator != "[" else "[]")
    return path


NO_TRUTH = "image_info_"
"""COCO's files of images without annotations begin so."""


def has_truth(annotations: Path) -> bool:
    """Whether a split has annotations; those of COCO's test sets are kept by its server."""
    return not annotations.name.startswith(NO_TRUTH)


def predict_split(
    checkpoint: Checkpoint,
    dataset: CocoInstances,
    image_ids: Sequence[int] | None,
    max_detections: int,
    *,
    device: torch.device,
    precision: Precision,
    workers: int | None,
    progress: bool,
) -> Iterator[tuple[int, Instances]]:
    """`(image_id, instances)` of each picture of a data set, or of those asked for, with a bar."""
    config = checkpoint.config
    items = None
    if image_ids is not None:
        wanted = set(image_ids)
        items = [item for item, image_id in enumerate(dataset.image_ids) if image_id in wanted]
    batches = eval_loader(
        dataset,
        EvalTransform(config.image_short_side, config.image_long_side),
        batch_size=1,
        workers=choose_workers(workers),
        wanted=items,
    )
    found = predict_dataset(
        checkpoint.model.to(device),
        override(config, {"max_detections": max_detections}, where="--max-detections"),
        batches,
        dtype=choose_precision(device, precision),
    )
    total = len(dataset if items is None else items)
    yield from tqdm(found, total=total, unit="picture", disable=not progress)


def images_where(images: Iterable[Mapping[str, Any]], condition: str) -> list[int]:
    """Ids of the images whose record says `KEY=VALUE`, for example `modality=fluorescence`.

    Raises:
        BadInput: no equals sign, or no such image.
    """
    key, equals, value = condition.partition("=")
    records = list(images)
    chosen = [int(image["id"]) for image in records if str(image.get(key)) == value]
    if not equals or not chosen:
        keys = ", ".join(sorted({name for image in records for name in image}))
        raise BadInput(f"--where {condition}: no image of the split is so; give KEY=VALUE, keys: {keys}")
    return chosen


def match_classes(class_names: list[str], dataset: CocoInstances) -> list[int]:
    """The data set's category id of each class of the model, by name.

    A class that the data set does not have gets an id that it does not have either.

    Raises:
        BadInput: the data set has a class that the model lacks.
    """
    if len(class_names) == len(dataset.class_names) == 1 and CLASS_NAME in (
        *class_names,
        *dataset.class_names,
    ):
        return dataset.category_ids  # label images do not name their class
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    for name in ids:
        if name not in class_names:
            known = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
            raise BadInput(
                f"{dataset.annotations_file}: has the class {name!r}, the model knows {known}; "
                "evaluate on a data set of the model's classes"
            )
    absent = max(dataset.category_ids) + 1
    return [ids.get(name, absent) for name in class_names]
