"""The commands, each a function; what they print is for people, what they write is for scripts."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from embedmask.cli.data import data_check, data_shapes, data_show, data_split
from embedmask.cli.evaluate import evaluate
from embedmask.cli.parser import Command, Commands
from embedmask.cli.recipes import (
    find_recipe,
    parse_score_threshold,
    recipe_names,
    recipe_summary,
    resolve_recipe,
)
from embedmask.cli.terminal import DONE, SOME_BAD, SOME_BROKEN, is_interactive
from embedmask.cli.threads import use_threads
from embedmask.config import (
    DataConfig,
    DetectorConfig,
    Engine,
    MaskRCNNConfig,
    ModelConfig,
    Precision,
    Recipe,
    TrainConfig,
)
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
    val_fraction: float | None = None,
    threads: int | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
) -> None:
    """Train a recipe on a data set; leave weights, metrics on its val split and images in a folder.

    Args:
        data: Folder of the data set, as COCO, YOLO, LabelMe and other tools lay it out, or with label images.
        out: Results folder, new or empty (or the run's own, with --resume). A dry run needs none.
        config: Recipe: a name such as shapes or nuclei, or a YAML file. With --resume: the run's own.
        model: Changes a FIELD of the model; they are listed below.
        augment: Changes a FIELD of the recipe's data section; --data.FIELD does the same.
        train: Changes a FIELD of the solver.
        resume: Go on from the last checkpoint in the results folder, as if the run had never stopped.
        dry_run: Check data, config and memory with two steps, say how long the whole takes, and write nothing.
        max_detections: Detections kept an image, also by the model that is kept; by default what the recipe says.
        page: Page of TIFF stacks, or frame of animations, from 0, also for predicting with the model; the same as
            --model.image_page.
        channels: One channel of image files, as grey, or three as R, G and B, from 0, also for predicting with the
            model; the same as --model.image_channels.
        precision: auto, float32, bfloat16 or float16; the same as --train.precision.
        val_fraction: Hold out this fraction of train as val, by the content of the images, where the data set has no
            val split; the same as --augment.val_fraction. eval needs the same to see these images.
        threads: Threads of the processor in each process; by default what torch takes.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine, by default one a CUDA card, else one. Not needed under torchrun.
        nodes: Machines that share a disk; on each, start the command with NODE_RANK, MASTER_ADDR, MASTER_PORT set.
    """
    use_threads(threads)
    if out is None and not dry_run:
        raise BadInput("missing: out; see --help")
    if precision is not None:
        train = {**(train or {}), "precision": precision}
    if val_fraction is not None:
        augment = {**(augment or {}), "val_fraction": val_fraction}
    own = {"image_page": page, "image_channels": channels or None}
    model = {**(model or {}), **{name: value for name, value in own.items() if value is not None}}
    changes = {"model": model, "data": augment, "train": train}
    recipe = resolve_recipe(config, changes, out if resume else None)

    from tqdm import tqdm

    from embedmask.training.dry_run import run_dry
    from embedmask.training.fit import train as fit

    run: Any = run_dry if dry_run else fit
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


def predict(
    *,
    source: list[str],
    weights: Path,
    out: Path,
    format: Literal["coco", "labels", "polygons", "yolo", "masks"] = "coco",
    ids_from: Path | None = None,
    no_draw: bool = False,
    score_threshold: str | None = None,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: int = 128,
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    resume: bool = False,
    batch_size: int | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    threads: int | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
) -> int:
    """Find objects in images and videos; write each with its masks drawn, and predictions.json (COCO results).

    Exit code 1 where some files could not be read: they are named at the end. What --out holds of an earlier run is
    replaced file by file.

    Args:
        source: Images, videos (mp4, avi, mov, mkv, webm, m4v, mpg), folders of them, or patterns such as
            'photos/*.jpg'.
        weights: Model file (.safetensors), or a model that comes with the package: nuclei.
        out: Folder for the results; images.json in it says which file, and which frame, an image_id is.
        format: Write also, for each image, labels/NAME.png (16 bit, pixels of the k-th result are k),
            polygons/NAME.json (LabelMe), labels/NAME.txt and data.yaml (yolo), or masks/NAME/ (a file a mask).
        ids_from: Folder of a data set that holds these images: predictions.json takes its image and category ids, so
            that it can be evaluated against the annotations. By default images are counted from 1.
        no_draw: Leave out the drawn images and videos.
        score_threshold: Leave out results that score less, 0 to 1; by default what the model says. One number, or
            CLASS=NUMBER,CLASS=NUMBER.
        max_detections: Detections kept an image; by default what the model says.
        tile: Look at squares of this side, px, one by one, as large images need, and join the results; 0: do not.
        overlap: What neighbouring tiles share, px; half the size of a usual object is enough.
        page: Page of TIFF stacks, or frame of animations, from 0; by default what the model says, else the first.
        channels: One channel of image files, as grey, or three as R, G and B, from 0; by default likewise, else the
            colours of an image in colour or the first channel.
        resume: Go on where a run into --out was stopped, with the same options; what is finished is left as it is.
        batch_size: Images that the network sees at once; by default what suits the device.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        engine: compile takes minutes at first; openvino (CPU) needs: pip install
            'embedmask[export]'.
        threads: Threads of the processor in each process; by default what torch takes.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine, by default one a CUDA card, else one. Not needed under torchrun.
        nodes: Machines that share a disk; on each, start the command with NODE_RANK, MASTER_ADDR, MASTER_PORT set.
    """
    use_threads(threads)
    from embedmask.cli.predict import Settings, predict_files

    settings = Settings(
        format=format,
        score_threshold=parse_score_threshold(score_threshold),
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
        progress=is_interactive(),
        ids_from=ids_from,
    )
    for line in (*outcome.notes, *outcome.broken):
        print(f"embedmask: {line}", file=sys.stderr)
    if outcome.num_images:
        print(f"{outcome.num_objects} objects in {outcome.num_images} images · {out}")
        if outcome.hint:
            print(f"nothing found: {outcome.hint}")
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


def recipes(*, show: str | None = None) -> None:
    """List the recipes that come with the package, or print one whole.

    Args:
        show: Recipe, a name or a YAML file: print all its fields, those that it leaves to the preset and the defaults
            included.
    """
    if show is not None:
        import yaml

        print(
            yaml.safe_dump(Recipe.from_yaml(find_recipe(show, "--show")).to_dict(), sort_keys=False), end=""
        )
        return
    names = recipe_names()
    width = max(map(len, names), default=0)
    print("\n".join(f"{name:{width}}  {recipe_summary(name)}" for name in names))


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
        image_size: Height and width of the image, px. It is resized as the model says, but never enlarged.
        json: Write the figures to this file as well: medians in seconds, quartiles, ratios, memory, machine.
        engine: What runs our network; several are measured beside each other.
        baseline: Settings of Mask R-CNN; the fastest that works is its best. bfloat16 is autocast with channels_last,
            compiled is that with its convolutions compiled, which takes minutes.
        batch: Images at once; several are measured one after the other.
        detections: In an image, on both sides.
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
    report = compare(plan, progress=lambda line: print(line, file=sys.stderr) if is_interactive() else None)
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
        field_names("Of --data and --augment", DataConfig),
        field_names("Of --train", TrainConfig),
    )
)

COMMANDS: Commands = {
    "train": Command(train, epilog=TRAIN_FIELDS),
    "eval": Command(evaluate),
    "predict": Command(predict, positional="source"),
    "convert": Command(convert, positional="official"),
    "recipes": Command(recipes),
    "bench": Command(bench, epilog=field_names("Fields of --model", ModelConfig)),
    "data": {
        "shapes": Command(data_shapes, positional="folder"),
        "check": Command(data_check, positional="folder"),
        "show": Command(
            data_show, positional="folder", epilog=field_names("Fields of --data and --augment", DataConfig)
        ),
        "split": Command(data_split, positional="folder"),
    },
}
