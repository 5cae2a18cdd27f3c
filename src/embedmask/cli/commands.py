"""The commands, one function each: printed lines are for people, written files for scripts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from embedmask.cli.data import data_check, data_shapes, data_show, data_split
from embedmask.cli.demo import demo
from embedmask.cli.evaluate import evaluate
from embedmask.cli.export import export
from embedmask.cli.figures import compare, explain
from embedmask.cli.parser import Command, Commands
from embedmask.cli.predict import predict
from embedmask.cli.terminal import is_interactive
from embedmask.cli.threads import use_threads
from embedmask.config import Engine, Precision, Recipe
from embedmask.config.bundled import (
    find_recipe,
    recipe_names,
    recipe_summary,
    resolve_recipe,
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
    """Train a model on a data set.

    The results folder receives the weights, the metrics on val, curves and sample images.

    Args:
        data: Folder of the data set, in COCO, YOLO, LabelMe or another supported layout, or with label images.
        out: Results folder, new or empty, or an existing run with --resume. Not needed for a dry run.
        config: Recipe: a name such as shapes or nuclei, or a YAML file. With --resume, defaults to the run's own.
        model: Override a FIELD of the model config; fields are listed below.
        augment: Override a FIELD of the data config; --augment.FIELD is an alias.
        train: Override a FIELD of the solver config.
        resume: Continue from the last checkpoint in the results folder.
        dry_run: Check data, config and memory with two steps, estimate the training time, and write nothing.
        max_detections: Maximum detections per image, also stored with the model; by default from the recipe.
        page: Page of TIFF stacks or frame of animations, from 0, stored with the model; same as --model.image_page.
        channels: Channels of image files, from 0: one as gray, or three as RGB, stored with the model; same as
            --model.image_channels.
        precision: auto, float32, bfloat16 or float16; same as --train.precision.
        val_fraction: Hold out this fraction of train as val, for data sets without a val split. Pass the same value
            to eval. Same as --data.val_fraction.
        threads: CPU threads per process; by default PyTorch's choice.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine; by default one per CUDA device, else one. Not needed under torchrun.
        nodes: Number of machines, which share a file system. Run the command on each one, with NODE_RANK, MASTER_ADDR
            and MASTER_PORT set.
    """
    use_threads(threads)
    if out is None and not dry_run:
        raise BadInput("missing: out; see --help")
    # shorthands: explicit options take precedence over --model.FIELD, --data.FIELD and --train.FIELD
    if precision is not None:
        train = {**(train or {}), "precision": precision}
    if val_fraction is not None:
        augment = {**(augment or {}), "val_fraction": val_fraction}
    reading = {"image_page": page, "image_channels": channels or None}
    model = {**(model or {}), **{name: value for name, value in reading.items() if value is not None}}
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


def convert(official: Path, out: Path) -> None:
    """Convert a checkpoint of the authors' code (.pth, any version) to a model file.

    Args:
        official: The authors' checkpoint; read as tensors only, never executed.
        out: Model file to write (.safetensors).
    """
    from embedmask.weights.official import convert_file

    config = convert_file(official, out)
    print(f"{config.backbone}, {config.num_classes} classes, {config.embed_dim} embedding dims · {out}")


def recipes(*, show: str | None = None) -> None:
    """List the bundled recipes, or print one in full with the size of its model.

    Args:
        show: Recipe to print, a name or a YAML file; includes fields that it leaves at their defaults. A comment
            states the parameters and the operations (FLOPs) of its model for an image of 480 x 640 px.
    """
    if show is not None:
        import yaml

        from embedmask.benchmark.complexity import count_complexity

        recipe = Recipe.from_yaml(find_recipe(show, "--show"))
        print(f"# {count_complexity(recipe.model)}")
        print(yaml.safe_dump(recipe.to_dict(), sort_keys=False), end="")
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
    exported: list[Path] = [],  # noqa: B006
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
    """Measure prediction stage by stage, from image file to masks, next to torchvision's Mask R-CNN.

    Args:
        weights: Model file (.safetensors). By default the recipe's model with random weights, calibrated to produce
            the requested number of detections. Mask R-CNN has random weights, calibrated the same way.
        config: Recipe of the benchmarked model, a name or a YAML file.
        model: Override a FIELD of the model config, such as embed_stride; fields are listed below.
        image_size: Height and width of the image, px. It is resized as the model requires, but never enlarged.
        json: Also write the figures to this file: medians in seconds of wall and CPU time, quartiles, ratios,
            memory, machine with its matrix rates.
        engine: Engines that run the EmbedMask network; each one is a separate pipeline.
        exported: Files of embedmask export to measure as well; they keep their weights and number of detections.
        baseline: Mask R-CNN pipelines; the fastest is reported as best. bfloat16: autocast with channels_last;
            compiled: the same with compiled convolutions, which takes minutes.
        batch: Batch sizes, measured one after the other.
        detections: Detections per image, for all pipelines.
        runs: Measured runs of each pipeline, interleaved; use at least 10 for figures to publish.
        warmup: Warm-up runs, not measured.
        threads: CPU threads; by default PyTorch's choice.
        skip_memory: Do not measure peak memory, which takes a separate process per pipeline.
        precision: Of the EmbedMask convolutions: auto, float32, bfloat16 or float16.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from embedmask.benchmark.compare import compare
    from embedmask.cli.bench import make_bench_config, report_lines
    from embedmask.files import check_writable, write_json

    bench_config = make_bench_config(
        weights,
        config,
        model or {},
        image_size=(image_size[0], image_size[1]),
        engines=tuple(engine),
        exported=tuple(exported),
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
    if json is not None:
        check_writable(json)
    report = compare(
        bench_config, progress=lambda line: print(line, file=sys.stderr) if is_interactive() else None
    )
    print("\n".join(report_lines(report)))
    if json is not None:
        write_json(json, report)


def report(run: list[str], *, json: Path | None = None, out: Path | None = None) -> None:
    """Print a Markdown table of finished runs, with mean and spread over the seeds of equal recipes.

    Args:
        run: Results folders of embedmask train. Runs that differ only in their seeds form one row.
        json: Also write all metrics, values per seed, and environments to this file.
        out: Also write the table to this file.
    """
    from embedmask.files import write_json, write_text
    from embedmask.run_table import markdown_table, summarize_runs

    rows = summarize_runs([Path(folder) for folder in run])
    table = markdown_table(rows)
    print(table)
    if json is not None:
        write_json(json, rows)
    if out is not None:
        write_text(out, f"{table}\n")


COMMANDS: Commands = {
    "train": Command(train, sections=("model", "data", "train")),
    "eval": Command(evaluate),
    "predict": Command(predict, positional="source"),
    "convert": Command(convert, positional="official"),
    "export": Command(export, positional="model"),
    "recipes": Command(recipes),
    "bench": Command(bench, sections=("model",)),
    "report": Command(report, positional="run"),
    "explain": Command(explain, positional="image"),
    "compare": Command(compare, positional="image"),
    "demo": Command(demo),
    "data": {
        "shapes": Command(data_shapes, positional="folder"),
        "check": Command(data_check, positional="folder"),
        "show": Command(data_show, positional="folder", sections=("data",)),
        "split": Command(data_split, positional="folder"),
    },
}
