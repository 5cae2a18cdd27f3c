"""The command `embedmask eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedmask.cli.terminal import is_interactive
from embedmask.cli.threads import use_threads
from embedmask.cli.thresholds import parse_score_threshold
from embedmask.config import Precision
from embedmask.config.data import Degenerate, Exif, Split
from embedmask.errors import BadInput


def evaluate(
    *,
    weights: Path,
    data: Path,
    split: Split = "val",
    json: Path | None = None,
    report: Path | None = None,
    where: str | None = None,
    max_detections: int | None = None,
    image_short_side: int | None = None,
    score_threshold: str | None = None,
    reference_masks: bool = False,
    matching: bool = False,
    degenerate: Degenerate = "refuse",
    val_fraction: float = 0.0,
    exif: Exif = "auto",
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    precision: Precision = "auto",
    threads: int | None = None,
    device: str = "auto",
) -> None:
    """Evaluate a model on a data set: box, mask and boundary AP; with one class also TP / (TP + FP + FN).

    Args:
        weights: Model file (.safetensors), file of embedmask export (.onnx, .xml), name of a bundled model (nuclei), or
            user/model on the Hugging Face Hub.
        data: Folder of the data set.
        split: train, val, test or test-dev. Without annotations, only the results are written, for COCO's server.
        json: Also write the metrics to this file; without annotations, write the results to this file (.json), or in
            the form of COCO's server to a folder or to detections_SPLIT_NAME_results.zip.
        report: Folder for an HTML report (index.html) with curves, errors, and the best and worst images.
        where: Only images whose record in the annotation file has KEY=VALUE, such as modality=fluorescence.
        max_detections: Maximum detections per image, in prediction and AP; by default from the model.
        image_short_side: Short side of the network's input, px; by default from the model.
        score_threshold: Minimum score in matching and report: one number, or CLASS=NUMBER,CLASS=NUMBER; by default
            from the model. AP ranks all detections.
        reference_masks: Place masks as the authors' code does (the model's mask_frame), without folded norms, to
            reproduce published figures; by default as predict does.
        matching: Compute TP / (TP + FP + FN) at IoU 0.5 to 0.9 also with several classes.
        degenerate: refuse or drop ground-truth objects without area.
        val_fraction: Evaluate on the part of train that training held out with the same --val-fraction.
        exif: Frame of the annotations where an image's EXIF orientation is ambiguous: upright or stored.
        page: Page of TIFF stacks or frame of animations, from 0; by default from the model.
        channels: Channels of image files, from 0: one as gray, or three as RGB; by default from the model.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        threads: CPU threads; by default PyTorch's choice.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    use_threads(threads)
    from embedmask.data.coco import CocoInstances
    from embedmask.evaluation.run import evaluate_weights, write_results
    from embedmask.files import check_writable
    from embedmask.weights.checkpoint import read_config
    from embedmask.weights.released import find_weights

    file = find_weights(weights)
    dataset = CocoInstances.open(
        data, split, degenerate=degenerate, image_filter=where, exif=exif, val_fraction=val_fraction,
        options=read_config(file).reading().changed(page, channels),
    )  # fmt: skip
    prediction: dict[str, Any] = {
        "max_detections": max_detections, "image_short_side": image_short_side, "precision": precision,
        "reference_masks": reference_masks, "device": device, "progress": is_interactive(),
    }  # fmt: skip
    if not dataset.has_annotations:
        options = {"--report": report, "--matching": matching, "--score-threshold": score_threshold}
        json = server_folder(json, dataset.annotations_file, options)
        path = write_results(file, dataset, json, **prediction)
        print(f"{data}: {dataset.layout}; no annotations, so no AP · results for COCO's server in {path}")
        return
    if json is not None:
        check_writable(json)
    metrics = evaluate_weights(
        file, dataset, score_threshold=parse_score_threshold(score_threshold), matching=matching, report=report,
        title=f"{weights.name} on {split} of {data.resolve().name}" + (f", {where}" if where else ""),
        begin=lambda: print(f"{data}: {dataset.layout}", *dataset.warning_lines(), sep="\n"),
        **prediction,
    )  # fmt: skip
    print_metrics(metrics, json, report)


def server_folder(json: Path | None, file: Path, options: dict[str, Any]) -> Path:
    """Return the folder for results of images without annotations; raise `BadInput` for options that need them."""
    if json is None:
        raise BadInput(f"{file}: has no annotations; pass --json FOLDER for the file of COCO's server")
    requested = [name for name, value in options.items() if value]
    if requested:
        raise BadInput(f"{file}: has no annotations, which {requested[0]} needs; omit it")
    return json


def print_metrics(metrics: dict[str, Any], json: Path | None, report: Path | None) -> None:
    """Print the metrics and where the report is; write them as JSON if requested."""
    from embedmask.files import write_json

    print(metrics_table(metrics))
    if json is not None:
        write_json(json, metrics)
    if report is not None:
        print(f"report · {report / 'index.html'}")


def metrics_table(metrics: dict[str, Any]) -> str:
    """Format metrics named `type/metric` as a table: one row per type (bbox, segm, boundary), one column per metric.

    The header is repeated where the columns change.
    """
    types: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        prefix, slash, metric = name.partition("/")
        if slash:
            types.setdefault(prefix, {})[metric] = value
    lines, header = [], None
    for prefix, values in types.items():
        # matching has other columns than AP
        if tuple(values) != header:
            header = tuple(values)
            lines.append(f"{'':16}" + "".join(f"{name:>{max(len(name), 6) + 1}}" for name in header))
        cells = (f"{value:>{max(len(name), 6) + 1}.4f}" for name, value in values.items())
        lines.append(f"{prefix:16}" + "".join(cells))
    return "\n".join(lines)
