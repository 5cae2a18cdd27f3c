"""Evaluate a model file on a data set: what `embedmask eval` calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embedmask.config import Precision, ScoreThreshold, override
from embedmask.data.coco import CocoInstances
from embedmask.data.label_images import CLASS_NAME
from embedmask.data.loader import eval_loader
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.evaluation.report import write_report
from embedmask.files import write_json_rows
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.loop import choose_workers, predict_dataset
from embedmask.inference.results import coco_results
from embedmask.weights.checkpoint import Checkpoint, load_checkpoint


def evaluate_weights(
    weights: Path,
    dataset: CocoInstances,
    *,
    max_detections: int | None = None,
    image_short_side: int | None = None,
    score_threshold: ScoreThreshold | None = None,
    matching: bool = False,
    report: Path | None = None,
    title: str = "",
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """How good a model file is on one split.

    Args:
        weights: written by `embedmask.weights.checkpoint.save`.
        dataset: the split.
        max_detections: per image, in prediction and in AP (maxDets); None: as the model's configuration says.
        image_short_side: what images are resized to for the network, px; None: the same.
        score_threshold: from here on a result counts as decided, in `matching` and in the report; AP ranks all. One for
            all classes, one per class, or by class name. None: the model's `decision_threshold`.
        matching: the figures of microscopy also where there are several classes.
        report: folder for a page with curves, errors and images; None: no page.
        title: of the page.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: of the convolutions.
        progress: show bars on stderr.
        begin: called when all has been checked, before the work.

    Returns:
        `KIND/METRIC` of `CocoEvaluator.compute`, with one class or `matching` also of `matching_metrics`, and
        under `classes` what `CocoEvaluator.per_class` gives.

    Raises:
        BadInput: the weights cannot be used, or the data has a class that the model lacks.
    """
    checkpoint = _open_weights(weights, max_detections=max_detections, image_short_side=image_short_side)
    decision = checkpoint.config.decision(score_threshold, checkpoint.class_names)
    thresholds = dict(zip(match_classes(checkpoint.class_names, dataset), decision, strict=True))
    evaluator = CocoEvaluator(dataset.ground_truth, checkpoint.config.max_detections)
    found = _predict(checkpoint, dataset, device=device, precision=precision, progress=progress)
    begin()
    for results in found:
        evaluator.add(results)
    metrics = evaluator.compute(progress=progress)
    if matching or len(dataset.class_names) == 1:
        metrics |= matching_metrics(evaluator, thresholds)
    if report is not None:
        write_report(report, evaluator, dataset, metrics, title=title, score_threshold=thresholds)
    return {**metrics, "classes": evaluator.per_class()}


def write_results(
    weights: Path,
    dataset: CocoInstances,
    out: Path,
    *,
    max_detections: int | None = None,
    image_short_side: int | None = None,
    device: str = "auto",
    precision: Precision = "auto",
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
        BadInput: the weights cannot be used, or the data has a class that the model lacks.
    """
    checkpoint = _open_weights(weights, max_detections=max_detections, image_short_side=image_short_side)
    name = dataset.annotations_file.stem.removeprefix(NO_TRUTH)
    path = out if out.suffix == ".json" else out / f"detections_{name}_{weights.stem}_results.json"
    found = _predict(checkpoint, dataset, device=device, precision=precision, progress=progress)
    write_json_rows(path, chain.from_iterable(found))
    return path


NO_TRUTH = "image_info_"
"""COCO's files of images without annotations begin so."""


def has_truth(annotations: Path) -> bool:
    """Whether a split has annotations; those of COCO's test sets are kept by its server."""
    return not annotations.name.startswith(NO_TRUTH)


def _open_weights(weights: Path, **changes: int | None) -> Checkpoint:
    """A model file, its config changed where something else is asked for."""
    checkpoint = load_checkpoint(weights)
    for name, value in changes.items():
        if value is not None:
            config = override(checkpoint.config, {name: value}, where=f"--{name.replace('_', '-')}")
            checkpoint = replace(checkpoint, config=config)
    return checkpoint


def _predict(
    checkpoint: Checkpoint,
    dataset: CocoInstances,
    *,
    device: str,
    precision: Precision,
    progress: bool,
) -> Iterator[list[dict[str, Any]]]:
    """COCO results of each image of a data set, in the data set's classes."""
    config, category_ids = checkpoint.config, match_classes(checkpoint.class_names, dataset)
    batches = eval_loader(
        dataset,
        EvalTransform(config.image_short_side, config.image_long_side, config.image_rounding),
        workers=choose_workers(None),
    )
    on = choose_device(device)
    found = predict_dataset(checkpoint.model.to(on), config, batches, dtype=choose_precision(on, precision))

    def walk() -> Iterator[list[dict[str, Any]]]:
        for image_id, instances in tqdm(found, total=len(dataset), unit="image", disable=not progress):
            results = coco_results(instances, image_id, category_ids)
            yield [result for result in results if result["category_id"] in dataset.category_ids]

    return walk()  # what can be wrong has been said by now


def match_classes(class_names: list[str], dataset: CocoInstances) -> list[int]:
    """The data set's category id of each class of the model, by name; of the same name, in their order.

    A class that the data set does not have gets an id that it does not have either.

    Raises:
        BadInput: the data set has a class that the model lacks.
    """
    if len(class_names) == len(dataset.class_names) == 1 and CLASS_NAME in (
        *class_names,
        *dataset.class_names,
    ):
        return dataset.category_ids  # label images do not name their class
    known = _numbered(class_names)
    ids = dict(zip(_numbered(dataset.class_names), dataset.category_ids, strict=True))
    for name, number in ids:
        if (name, number) not in known:
            times = f" {number + 1} times" if number else ""
            names = ", ".join(class_names[:8]) + (", ..." if len(class_names) > 8 else "")
            raise BadInput(
                f"{dataset.annotations_file}: has the class {name!r}{times}, the model knows {names}; "
                "evaluate on a data set of the model's classes"
            )
    absent = max(dataset.category_ids) + 1
    return [ids.get(key, absent) for key in known]


def _numbered(names: Sequence[str]) -> list[tuple[str, int]]:
    """Return each name with the number of times that it has come before; two classes may have the same."""
    return [(name, names[:position].count(name)) for position, name in enumerate(names)]
