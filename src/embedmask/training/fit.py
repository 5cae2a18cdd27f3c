"""Train a recipe on a data set and leave a results folder: what `embedmask train` calls."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from embedmask.config import Recipe, TrainConfig, override
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.files import atomic_write, is_temporary, remove_temporary, write_json
from embedmask.inference.predictor import Predictor
from embedmask.model.detector import Detector
from embedmask.training.batch_norm import join_batch_norms
from embedmask.training.callbacks import MovingAverage, Progress, ResultsFolder, StopAfter
from embedmask.training.checkpoints import LAST_CHECKPOINT, LastCheckpoint, check_checkpoint
from embedmask.training.datamodule import SplitPair
from embedmask.training.engine import Hardware, make_trainer, quiet, told_when_memory_ends
from embedmask.training.module import EmbedMaskModule
from embedmask.training.processes import is_first
from embedmask.training.samples import write_samples
from embedmask.visualize import plot_curves
from embedmask.weights.checkpoint import load_checkpoint

log = logging.getLogger(__name__)

Report = Callable[[str], None]
Splits = TypeVar("Splits", bound=SplitPair)


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
) -> dict[str, float]:
    """Train `recipe` on `data`, evaluate on its val split, and leave everything in `out`.

    The number of classes follows the data set. `out` holds `recipe.yaml`, `metrics.csv` (a row an epoch),
    `metrics.json`, `curves.png` (losses and AP), `samples/` (predictions beside ground truth),
    `model.safetensors` (the best by mask AP, also as `best.safetensors`), `last.safetensors`, `last.ckpt`
    (for `resume`) and TensorBoard logs.

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
        What `metrics.json` holds: the metrics of `model.safetensors` on val, `seconds`, `steps`, `epochs`.

    Raises:
        BadInput: the data, the recipe or the folder cannot be used (then nothing is left behind), or the memory or
            the disk is full.
        TrainingStopped: a loss or a weight is no longer finite; the last checkpoint is kept.
    """
    check_folder(out, resume)
    tell = report if is_first() else lambda line: None
    hardware = Hardware.choose(recipe.train, device, devices, nodes)
    recipe, splits, module = prepare(recipe, data, max_detections, hardware, SplitPair)
    tell(f"{data}: {splits.layout}")
    last = out / LAST_CHECKPOINT
    resumed = resume and last.is_file()
    if not resumed:
        set_first_weights(module.model, recipe.train, tell)
    results = ResultsFolder(
        out,
        recipe,
        CocoEvaluator(splits.val_set.ground_truth, recipe.model.max_detections) if is_first() else None,
        splits.val_set.class_names,
        tell,
    )
    with results_folder(out), quiet(), told_when_memory_ends(recipe.train):
        if is_first() and not resumed:
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
    """The recipe for this data set, the data, and the network with its first random weights.

    Args:
        kind: `SplitPair`, or one that gives less of the data.

    Raises:
        BadInput: the data or the recipe cannot be used.
    """
    seed_everything(recipe.train.seed, workers=True, verbose=False)
    splits = kind(data, recipe)
    recipe = with_classes(recipe, len(splits.train_set.class_names), max_detections)
    module = EmbedMaskModule(recipe, splits.val_set.category_ids, channels_last=hardware.channels_last)
    if hardware.processes.are_many:
        join_batch_norms(module.model)
    return recipe, splits, module


def set_first_weights(model: Detector, config: TrainConfig, tell: Report) -> None:
    """Those that training starts from, where they are not random.

    Raises:
        BadInput: `init` is no model file, or of another backbone.
    """
    if config.init is not None:
        try:
            first = load_checkpoint(config.init).model
        except BadInput as error:
            raise BadInput(f"train.init {error}") from None
        ours, theirs = model.config.backbone, first.config.backbone
        if ours != theirs:
            raise BadInput(
                f"train.init {config.init}: its backbone is {theirs}, the recipe's {ours}; use the same"
            )
        held, wanted = first.state_dict(), model.state_dict()
        fit = {n: value for n, value in held.items() if n in wanted and value.shape == wanted[n].shape}
        model.load_state_dict(fit, strict=False)
        tell(f"starts from {config.init}: {len(fit)} of {len(wanted)} tensors")
    elif config.pretrained:
        model.backbone.load_pretrained()


def check_folder(out: Path, resume: bool) -> None:
    """A run is never overwritten, and only a run can go on; what a killed one has left half written is removed."""
    if not is_first():
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
    return Recipe(model=model, data=recipe.data, train=recipe.train)


def make_run(recipe: Recipe, out: Path, hardware: Hardware, results: ResultsFolder) -> Trainer:
    """The trainer of a whole run, with all that it leaves in `out`."""
    config = recipe.train
    # the results come before the average: they save the averaged weights while these are swapped in
    callbacks: list[Callback] = [results]
    if config.ema_decay is not None:
        callbacks.append(MovingAverage(config.ema_decay))
    if config.max_steps is not None:
        callbacks.append(StopAfter(config.max_steps))
    bar = sys.stdout.isatty()
    if bar:
        callbacks.append(Progress())
    minutes, steps = config.checkpoint_minutes, config.checkpoint_steps
    callbacks.append(LastCheckpoint(out / LAST_CHECKPOINT, minutes=minutes, steps=steps))
    logger = TensorBoardLogger(out, name="", version="tensorboard")
    return make_trainer(config, hardware, callbacks, logger=logger, enable_progress_bar=bar)


@contextmanager
def results_folder(out: Path) -> Iterator[None]:
    """Make `out`; where training fails before its first checkpoint, take it away again."""
    made = is_first() and not out.exists()
    if is_first():  # where another process were faster, nobody would take it away
        out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made and not (out / LAST_CHECKPOINT).exists():
            shutil.rmtree(out, ignore_errors=True)
        raise


def finish(out: Path, results: ResultsFolder, splits: SplitPair, trainer: Trainer) -> None:
    """The best weights under their final name, the metrics, the curves and the sample pictures."""
    with atomic_write(out / "model.safetensors") as temporary:
        shutil.copyfile(out / "best.safetensors", temporary)
    write_json(out / "metrics.json", summary(results, trainer))
    plot_curves(results.history, out / "curves.png")
    predictor = Predictor.load(
        out / "model.safetensors",
        device=trainer.strategy.root_device,
        precision=splits.recipe.train.precision,
    )
    write_samples(predictor, splits.val_set, out / "samples")
    aps = f"mask AP {results.best['segm/AP']:.3f}, box AP {results.best['bbox/AP']:.3f} on val"
    results.report(f"{aps} · {out / 'model.safetensors'}")


def summary(results: ResultsFolder, trainer: Trainer) -> dict[str, Any]:
    """What `metrics.json` holds."""
    return {
        **results.best,
        "seconds": round(results.seconds, 1),
        "steps": trainer.global_step,
        "epochs": len(results.history),
    }
