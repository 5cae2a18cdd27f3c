"""The commands, each a function; what they print is for people, what they write is for scripts."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from embedmask.cli.parser import Command, Commands
from embedmask.cli.recipes import resolve_recipe
from embedmask.config import DataConfig, ModelConfig, Precision, TrainConfig

Split = Literal["train", "val"]
DONE, SOME_BAD = 0, 2


def train(
    *,
    data: Path,
    out: Path,
    config: str | None = None,
    model: dict[str, Any] | None = None,
    augment: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    resume: bool = False,
    max_detections: int | None = None,
    precision: Precision | None = None,
    device: str = "auto",
) -> None:
    """Train a recipe on a data set; leave weights, metrics on its val split and pictures in a folder.

    Args:
        data: COCO-style folder: train.json and val.json beside images/, or COCO's own layout.
        out: Results folder, new or empty (or the run's own, with --resume).
        config: Recipe: a name such as shapes or nuclei, or a YAML file. With --resume: the run's own.
        model: Changes a FIELD of the model; they are listed below.
        augment: Changes a FIELD of the recipe's data section.
        train: Changes a FIELD of the solver.
        resume: Go on from the last whole epoch in the results folder.
        max_detections: Detections kept an image, also by the model that is kept; by default what the recipe says.
        precision: auto, float32, bfloat16 or float16; the same as --train.precision.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    if precision is not None:
        train = {**(train or {}), "precision": precision}
    changes = {"model": model, "data": augment, "train": train}
    recipe = resolve_recipe(config, changes, out if resume else None)

    from tqdm import tqdm

    from embedmask.training.fit import train as fit

    fit(recipe, data, out, resume=resume, max_detections=max_detections, device=device, report=tqdm.write)


def evaluate(
    *,
    weights: Path,
    data: Path,
    split: Split = "val",
    json: Path | None = None,
    where: str | None = None,
    max_detections: int | None = None,
    precision: Precision = "auto",
    device: str = "auto",
) -> None:
    """Box, mask and boundary AP of a model on a split of a data set.

    Args:
        weights: Model file (.safetensors).
        data: COCO-style folder.
        split: train or val.
        json: Write the metrics to this file as well.
        where: Only the images whose record in the annotation file says KEY=VALUE, as modality=fluorescence.
        max_detections: Detections kept an image, in prediction and in AP; by default what the model says.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from embedmask.data.coco import find_split
    from embedmask.evaluation.run import evaluate_weights
    from embedmask.files import write_json

    metrics = evaluate_weights(
        weights,
        data,
        split,
        where=where,
        max_detections=max_detections,
        precision=precision,
        device=device,
        progress=is_watched(),
    )
    print(f"{data}: {find_split(data, split).layout}")
    print(metrics_table(metrics))
    if json is not None:
        write_json(json, metrics)


def metrics_table(metrics: dict[str, float]) -> str:
    """One row a kind (bbox, segm, boundary), one column a metric; what a kind lacks stays empty."""
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in metrics if "/" in name))
    columns = list(dict.fromkeys(name.partition("/")[2] for name in metrics if "/" in name))
    lines = [f"{'':10}" + "".join(f"{column:>11}" for column in columns)]
    for kind in kinds:
        cells = [metrics.get(f"{kind}/{column}") for column in columns]
        lines.append(
            f"{kind:10}" + "".join(f"{'' if cell is None else format(cell, '.4f'):>11}" for cell in cells)
        )
    return "\n".join(line.rstrip() for line in lines)


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
    """Convert a checkpoint of the authors' code (.pth, either version) into a model file.

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
    from tqdm import tqdm

    from embedmask.data.shapes import make_shapes

    with tqdm(total=train + val, unit="picture", disable=not is_watched()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        make_shapes(folder, train=train, val=val, size=size, seed=seed, progress=progress)
    print(f"{train} pictures in train, {val} in val · {folder}")


def data_show(folder: Path, split: Split = "train", out: Path | None = None, count: int = 12) -> None:
    """Draw pictures of a data set with their ground truth on one contact sheet.

    Args:
        folder: COCO-style folder.
        split: train or val.
        out: Picture to write; by default SPLIT.png in the working folder.
        count: Pictures on the sheet, spread over the split.
    """
    from embedmask.cli.pictures import write_contact_sheet

    path = out or Path(f"{split}.png")
    shown = write_contact_sheet(folder, split, path, count)
    print(f"{shown} pictures of {split} · {path}")


def is_watched() -> bool:
    """Progress bars are for people: none where stderr goes to a file."""
    return sys.stderr.isatty()


def field_names(title: str, config: type[ModelConfig] | type[DataConfig] | type[TrainConfig]) -> str:
    """The fields of a config, for the help."""
    return f"{title}: {', '.join(field.name for field in fields(config))}."


TRAIN_FIELDS = " ".join(
    (
        field_names("Fields of --model", ModelConfig),
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
        "show": Command(data_show, positional="folder"),
    },
}
