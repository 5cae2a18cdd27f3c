"""The commands, each a function; what they print is for people, what they write is for scripts."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from embedmask.cli.data import data_check, data_shapes, data_show
from embedmask.cli.parser import Command, Commands
from embedmask.cli.recipes import resolve_recipe
from embedmask.cli.terminal import DONE, SOME_BAD, SOME_BROKEN, is_watched
from embedmask.config import (
    DataConfig,
    DetectorConfig,
    Engine,
    MaskRCNNConfig,
    ModelConfig,
    Precision,
    TrainConfig,
)
from embedmask.config.data import Degenerate, Split
from embedmask.errors import BadInput


def train(
    *,
    data: Path,
    out: Path | None = None,
    config: str | None = None,
    model: dict[str, Any] | None = None,
    augment: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    resume: bool = False,
    dry_run: bool = False,
    max_detections: int | None = None,
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    precision: Precision | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
) -> None:
    """Train a recipe on a data set; leave weights, metrics on its val split and pictures in a folder.

    Args:
        data: Folder of the data set, in the layout of COCO, Roboflow or YOLO, or with label images.
        out: Results folder, new or empty (or the run's own, with --resume). A dry run needs none.
        config: Recipe: a name such as shapes or nuclei, or a YAML file. With --resume: the run's own.
        model: Changes a FIELD of the model; they are listed below.
        augment: Changes a FIELD of the recipe's data section.
        train: Changes a FIELD of the solver.
        resume: Go on from the last checkpoint in the results folder, as if the run had never stopped.
        dry_run: Check data, config and memory with two steps, say how long the whole takes, and write nothing.
        max_detections: Detections kept an image, also by the model that is kept; by default what the recipe says.
        page: Page of TIFF stacks, or frame of animations, from 0, also for predicting with the model; the same as
            --model.image_page.
        channels: One channel of image files, as grey, or three as R, G and B, from 0, also for predicting with the
            model; the same as --model.image_channels.
        precision: auto, float32, bfloat16 or float16; the same as --train.precision.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine, by default one a CUDA card, else one. Not needed under torchrun.
        nodes: Machines that share a disk; on each, start the command with NODE_RANK, MASTER_ADDR, MASTER_PORT set.
    """
    if out is None and not dry_run:
        raise BadInput("missing: out; see --help")
    if precision is not None:
        train = {**(train or {}), "precision": precision}
    own = {"image_page": page, "image_channels": channels or None}
    model = {**(model or {}), **{name: value for name, value in own.items() if value is not None}}
    changes = {"model": model, "data": augment, "train": train}
    recipe = resolve_recipe(config, changes, out if resume else None)

    from tqdm import tqdm

    from embedmask.training.fit import train as fit
    from embedmask.training.rehearsal import rehearse

    run: Any = rehearse if dry_run else fit
    run(
        recipe,
        data,
        out,
        resume=resume,
        max_detections=max_detections,
        device=device,
        devices=devices,
        nodes=nodes,
        report=tqdm.write,
    )


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
    score_threshold: float | None = None,
    matching: bool = False,
    degenerate: Degenerate = "refuse",
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    precision: Precision = "auto",
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
        image_short_side: Short side of the pictures that the network sees, px; by default what the model says.
        score_threshold: From here on a result counts as decided, in matching and in the report, by default what the
            model says; AP ranks all.
        matching: TP / (TP + FP + FN) at IoU 0.5 to 0.9 also with several classes.
        degenerate: drop leaves out objects of the ground truth that cover nothing; refuse stops at them.
        page: Page of TIFF stacks, or frame of animations, from 0; by default what the model says.
        channels: One channel of image files, as grey, or three as R, G and B, from 0; by default likewise.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from embedmask.data.coco import CocoInstances
    from embedmask.evaluation.run import evaluate_weights, has_truth, write_results
    from embedmask.files import write_json
    from embedmask.weights.checkpoint import read_config

    options = read_config(weights).reading().changed(page, channels)
    dataset = CocoInstances.open(data, split, degenerate=degenerate, where=where, options=options)
    how: dict[str, Any] = {
        "max_detections": max_detections,
        "image_short_side": image_short_side,
        "precision": precision,
        "device": device,
        "progress": is_watched(),
    }
    if not has_truth(dataset.annotations_file):
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
        score_threshold=score_threshold,
        matching=matching,
        report=report,
        title=f"{weights.name} on {split} of {data.resolve().name}" + (f", {where}" if where else ""),
        begin=lambda: print(f"{data}: {dataset.layout}"),
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


def predict(
    *,
    source: list[str],
    weights: Path,
    out: Path,
    format: Literal["coco", "labels", "polygons", "yolo", "masks"] = "coco",
    no_draw: bool = False,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: int = 128,
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    resume: bool = False,
    batch_size: int | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
) -> int:
    """Find objects in pictures and videos; write each with its masks drawn, and predictions.json (COCO results).

    Exit code 1 where some files could not be read: they are named at the end. What --out holds of an earlier run is
    replaced file by file.

    Args:
        source: Pictures, videos (mp4, avi, mov, mkv, webm, m4v, mpg), folders of them, or patterns such as
            'photos/*.jpg'.
        weights: Model file (.safetensors), or a model that comes with the package: nuclei.
        out: Folder for the results; images.json in it says which file, and which frame, an image_id is.
        format: Write also, for each picture, labels/NAME.png (16 bit, pixels of the k-th result are k),
            polygons/NAME.json (LabelMe), labels/NAME.txt and data.yaml (yolo), or masks/NAME/ (a file a mask).
        no_draw: Leave out the drawn pictures and videos.
        score_threshold: Leave out what the model is less sure of, 0 to 1; by default what the model says.
        max_detections: Detections kept an image; by default what the model says.
        tile: Look at squares of this side, px, one by one, as large pictures need, and join the results; 0: do not.
        overlap: What neighbouring tiles share, px; half the size of a usual object is enough.
        page: Page of TIFF stacks, or frame of animations, from 0; by default what the model says, else the first.
        channels: One channel of image files, as grey, or three as R, G and B, from 0; by default likewise, else the
            colours of an image in colour or the first channel.
        resume: Go on where a run into --out was stopped, with the same options; what is finished is left as it is.
        batch_size: Pictures that the network sees at once; by default what suits the device.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        engine: compile takes minutes at first; openvino (CPU) needs: pip install
            'embedmask[export]'.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine, by default one a CUDA card, else one. Not needed under torchrun.
        nodes: Machines that share a disk; on each, start the command with NODE_RANK, MASTER_ADDR, MASTER_PORT set.
    """
    from embedmask.cli.predict import Settings, predict_files

    settings = Settings(
        format=format,
        score_threshold=score_threshold,
        max_detections=max_detections,
        tile=tile or None,
        overlap=overlap,
        precision=precision,
        engine=engine,
        no_draw=no_draw,
        page=page,
        channels=channels or None,
    )
    outcome = predict_files(
        source,
        weights,
        out,
        settings,
        resume=resume,
        batch_size=batch_size,
        device=device,
        devices=devices,
        nodes=nodes,
        progress=is_watched(),
    )
    for line in (*outcome.notes, *outcome.broken):
        print(f"embedmask: {line}", file=sys.stderr)
    if outcome.num_images:
        print(f"{outcome.num_objects} objects in {outcome.num_images} pictures · {out}")
        return SOME_BROKEN if outcome.broken else DONE
    return SOME_BAD if outcome.broken else DONE


def convert(official: Path, out: Path) -> None:
    """Convert a checkpoint of the authors' code (.pth, any of its versions) into a model file.

    Args:
        official: The authors' file; it is read as tensors only, never as code.
        out: Model file to write (.safetensors).
    """
    from embedmask.cli.convert import convert_file

    config = convert_file(official, out)
    print(f"{config.backbone}, {config.num_classes} classes, {config.embed_dim} embedding dims · {out}")


def bench(
    *,
    weights: Path | None = None,
    config: str = "paper/r50_1x",
    model: dict[str, Any] | None = None,
    image_size: tuple[int, int] = (800, 1216),
    json: Path | None = None,
    engine: list[Engine] = ["torch"],  # noqa: B006
    baseline: list[Literal["float32", "bfloat16", "compiled"]] = ["float32", "bfloat16", "compiled"],  # noqa: B006
    batch: list[int] = [1],  # noqa: B006
    detections: int = 100,
    runs: int = 10,
    warmup: int = 2,
    threads: int | None = None,
    skip_memory: bool = False,
    precision: Precision = "auto",
    device: str = "auto",
) -> None:
    """Time from a file to masks in its own frame, stage by stage, beside torchvision's Mask R-CNN in the same run.

    Args:
        weights: Model file (.safetensors); by default the recipe's model with random weights, whose last layers are
            scaled so that it finds as much as is asked for. Mask R-CNN has random weights, scaled likewise.
        config: Recipe of the model that is measured, a name or a YAML file.
        model: Changes a FIELD of the model, as embed_stride or image_short_side; they are listed below.
        image_size: Height and width of the picture, px. It is resized as the model says, but never enlarged.
        json: Write the figures to this file as well: medians in seconds, quartiles, ratios, memory, machine.
        engine: What runs our network; several are measured beside each other.
        baseline: Settings of Mask R-CNN; the fastest that works is its best. bfloat16 is autocast with channels_last,
            compiled is that with its convolutions compiled, which takes minutes.
        batch: Pictures at once; several are measured one after the other.
        detections: In a picture, on both sides.
        runs: Counted runs of each side, in turn with the others; 10 or more for figures to quote.
        warmup: Runs before them that are not counted.
        threads: Threads of the processor; by default what torch takes.
        skip_memory: Do not measure the peak memory, which takes a process of its own for each side.
        precision: Of our convolutions: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from embedmask.benchmark.compare import compare
    from embedmask.cli.bench import make_plan, report_lines
    from embedmask.files import write_json

    plan = make_plan(
        weights,
        config,
        model or {},
        image_size=(image_size[0], image_size[1]),
        engines=tuple(engine),
        settings=tuple(baseline),
        batches=tuple(batch),
        detections=detections,
        runs=runs,
        warmup=warmup,
        threads=threads,
        memory=not skip_memory,
        precision=precision,
        device=device,
    )
    report = compare(plan, progress=lambda line: print(line, file=sys.stderr) if is_watched() else None)
    print("\n".join(report_lines(report)))
    if json is not None:
        write_json(json, report)


def field_names(title: str, config: type[DetectorConfig] | type[DataConfig] | type[TrainConfig]) -> str:
    """The fields of a config, for the help."""
    return f"{title}: {', '.join(field.name for field in fields(config))}."


TRAIN_FIELDS = " ".join(
    (
        field_names("Fields of --model", ModelConfig),
        field_names("Where the recipe says model: maskrcnn", MaskRCNNConfig),
        field_names("Of --augment", DataConfig),
        field_names("Of --train", TrainConfig),
    )
)

COMMANDS: Commands = {
    "train": Command(train, epilog=TRAIN_FIELDS),
    "eval": Command(evaluate),
    "predict": Command(predict, positional="source"),
    "convert": Command(convert, positional="official"),
    "bench": Command(bench, epilog=field_names("Fields of --model", ModelConfig)),
    "data": {
        "shapes": Command(data_shapes, positional="folder"),
        "check": Command(data_check, positional="folder"),
        "show": Command(
            data_show, positional="folder", epilog=field_names("Fields of --augment", DataConfig)
        ),
    },
}
