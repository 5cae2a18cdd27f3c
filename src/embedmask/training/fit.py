"""Train a recipe on a data set and leave a results folder: what `embedmask train` calls."""

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

from embedmask.config import Recipe, TrainConfig, override
from embedmask.config.detector import DEFAULT_DECISION
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.files import atomic_write, is_temporary, make_folder, remove_temporary, write_json
from embedmask.inference.predictor import Predictor
from embedmask.model.detector import Detector
from embedmask.training.batch_norm import synchronize_batch_norms
from embedmask.training.callbacks import MovingAverage, Progress, ResultsFolder, StopAfter
from embedmask.training.checkpoints import LAST_CHECKPOINT, LastCheckpoint, check_checkpoint
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.engine import Hardware, explain_out_of_memory, make_trainer, quiet
from embedmask.training.identity import check_identity, write_identity
from embedmask.training.module import EmbedMaskModule
from embedmask.training.processes import is_rank_zero
from embedmask.training.samples import write_samples
from embedmask.training.step_log import StepLog
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
    """Train `recipe` on `data`, evaluate on its val split, and leave everything in `out`.

    The number of classes follows the data set. `out` holds `recipe.yaml`, `run.json` (the recipe and the data that the
    run began with, which `resume` compares), `metrics.csv` (a row an epoch), `steps.csv` (a row a step),
    `metrics.json`, `curves.png` (losses and AP), `samples/` (predictions beside ground truth),
    `best.safetensors` (the best by mask AP), `last.safetensors`, `model.safetensors` (the one of both that
    `train.keep` names), `last.ckpt` (for `resume`) and TensorBoard logs.

    With several processes (torchrun's, or `devices` and `nodes`) each gets its share of every batch, the losses and
    gradients are those of one process with the whole batch, and the first one writes.

    Args:
        data: folder with the splits `train` and `val`.
        out: results folder; new or empty, unless `resume`.
        resume: go on from `last.ckpt` in `out`, in the middle of an epoch or after one; from the beginning where
            the run was stopped before it wrote one. On the CPU the weights come out the same, bit for bit.
        max_detections: per image, in evaluation and in the model that is kept; None: as the recipe says.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        devices: processes of each machine; None: as torchrun started them, else one a CUDA card, else one.
        nodes: machines, which share the disk of `out`; each is told its NODE_RANK, MASTER_ADDR and MASTER_PORT by
            its environment.
        report: takes one line a time: a summary of each epoch, and the result; in the first process alone.

    Returns:
        What `metrics.json` holds: the metrics of `model.safetensors` on val, which weights these are (`kept`,
        `kept_step`), `seconds`, `steps`, `epochs`.

    Raises:
        BadInput: the data, the recipe or the folder cannot be used (then nothing is left behind), the run to resume
            began with others, or the memory or the disk is full.
        TrainingStopped: a loss or a weight is no longer finite; the last checkpoint is kept.
    """
    check_folder(out, resume)
    tell = report if is_rank_zero() else lambda line: None
    hardware = Hardware.choose(recipe.train, device, devices, nodes)
    last = out / LAST_CHECKPOINT
    resumed = resume and last.is_file()
    recipe = with_settings(recipe, out if resumed else None, tell)
    recipe, splits, module = prepare(recipe, data, max_detections, hardware, TrainValDataModule)
    if resume and is_rank_zero():
        check_identity(out, recipe, splits)
    for line in splits.report_lines(data):
        tell(line)
    if not resumed:
        set_first_weights(module.model, recipe.train, tell)
    results = make_results(out, recipe, splits, tell)
    with results_folder(out), quiet(), explain_out_of_memory(recipe.train):
        if is_rank_zero() and not resumed:
            write_identity(out, recipe, splits)
            results.write_recipe()  # at once: what has a recipe can be resumed
        trainer = make_run(recipe, out, hardware, results)
        trainer.fit(module, datamodule=splits, ckpt_path=last if resumed else None, weights_only=True)
        if results.evaluated_step != trainer.global_step:
            trainer.validate(module, datamodule=splits, verbose=False)
        if trainer.is_global_zero:
            finish(out, results, splits, trainer)
    return summary(results, trainer)


def prepare(
    recipe: Recipe, data: Path, max_detections: int | None, hardware: Hardware, kind: type[Splits]
) -> tuple[Recipe, Splits, EmbedMaskModule]:
    """Return the recipe for this data set, the data, and the network with random weights.

    Args:
        kind: `TrainValDataModule`, or one that gives less of the data.

    Raises:
        BadInput: the data or the recipe cannot be used.
    """
    seed_everything(recipe.train.seed, workers=True, verbose=False)
    splits = kind(data, recipe)
    recipe = with_classes(recipe, len(splits.train_set.class_names), max_detections)
    module = EmbedMaskModule(recipe, splits.val_set.category_ids, channels_last=hardware.channels_last)
    recipe = replace(recipe, model=module.model.config)
    if hardware.processes.are_many:
        synchronize_batch_norms(module.model)
    return recipe, splits, module


def with_settings(recipe: Recipe, resumed: Path | None, tell: Report) -> Recipe:
    """Return the recipe with the settings of the network that its first weights require.

    Args:
        resumed: results folder of the run that goes on: the settings it began with stay, whatever its weights were.
        tell: takes the line that names the changes; not of a run that goes on.

    Raises:
        BadInput: a file of weights cannot be read, or is of another backbone.
    """
    if resumed is not None and (resumed / "recipe.yaml").is_file():
        began = Recipe.from_yaml(resumed / "recipe.yaml").model
        if all(getattr(began, name) == getattr(recipe.model, name) for name in SETTINGS):
            return recipe
    model = adapt_config(recipe.model, recipe.train, tell if resumed is None else lambda line: None)
    return replace(recipe, model=model)


def set_first_weights(model: Detector, config: TrainConfig, tell: Report) -> None:
    """Those that training starts from, where they are not random.

    Raises:
        BadInput: `init` is no model file, or of another backbone; the pretrained weights cannot be read or fetched.
    """
    if config.init is not None:
        try:
            first = load_checkpoint(config.init).model
        except BadInput as error:
            raise BadInput(f"train.init {error}") from None
        check_same_backbone(model.config.backbone, first.config.backbone, config.init)
        held, wanted = first.state_dict(), model.state_dict()
        fit = {n: value for n, value in held.items() if n in wanted and value.shape == wanted[n].shape}
        model.load_state_dict(fit, strict=False)
        tell(f"starts from {config.init}: {len(fit)} of {len(wanted)} tensors")
    elif config.pretrained:
        tell(load_pretrained(model.backbone, config.pretrained))


def check_folder(out: Path, resume: bool) -> None:
    """A run is never overwritten, and only a run can go on; what a killed one has left half written is removed."""
    if not is_rank_zero():
        return  # the first process looks, and may have begun to write
    if resume:
        if (out / LAST_CHECKPOINT).is_file():
            check_checkpoint(out / LAST_CHECKPOINT)
        elif not (out / "recipe.yaml").is_file():
            raise BadInput(f"{out}: no run to resume in there; leave out --resume to start one")
    elif out.exists() and (not out.is_dir() or not all(map(is_temporary, out.iterdir()))):
        raise BadInput(
            f"{out}: already holds something; choose a new folder, or continue the run with --resume"
        )
    if out.exists():
        remove_temporary(out)


def with_classes(recipe: Recipe, num_classes: int, max_detections: int | None) -> Recipe:
    """The recipe for a data set of `num_classes` classes, and so many detections an image."""
    changes = {"num_classes": num_classes}
    if max_detections is not None:
        changes["max_detections"] = max_detections
    model = override(recipe.model, changes, where="model")
    model.decision()  # as many thresholds as classes, if one per class
    return Recipe(model=model, data=recipe.data, train=recipe.train)


def make_results(out: Path, recipe: Recipe, splits: TrainValDataModule, tell: Report) -> ResultsFolder:
    """Build the callback that evaluates and writes; the first process reads the ground truth of val for it."""
    truth = splits.val_set.ground_truth if is_rank_zero() else None
    evaluator = None if truth is None else CocoEvaluator(truth, recipe.model.max_detections)
    return ResultsFolder(out, recipe, evaluator, splits.val_set.class_names, tell)


def make_run(
    recipe: Recipe, out: Path, hardware: Hardware, results: ResultsFolder, *more: Callback
) -> Trainer:
    """Build the trainer of a whole run, with all that it leaves in `out`; `more` callbacks come first."""
    config = recipe.train
    # the results come before the average: they save the averaged weights while these are swapped in
    callbacks = [*more, results]
    if config.ema_decay is not None:
        callbacks.append(MovingAverage(config.ema_decay))
    if config.max_steps is not None:
        callbacks.append(StopAfter(config.max_steps))
    bar = sys.stdout.isatty()
    if bar:
        callbacks.append(Progress())
    callbacks.append(StepLog(out / "steps.csv", config.batch_size, None if bar else results.report))
    minutes, steps = config.checkpoint_minutes, config.checkpoint_steps
    callbacks.append(LastCheckpoint(out / LAST_CHECKPOINT, minutes=minutes, steps=steps))
    logger = TensorBoardLogger(out, name="", version="tensorboard")
    return make_trainer(config, hardware, callbacks, logger=logger, enable_progress_bar=bar)


@contextmanager
def results_folder(out: Path) -> Iterator[None]:
    """Make `out`; where training fails before its first checkpoint, take it away again."""
    made = is_rank_zero() and not out.exists()
    if is_rank_zero():  # where another process were faster, nobody would take it away
        make_folder(out)
    try:
        yield
    except BaseException:
        if made and not (out / LAST_CHECKPOINT).exists():
            shutil.rmtree(out, ignore_errors=True)
        raise


def finish(out: Path, results: ResultsFolder, splits: TrainValDataModule, trainer: Trainer) -> None:
    """Write the weights that are kept under their final name, the metrics, the curves and the samples."""
    kept = results.kept
    with atomic_write(out / "model.safetensors") as temporary:
        shutil.copyfile(out / f"{splits.recipe.train.keep}.safetensors", temporary)
    write_json(out / "metrics.json", summary(results, trainer))
    plot_curves(results.history, out / "curves.png")
    predictor = Predictor.load(
        out / "model.safetensors",
        device=trainer.strategy.root_device,
        precision=splits.recipe.train.precision,
    )
    write_samples(predictor, splits.val_set, out / "samples")
    results.report(threshold_line(predictor.model.config.decision_threshold, kept))
    aps = f"mask AP {kept['segm/AP']:.3f}, box AP {kept['bbox/AP']:.3f} on val"
    which = f"{kept['kept']}, step {kept['kept_step']}"
    results.report(f"{aps} · {which} · {out / 'model.safetensors'}")


def threshold_line(threshold: float | tuple[float, ...] | None, metrics: Mapping[str, Any]) -> str:
    """Return the line that tells the score threshold of the model and the F1 on val that it was chosen by."""
    if threshold is None:
        return f"score threshold {DEFAULT_DECISION:g}: no result on val was right, so none was chosen"
    values = threshold if isinstance(threshold, tuple) else (threshold,)
    best, default = metrics["decision/F1"], metrics[f"decision/F1_at_{DEFAULT_DECISION:g}"]
    return (
        f"score threshold {', '.join(f'{value:g}' for value in values)} · F1 at mask IoU 0.5 on val: at most "
        f"{best:.3f} with one threshold for all classes, {default:.3f} at {DEFAULT_DECISION:g}"
    )


def summary(results: ResultsFolder, trainer: Trainer) -> dict[str, Any]:
    """What `metrics.json` holds."""
    return {
        **results.kept,
        "seconds": round(results.seconds, 1),
        "steps": trainer.global_step,
        "epochs": len(results.history),
    }
