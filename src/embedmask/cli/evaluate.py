"""The command `embedmask eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedmask.cli.recipes import parse_score_threshold
from embedmask.cli.terminal import is_interactive
from embedmask.cli.threads import use_threads
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
    """Box, mask and boundary AP of a model on a split of a data set; with one class also TP / (TP + FP + FN).

    Args:
        weights: Model file (.safetensors), or a model that comes with the package: nuclei.
        data: Folder of the data set.
        split: train, val, test or test-dev; of one without annotations the results are written, for COCO's server.
        json: Write the metrics to this file as well; without annotations, the results to this file or folder.
        report: Folder for a page (index.html) with curves, errors, and the worst and best images.
        where: Only the images whose record in the annotation file says KEY=VALUE, as modality=fluorescence.
        max_detections: Detections kept an image, in prediction and in AP; by default what the model says.
        image_short_side: Short side of the images that the network sees, px; by default what the model says.
        score_threshold: From here on a result counts as decided, in matching and in the report, by default what the
            model says; AP ranks all. One number, or CLASS=NUMBER,CLASS=NUMBER.
        matching: TP / (TP + FP + FN) at IoU 0.5 to 0.9 also with several classes.
        degenerate: drop leaves out objects of the ground truth that cover nothing; refuse stops at them.
        val_fraction: Evaluate on the part of train that training held out with the same --val-fraction.
        exif: Frame of the annotations where an image's EXIF orientation leaves two: upright, or as it is stored.
        page: Page of TIFF stacks, or frame of animations, from 0; by default what the model says.
        channels: One channel of image files, as grey, or three as R, G and B, from 0; by default likewise.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        threads: Threads of the processor; by default what torch takes.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    use_threads(threads)
    from embedmask.data.coco import CocoInstances
    from embedmask.evaluation.run import evaluate_weights, has_ground_truth, write_results
    from embedmask.files import write_json
    from embedmask.weights.checkpoint import read_config

    dataset = CocoInstances.open(
        data,
        split,
        degenerate=degenerate,
        where=where,
        exif=exif,
        options=read_config(weights).reading().changed(page, channels),
        val_fraction=val_fraction,
    )
    how: dict[str, Any] = {
        "max_detections": max_detections,
        "image_short_side": image_short_side,
        "precision": precision,
        "device": device,
        "progress": is_interactive(),
    }
    if not has_ground_truth(dataset.annotations_file):
        if json is None:
            raise BadInput(
                f"{dataset.annotations_file}: has no annotations; give --json FILE for the results"
            )
        path = write_results(weights, dataset, json, **how)
        print(f"{data}: {dataset.layout}; no annotations, so no AP · results for COCO's server in {path}")
        return
    metrics = evaluate_weights(
        weights,
        dataset,
        score_threshold=parse_score_threshold(score_threshold),
        matching=matching,
        report=report,
        title=f"{weights.name} on {split} of {data.resolve().name}" + (f", {where}" if where else ""),
        begin=lambda: print(f"{data}: {dataset.layout}", *dataset.warning_lines(), sep="\n"),
        **how,
    )
    print(metrics_table(metrics))
    if json is not None:
        write_json(json, metrics)
    if report is not None:
        print(f"report · {report / 'index.html'}")


def metrics_table(metrics: dict[str, Any]) -> str:
    """One row a kind (bbox, segm, boundary), one column a metric; a head for each set of columns."""
    kinds: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, slash, metric = name.partition("/")
        if slash:
            kinds.setdefault(kind, {})[metric] = value
    lines, head = [], None
    for kind, values in kinds.items():
        if tuple(values) != head:
            head = tuple(values)
            lines.append(f"{'':16}" + "".join(f"{name:>{max(len(name), 6) + 1}}" for name in head))
        cells = (f"{value:>{max(len(name), 6) + 1}.4f}" for name, value in values.items())
        lines.append(f"{kind:16}" + "".join(cells))
    return "\n".join(lines)
