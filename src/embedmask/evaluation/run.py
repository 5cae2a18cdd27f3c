"""Evaluation of a model file on a split of a data set, as `embedmask eval` runs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embedmask.config import Precision, ScoreThreshold, override
from embedmask.data.class_matching import match_classes
from embedmask.data.coco import IMAGE_INFO, CocoInstances
from embedmask.data.loader import eval_loader
from embedmask.data.transforms import EvalTransform
from embedmask.device import choose_device, choose_workers
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.matching import matching_metrics
from embedmask.evaluation.report import write_report
from embedmask.files import temporary_folder, write_json_rows, write_zipped_json_rows
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.inference.engines import choose_dtype, copy_network, make_network
from embedmask.inference.results import coco_results
from embedmask.weights.checkpoint import Checkpoint, load_checkpoint, model_title


def evaluate_weights(
    weights: Path,
    dataset: CocoInstances,
    *,
    max_detections: int | None = None,
    image_short_side: int | None = None,
    score_threshold: ScoreThreshold | None = None,
    reference_masks: bool = False,
    matching: bool = False,
    report: Path | None = None,
    title: str = "",
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate a model file on one split.

    Args:
        weights: written by `embedmask.weights.checkpoint.save`.
        dataset: the split.
        max_detections: per image, in prediction and in AP (maxDets); None: from the model's configuration.
        image_short_side: size to which images are resized for the network, px; None: from the configuration.
        score_threshold: results from here on count as decided in `matching` and in the report; AP ranks all results.
            One for all classes, one per class, or by class name; None: the model's `default_score_threshold`.
        reference_masks: place masks as the `mask_frame` of the configuration says, and run the
            network without folded norms, to reproduce published figures; False: as `Predictor` does.
        matching: compute the matching metrics for data sets of several classes too.
        report: folder for a page with curves, errors and images; None: no page.
        title: of the page.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: number format of the convolutions.
        progress: show progress bars on stderr.
        begin: called once all arguments are checked, before the first image.

    Returns:
        The metrics of `CocoEvaluator.compute`; with one class or `matching`, those of `matching_metrics`; and under
        `classes` the result of `CocoEvaluator.per_class`.

    Raises:
        BadInput: the weights cannot be used, the data set has a class that the model lacks, or `report` cannot be
            written.
    """
    if report is not None:
        with temporary_folder(report):  # raises now rather than after the last image
            pass
    checkpoint = _open_weights(weights, max_detections=max_detections, image_short_side=image_short_side)
    decision = checkpoint.config.score_thresholds(score_threshold, checkpoint.class_names)
    thresholds = dict(zip(match_classes(checkpoint.class_names, dataset), decision, strict=True))
    evaluator = CocoEvaluator(dataset.ground_truth, checkpoint.config.max_detections)
    batches = _predict(checkpoint, dataset, reference_masks, device, precision, progress=progress)
    begin()
    for results in batches:
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
    reference_masks: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    progress: bool = False,
) -> Path:
    """Write the results of a model file on one split in the format of COCO's evaluation server.

    Args:
        out: a file that ends in .json; or a zip file with the name that the server requires,
            `detections_SPLIT_NAME_results.zip`, which holds a JSON file of that name; or a folder for such a zip file,
            where NAME is that of the weights, or of their folder for the files of a run.
        max_detections: as in `evaluate_weights`, as are the other arguments.

    Returns:
        The file, a list of `image_id`, `category_id`, `bbox`, `score` and `segmentation`. Results are written as they
        are computed.

    Raises:
        BadInput: the weights cannot be used, the data set has a class that the model lacks, or the server would refuse
            the name of the zip file.
    """
    checkpoint = _open_weights(weights, max_detections=max_detections, image_short_side=image_short_side)
    name = re.sub(r"\s+", "_", model_title(weights))
    path = out if out.suffix in (".json", ".zip") else out / server_name(dataset, name)
    if path.suffix == ".zip" and not re.fullmatch(server_name(dataset, r"[^\s/]+"), path.name):
        raise BadInput(f"{path}: COCO's server demands the name {server_name(dataset, 'NAME')}")
    results = _predict(checkpoint, dataset, reference_masks, device, precision, progress=progress)
    write = write_json_rows if path.suffix == ".json" else write_zipped_json_rows
    write(path, chain.from_iterable(results))
    return path


def server_name(dataset: CocoInstances, name: str) -> str:
    """Return the name that COCO's server requires of a zip file with the boxes and masks of a split."""
    return f"detections_{dataset.annotations_file.stem.removeprefix(IMAGE_INFO)}_{name}_results.zip"


def _open_weights(weights: Path, **changes: int | None) -> Checkpoint:
    """Load a model file and override the fields of its config that are not None."""
    checkpoint = load_checkpoint(weights)
    for name, value in changes.items():
        if value is not None:
            config = override(checkpoint.config, {name: value}, where=f"--{name.replace('_', '-')}")
            checkpoint = replace(checkpoint, config=config)
    return checkpoint


def _predict(
    checkpoint: Checkpoint,
    dataset: CocoInstances,
    reference_masks: bool,
    device: str,
    precision: Precision,
    *,
    progress: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Return an iterator over the COCO results of each image, in the classes of the data set."""
    config, category_ids = checkpoint.config, match_classes(checkpoint.class_names, dataset)
    batches = eval_loader(dataset, EvalTransform.from_config(config), workers=choose_workers(None))
    on = choose_device(device)
    model = checkpoint.model.to(on)
    dtype = choose_dtype(model, on, precision)
    # folded norms round differently, so published figures are reproduced without folding
    network = copy_network(model, "torch", dtype) if reference_masks else make_network(model, dtype=dtype)
    postprocess = make_postprocessor(config, reference_masks=reference_masks)

    # a separate generator, so that the checks above run at the call rather than at the first image
    def walk() -> Iterator[list[dict[str, Any]]]:
        with tqdm(total=len(dataset), unit="image", disable=not progress) as bar:
            for images, image_ids, original_sizes in batches:
                detections = detect(network, postprocess, model.preprocess(images), original_sizes)
                for image_id, instances in zip(image_ids, detections, strict=True):
                    results = coco_results(instances, image_id, category_ids)
                    yield [result for result in results if result["category_id"] in dataset.category_ids]
                    bar.update()

    return walk()
