"""The commands, each a function; what they print is for people, what they write is for scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from embedmask.cli.parser import Command, Commands
from embedmask.cli.recipes import resolve_recipe
from embedmask.config import DataConfig, DetectorConfig, MaskRCNNConfig, ModelConfig, Precision, TrainConfig
from embedmask.config.data import Degenerate, Split
from embedmask.errors import BadInput

DONE, SOME_BAD = 0, 2


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
        precision: auto, float32, bfloat16 or float16; the same as --train.precision.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine, by default one a CUDA card, else one. Not needed under torchrun.
        nodes: Machines that share a disk; on each, start the command with NODE_RANK, MASTER_ADDR, MASTER_PORT set.
    """
    if out is None and not dry_run:
        raise BadInput("missing: out; see --help")
    if precision is not None:
        train = {**(train or {}), "precision": precision}
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
    score_threshold: float = 0.3,
    matching: bool = False,
    degenerate: Degenerate = "refuse",
    precision: Precision = "auto",
    device: str = "auto",
) -> None:
    """Box, mask and boundary AP of a model on a split of a data set; with one class also TP / (TP + FP + FN).

    Args:
        weights: Model file (.safetensors).
        data: Folder of the data set.
        split: train, val, test or test-dev; of one without annotations the results are written, for COCO's server.
        json: Write the metrics to this file as well; without annotations, the results to this file or folder.
        report: Folder for a page (index.html) with curves, errors, and the worst and best images.
        where: Only the images whose record in the annotation file says KEY=VALUE, as modality=fluorescence.
        max_detections: Detections kept an image, in prediction and in AP; by default what the model says.
        image_short_side: Short side of the pictures that the network sees, px; by default what the model says.
        score_threshold: From here on a result counts as decided, in matching and in the report; AP ranks all.
        matching: TP / (TP + FP + FN) at IoU 0.5 to 0.9 also with several classes.
        degenerate: drop leaves out objects of the ground truth that cover nothing; refuse stops at them.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from embedmask.data.coco import CocoInstances
    from embedmask.evaluation.run import evaluate_weights, has_truth, write_results
    from embedmask.files import write_json

    dataset = CocoInstances.open(data, split, degenerate=degenerate)
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
        where=where,
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
    score_threshold: float = 0.3,
    max_detections: int | None = None,
    precision: Precision = "auto",
    device: str = "auto",
) -> int:
    """Find objects in pictures; write each picture with its masks drawn, and predictions.json (COCO results).

    Args:
        source: Pictures, folders of pictures, or patterns such as 'photos/*.jpg'.
        weights: Model file (.safetensors).
        out: Folder for the results; images.json in it says which file an image_id is.
        score_threshold: Leave out what the model is less sure of, 0 to 1.
        max_detections: Detections kept an image; by default what the model says.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from embedmask.cli.pictures import predict_files

    outcome = predict_files(
        source,
        weights,
        out,
        score_threshold=score_threshold,
        max_detections=max_detections,
        precision=precision,
        device=device,
        progress=is_watched(),
    )
    for line in outcome.broken:
        print(f"embedmask: {line}", file=sys.stderr)
    if outcome.num_images:
        print(f"{outcome.num_objects} objects in {outcome.num_images} pictures · {out}")
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


def data_shapes(folder: Path, train: int = 2000, val: int = 200, size: int = 256, seed: int = 0) -> None:
    """Make a synthetic data set: textured shapes that overlap, with exact masks, in COCO format.

    Args:
        folder: New or empty folder.
        train: Pictures in train.
        val: Pictures in val.
        size: Side of the pictures, px.
        seed: The same seed gives the same pictures.
    """
    from embedmask.data.shapes import make_shapes

    with picture_bar() as progress:
        make_shapes(folder, train=train, val=val, size=size, seed=seed, progress=progress)
    print(f"{train} pictures in train, {val} in val · {folder}")


def data_check(
    *,
    folder: Path,
    out: Path | None = None,
    json: Path | None = None,
    max_detections: int = 100,
    degenerate: Degenerate = "refuse",
    quick: bool = False,
    workers: int | None = None,
) -> int:
    """Report every problem of a data set, with counts by size and class; exit code 2 when training would stop.

    Args:
        folder: Data set, of any layout that train reads.
        out: Picture of the counts to write, such as counts.png.
        json: Write the whole report to this file: the lists that are printed are shortened.
        max_detections: Name the pictures with more objects than this.
        degenerate: refuse or drop objects without area, as --augment.degenerate of train.
        quick: Do not decode pictures: miss what is cut short, and copies that were stored again.
        workers: Threads that read pictures; by default one a core.
    """
    from embedmask.cli.check import report_lines
    from embedmask.data.check import check_folder
    from embedmask.files import write_json
    from embedmask.visualize import plot_counts

    with picture_bar() as progress:
        report = check_folder(
            folder,
            max_detections=max_detections,
            degenerate=degenerate,
            quick=quick,
            workers=workers,
            progress=progress,
        )
    print("\n".join(report_lines(report)))
    if json is not None:
        write_json(json, report.to_dict())
    if out is not None:
        plot_counts({split: summary.counts for split, summary in report.splits.items()}, out)
    return SOME_BAD if report.fatal else DONE


def data_show(
    *,
    folder: Path,
    split: Split = "train",
    out: Path | None = None,
    count: int = 12,
    config: str | None = None,
    augment: dict[str, Any] | None = None,
) -> None:
    """Draw pictures of a data set with their ground truth on one contact sheet.

    Args:
        folder: Folder of the data set.
        split: train or val.
        out: Picture to write; by default SPLIT.png in the working folder.
        count: Pictures on the sheet, spread over the split.
        config: Recipe, a name or a YAML file: draw what training with it sees, not the pictures as they are.
        augment: Changes a FIELD of the recipe's data section; they are listed below.
    """
    from embedmask.cli.pictures import write_contact_sheet

    path = out or Path(f"{split}.png")
    data = resolve_recipe(config, {"data": augment}).data if config or augment else None
    shown = write_contact_sheet(folder, split, path, count, data)
    print(f"{shown} pictures of {split} · {path}")


def is_watched() -> bool:
    """Progress bars are for people: none where stderr goes to a file."""
    return sys.stderr.isatty()


@contextmanager
def picture_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told how many pictures of all are done."""
    from tqdm import tqdm

    with tqdm(unit="picture", disable=not is_watched()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


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
    "data": {
        "shapes": Command(data_shapes, positional="folder"),
        "check": Command(data_check, positional="folder"),
        "show": Command(
            data_show, positional="folder", epilog=field_names("Fields of --augment", DataConfig)
        ),
    },
}
