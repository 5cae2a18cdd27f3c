"""Export to int8 with its cost: AP and time on a split before and after, and a refusal if AP drops too far."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedmask.config.data import Split
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.run import evaluate_weights
from embedmask.export.quantize import calibration_images, check_int8, quantize
from embedmask.export.write import ENDINGS, openvino_model, write_openvino
from embedmask.files import check_writable
from embedmask.inference.predictor import Predictor
from embedmask.runtime_file import KEY
from embedmask.weights.checkpoint import Checkpoint

GUARDED = {"segm/AP": "mask AP", "bbox/AP": "box AP"}
"""Metrics that may drop by at most `max_drop`, with their names."""
MEASURED = (*GUARDED, "segm/AP50", "segm/AP75", "segm/AP90", "boundary/AP")
TIMED_IMAGES, ROUNDS = 8, 5
"""Images of the split that are timed, and rounds over them, in which the models take turns."""


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """Options of an export to int8.

    Attributes:
        data: folder of the data set: `train` calibrates, `split` measures.
        images: number of calibration images.
        max_drop: maximum drop of mask AP and of box AP, 0..1.
        split: split to measure on.
        where: only images whose record in the annotation file has KEY=VALUE; None: all.
    """

    data: Path
    images: int = 64
    max_drop: float = 0.003
    split: Split = "val"
    where: str | None = None


def export_int8(
    checkpoint: Checkpoint,
    path: Path,
    options: Int8Options,
    *,
    dense_masks: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a model as an OpenVINO graph whose trunk computes in int8.

    Args:
        checkpoint: an EmbedMask and its class names; the model is not changed.
        path: `.xml` file to write; its weights are beside it.
        options: data and limits.
        dense_masks: see `export_model`.
        report: receives a line of text before each step.

    Returns:
        The entry `int8` of the file's metadata: AP before and after, CPU milliseconds per image by model, and how they
        were measured.

    Raises:
        BadInput: as `check_int8` and `calibration_images`, an unusable data set, or AP drops by more than `max_drop`;
            no file is written then.
    """
    check_int8(options.images)
    if path.suffix != ENDINGS["openvino"]:
        raise BadInput(f"{path}: int8 files end in .xml; pass --out {path.stem}.xml")
    check_writable(path)
    train, split = (
        CocoInstances.open(
            options.data, name, image_filter=options.where, options=checkpoint.config.reading()
        )
        for name in ("train", options.split)
    )
    graph, quantized = _graphs(checkpoint, train, options, report, dense_masks=dense_masks)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.xml" for name in ("float32", "int8")}
        for file, one in zip(files.values(), (graph, quantized), strict=True):
            write_openvino(one, file)
        scores = _scores(files, split, options, report)
        refuse_drop(scores["float32"], scores["int8"], options, path)
        predictors = {f"{name} graph": Predictor.load(file, device="cpu") for name, file in files.items()}
        predictors["engine torch"] = Predictor(checkpoint.model, checkpoint.class_names, device="cpu")
        report(f"measuring time on at most {TIMED_IMAGES} images")
        times = cpu_milliseconds(predictors, _timed_images(split))
    entry = {
        "data": options.data.resolve().name, "where": options.where, "split": options.split,
        "calibration_images": options.images, "images": len(split), "before": scores["float32"],
        "after": scores["int8"], "cpu_ms": times,
        "torch_precision": str(predictors["engine torch"].dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    add_metadata(quantized, entry)
    write_openvino(quantized, path)
    return entry


def _graphs(
    checkpoint: Checkpoint,
    train: CocoInstances,
    options: Int8Options,
    report: Callable[[str], None],
    *,
    dense_masks: bool,
) -> tuple[Any, Any]:
    """Return the float32 and the int8 graph."""
    images = calibration_images(train, checkpoint.config, options.images)
    report("converting the network")
    names = checkpoint.class_names
    graph = openvino_model(checkpoint.model, class_names=names, dense_masks=dense_masks)
    report(f"calibrating on {len(images)} images of train")
    return graph, quantize(graph, images)


def _timed_images(split: CocoInstances) -> list[Tensor]:
    """Return at most `TIMED_IMAGES` images, at equal steps of the split."""
    return [split.image(index) for index in range(0, len(split), -(-len(split) // TIMED_IMAGES))]


def _scores(
    files: Mapping[str, Path], split: CocoInstances, options: Int8Options, report: Callable[[str], None]
) -> dict[str, dict[str, float]]:
    """Return the metrics `MEASURED` of each file, by its name."""
    scores = {}
    for name, file in files.items():
        report(f"measuring AP in {name} on {len(split)} images of {options.split}")
        metrics = evaluate_weights(file, split)
        scores[name] = {key: metrics[key] for key in MEASURED}
    return scores


def refuse_drop(
    before: Mapping[str, float], after: Mapping[str, float], options: Int8Options, path: Path
) -> None:
    """Raise `BadInput` if mask AP or box AP drops by more than `max_drop`, or if it cannot be measured."""
    for key, name in GUARDED.items():
        if not before[key] - after[key] <= options.max_drop:  # nan: a split without objects
            raise BadInput(
                f"{path}: not written: {name} on {options.split} is {after[key]:.4f} in int8, "
                f"{before[key]:.4f} in float32, a drop of more than --max-drop {options.max_drop:g}; "
                "use more --images, a larger --max-drop, or export without --int8"
            )


def cpu_milliseconds(predictors: Mapping[str, Predictor], images: Sequence[Tensor]) -> dict[str, float]:
    """Return the CPU milliseconds per image of each predictor, from pixels to masks.

    The predictors take turns image by image, since other work on a machine changes its rate; CPU time is that of all
    threads. The first round, which is not counted, warms them up.
    """
    rounds: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(ROUNDS + 1):
        seconds = dict.fromkeys(predictors, 0.0)
        for image in images:
            for name, predictor in predictors.items():
                begin = time.process_time()
                predictor.predict_instances([image])
                seconds[name] += time.process_time() - begin
        for name, total in seconds.items():
            rounds[name].append(1000 * total / len(images))
    return {name: statistics.median(values[1:]) for name, values in rounds.items()}


def add_metadata(graph: Any, entry: Mapping[str, Any]) -> None:
    """Add an entry `int8` to the metadata of an OpenVINO graph."""
    text = graph.get_rt_info([KEY, "metadata"])
    values = json.loads(getattr(text, "value", text))
    graph.set_rt_info(json.dumps({**values, "int8": dict(entry)}), [KEY, "metadata"])
