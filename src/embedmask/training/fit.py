"""Training of a recipe on a data set, from initial weights to the results folder (`embedmask train`)."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from embedmask.config import Recipe, TrainConfig, model_to_dict, override
from embedmask.config.detector import DEFAULT_SCORE_THRESHOLD
from embedmask.device import full_float32
from embedmask.distributed import is_rank_zero, quiet
from embedmask.errors import BadInput, TrainingStopped, name_some
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.files import atomic_write, exclusive, is_temporary, remove_temporary, write_json
from embedmask.inference.predictor import Predictor
from embedmask.model.detector import Detector
from embedmask.samples import write_samples
from embedmask.training.batch_norm import synchronize_batch_norms
from embedmask.training.callbacks import EvaluationPause, MovingAverage, Progress, ResultsFolder, StopAfter
from embedmask.training.checkpoints import LAST_CHECKPOINT, LastCheckpoint, check_checkpoint
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.engine import Hardware, explain_out_of_memory, make_trainer
from embedmask.training.environment import write_environment
from embedmask.training.identity import check_identity, write_identity
from embedmask.training.module import EmbedMaskModule
from embedmask.training.step_log import STEPS_FILE, StepLog, step_speed
from embedmask.visualize import plot_curves
from embedmask.weights.checkpoint import load_checkpoint
from embedmask.weights.pretrained import SETTINGS, adapt_config, check_same_backbone, load_pretrained

log = logging.getLogger(__name__)

Report = Callable[[str], None]
Splits = TypeVar("Splits", bound=TrainValDataModule)


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    max_detections: int | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
    report: Report = log.info,
) -> dict[str, Any]:
    """Train a recipe on a data set, evaluate it on val, and write the results folder.

    The number of classes follows the data set. `out` receives `recipe.yaml`, `run.json` (the initial recipe and data,
    which `resume` compares), `environment.json` (hardware, versions and data of each start), `metrics.csv` (a row per
    epoch), `steps.csv` (a row per step), `metrics.json`, `curves.png` (losses and AP), `samples/` (predictions beside
    ground truth), `best.safetensors` (the best by mask AP), `last.safetensors`, `model.safetensors` (one of these two,
    by `train.keep`), `last.ckpt` (for `resume`) and TensorBoard logs.

    Several processes (started by torchrun, or by `devices` and `nodes`) share every batch. Losses and gradients of an
    EmbedMask equal those of one process with the whole batch, if every process gets an image; Mask R-CNN's are averages
    over the processes. Rank zero writes.

    Args:
        recipe: recipe to train.
        data: folder with the splits `train` and `val`.
        out: results folder; new or empty, unless `resume`.
        resume: continue from `last.ckpt` in `out`, or start over if the run stopped before its first checkpoint. On
            the CPU the weights are identical to those of an uninterrupted run.
        max_detections: maximum detections per image, in evaluation and in the saved model; None: as in the recipe.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        devices: processes per machine; None: as started by torchrun, else one per CUDA device, else one.
        nodes: number of machines, which share the disk of `out`. The environment of each sets NODE_RANK, MASTER_ADDR
            and MASTER_PORT.
        report: receives lines of progress on rank zero: a summary of each epoch, and the result.

    Returns:
        Content of `metrics.json`: the val metrics of `model.safetensors`, the origin of these weights (`kept`,
        `kept_step`), the figures of `step_speed`, `seconds`, `steps` and `epochs`.

    Raises:
        BadInput: the data, the recipe or the folder is invalid (then no files are left), the run to resume began with
            other data or another recipe, or the memory or the disk is full.
        TrainingStopped: a loss or a weight is not finite, or Ctrl-C or SIGTERM interrupts training; the last
            checkpoint remains.
    """
    check_folder(out, resume)
    report = rank_zero_only(report)
    hardware = Hardware.choose(recipe.train, device, devices, nodes)
    last = out / LAST_CHECKPOINT
    resumed = resume and last.is_file()
    began = recipe_of(out) if resumed else None
    recipe = with_required_settings(recipe, began, report)
    recipe, splits, module = prepare(recipe, data, max_detections, hardware, TrainValDataModule)
    if resume and is_rank_zero():
        check_identity(out, recipe, splits)
    for line in splits.report_lines(data):
        report(line)
    if not resumed:
        initialize_weights(module.model, recipe.train, report)
    results = make_results(out, recipe, splits, report)
    with (
        results_folder(out),
        quiet(),
        explain_out_of_memory(recipe.train),
        full_float32(hardware.device),
    ):
        if is_rank_zero() and not resumed:
            write_identity(out, recipe, splits)
            results.write_recipe()  # before the first step, since `--resume` requires it
        if is_rank_zero():
            report(write_environment(out, recipe, splits, hardware))
        trainer = make_run(recipe, out, hardware, results)
        trainer.fit(module, datamodule=splits, ckpt_path=last if resumed else None, weights_only=True)
        # training may have ended between two evaluations
        if results.evaluated_step != trainer.global_step:
            trainer.validate(module, datamodule=splits, verbose=False)
        if trainer.is_global_zero:
            if began is not None and not results.trained:
                restore_model_settings(began, results)
            write_final_results(out, results, splits, trainer)
    return summary(out, results, trainer)


def restore_model_settings(began: Recipe, results: ResultsFolder) -> None:
    """Write the model settings of a finished run to its recipe again; report new ones, which no weights have."""
    old, now = model_to_dict(began.model), model_to_dict(results.recipe.model)
    unused = [
        f"model.{name} stays {old[name]}, not {value}" for name, value in now.items() if old[name] != value
    ]
    if unused:
        results.recipe = replace(results.recipe, model=began.model)
        results.write_recipe()
        results.report(f"the run has no steps left, so its weights keep their settings: {name_some(unused)}")


def rank_zero_only(report: Report) -> Report:
    """Return `report` on rank zero, and a function without effect on other ranks."""
    return report if is_rank_zero() else lambda line: None


def prepare(
    recipe: Recipe, data: Path, max_detections: int | None, hardware: Hardware, data_module: type[Splits]
) -> tuple[Recipe, Splits, EmbedMaskModule]:
    """Return the recipe adapted to a data set, its data module, and the network with random weights.

    Raises:
        BadInput: the data or the recipe is invalid.
    """
    seed_everything(recipe.train.seed, workers=True, verbose=False)
    splits = data_module(data, recipe)
    recipe = with_classes(recipe, len(splits.train_set.class_names), max_detections)
    module = EmbedMaskModule(recipe, splits.val_set.category_ids, dtype=hardware.dtype)
    recipe = replace(recipe, model=module.model.config)
    if hardware.processes.is_multi_process:
        synchronize_batch_norms(module.model)
    return recipe, splits, module


def recipe_of(out: Path) -> Recipe | None:
    """Return the recipe of the run in `out`, None without one."""
    file = out / "recipe.yaml"
    return Recipe.from_yaml(file) if file.is_file() else None


def with_required_settings(recipe: Recipe, began: Recipe | None, report: Report) -> Recipe:
    """Return the recipe with the model settings that its initial weights require.

    Args:
        began: recipe of the run to resume, whose settings remain; None: a new run, with changes reported.

    Raises:
        BadInput: a weights file cannot be read, or belongs to another backbone.
    """
    # the recipe of the run has the settings already, and its weights file may be gone
    if began is not None and all(getattr(began.model, n) == getattr(recipe.model, n) for n in SETTINGS):
        return recipe
    model = adapt_config(recipe.model, recipe.train, report if began is None else lambda line: None)
    return replace(recipe, model=model)


def initialize_weights(model: Detector, config: TrainConfig, report: Report) -> None:
    """Load the initial weights of `train.init` or `train.pretrained`, in place; without either they stay random.

    Raises:
        BadInput: a weights file cannot be read or fetched, or belongs to another backbone.
    """
    if config.init is not None:
        try:
            source = load_checkpoint(config.init).model
        except BadInput as error:
            raise BadInput(f"train.init {error}") from None
        check_same_backbone(model.config.backbone, source.config.backbone, config.init)
        state = model.state_dict()
        # layers that depend on the number of classes differ in shape and stay random
        matching = {
            name: value
            for name, value in source.state_dict().items()
            if name in state and value.shape == state[name].shape
        }
        model.load_state_dict(matching, strict=False)
        report(f"starts from {config.init}: {len(matching)} of {len(state)} tensors")
    elif config.pretrained:
        report(load_pretrained(model.backbone, config.pretrained))


def check_folder(out: Path, resume: bool) -> None:
    """Check that `out` holds a run to resume, or else no files, except for temporary ones of a killed run.

    Raises:
        BadInput: there is no run to resume, its checkpoint is damaged, or a new run would overwrite files.
    """
    if not is_rank_zero():
        return  # rank zero checks, and may have started to write
    if resume:
        if (out / LAST_CHECKPOINT).is_file():
            check_checkpoint(out / LAST_CHECKPOINT)
        elif not (out / "recipe.yaml").is_file():
            raise BadInput(f"{out}: no run to resume; omit --resume to start a new one")
    elif out.exists() and (not out.is_dir() or not all(map(is_temporary, out.iterdir()))):
        raise BadInput(f"{out}: not an empty folder; choose a new one, or continue the run with --resume")


def with_classes(recipe: Recipe, num_classes: int, max_detections: int | None) -> Recipe:
    """Return the recipe with the number of classes of a data set, and `max_detections` unless it is None."""
    changes = {"num_classes": num_classes}
    if max_detections is not None:
        changes["max_detections"] = max_detections
    model = override(recipe.model, changes, where="model")
    model.score_thresholds()  # checks that thresholds per class match the number of classes
    return Recipe(model=model, data=recipe.data, train=recipe.train)


def make_results(out: Path, recipe: Recipe, splits: TrainValDataModule, report: Report) -> ResultsFolder:
    """Build the callback that evaluates and writes results; rank zero alone reads the ground truth."""
    ground_truth = splits.val_set.ground_truth if is_rank_zero() else None
    evaluator = None if ground_truth is None else CocoEvaluator(ground_truth, recipe.model.max_detections)
    return ResultsFolder(out, recipe, evaluator, splits.val_set.class_names, report)


def make_run(
    recipe: Recipe, out: Path, hardware: Hardware, results: ResultsFolder, *more: Callback
) -> Trainer:
    """Build the trainer of a run with the callbacks that write to `out`; `more` callbacks come first."""
    config = recipe.train
    # results come before the average: they must save while the averaged weights are swapped in
    callbacks = [*more, results]
    if config.ema_decay is not None:
        callbacks.append(MovingAverage(config.ema_decay))
    if config.max_steps is not None:
        callbacks.append(StopAfter(config.max_steps))
    if config.eval_minutes is not None:
        callbacks.append(EvaluationPause(config.eval_minutes, config.eval_every))
    bar = sys.stdout.isatty()
    if bar:
        callbacks.append(Progress())
    report = None if bar else results.report
    callbacks.append(StepLog(out / STEPS_FILE, report, config.max_steps))
    minutes, steps = config.checkpoint_minutes, config.checkpoint_steps
    callbacks.append(LastCheckpoint(out / LAST_CHECKPOINT, minutes=minutes, steps=steps))
    logger = TensorBoardLogger(out, name="", version="tensorboard")
    return make_trainer(config, hardware, callbacks, logger=logger, enable_progress_bar=bar)


@contextmanager
def results_folder(out: Path) -> Iterator[None]:
    """Make `out` for this run alone, and remove it if training fails before the first checkpoint.

    Raises:
        BadInput: another process trains in `out`, or a file of `out` is removed during training.
        TrainingStopped: training is interrupted by Ctrl-C or SIGTERM.
    """
    if not is_rank_zero():
        with explain_interruption(out):
            yield
        return
    is_new = not out.exists()
    with exclusive(out):
        remove_temporary(out)
        try:
            with explain_interruption(out):
                yield
        except BaseException as error:
            if is_new and not (out / LAST_CHECKPOINT).exists():
                shutil.rmtree(out, ignore_errors=True)
            if isinstance(error, FileNotFoundError) and out in Path(error.filename or "").parents:
                raise BadInput(f"{error.filename}: removed during training; start again") from None
            raise


@contextmanager
def explain_interruption(out: Path) -> Iterator[None]:
    """Convert Ctrl-C and SIGTERM, for which Lightning exits, to `TrainingStopped`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if (out / LAST_CHECKPOINT).exists():
            raise TrainingStopped(f"{out}: interrupted; --resume continues at the last checkpoint") from error
        raise TrainingStopped(
            f"{out}: interrupted before the first checkpoint, so no training was kept; --train.checkpoint_minutes "
            "sets how often one is written"
        ) from error


def write_final_results(
    out: Path, results: ResultsFolder, splits: TrainValDataModule, trainer: Trainer
) -> None:
    """Write `model.safetensors`, the metrics, the curves and the samples, and report the result."""
    kept = results.kept
    with atomic_write(out / "model.safetensors") as temporary:
        shutil.copyfile(out / f"{splits.recipe.train.keep}.safetensors", temporary)
    write_json(out / "metrics.json", summary(out, results, trainer))
    plot_curves(results.history, out / "curves.png")
    predictor = Predictor.load(
        out / "model.safetensors",
        device=trainer.strategy.root_device,
        precision=splits.recipe.train.precision,
    )
    write_samples(predictor, splits.val_set, out / "samples")
    results.report(threshold_line(predictor.model.config.default_score_threshold, kept))
    aps = f"mask AP {kept['segm/AP']:.3f}, box AP {kept['bbox/AP']:.3f} on val"
    origin = f"{kept['kept']}, step {kept['kept_step']}"
    results.report(f"{aps} · {origin} · {out / 'model.safetensors'}")


def threshold_line(threshold: float | tuple[float, ...] | None, metrics: Mapping[str, Any]) -> str:
    """Return one line with the score threshold of the model and its F1 on val."""
    if threshold is None:
        return f"score threshold {DEFAULT_SCORE_THRESHOLD:g} (default): no result on val was correct"
    values = threshold if isinstance(threshold, tuple) else (threshold,)
    best, default = metrics["decision/F1"], metrics[f"decision/F1_at_{DEFAULT_SCORE_THRESHOLD:g}"]
    return (
        f"score threshold {', '.join(f'{value:g}' for value in values)} · F1 at mask IoU 0.5 on val: at most "
        f"{best:.3f} with one threshold for all classes, {default:.3f} at {DEFAULT_SCORE_THRESHOLD:g}"
    )


def summary(out: Path, results: ResultsFolder, trainer: Trainer) -> dict[str, Any]:
    """Return the content of `metrics.json`."""
    return {
        **results.kept,
        **step_speed(out / STEPS_FILE),
        "seconds": round(results.seconds, 1),
        "steps": trainer.global_step,
        "epochs": len(results.history),
    }
