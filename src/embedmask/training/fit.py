"""Train a recipe on a data set and leave a results folder: what `embedmask train` calls."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from embedmask.config import ModelConfig, Recipe, override
from embedmask.errors import BadInput
from embedmask.files import atomic_write, write_json, write_text
from embedmask.inference.device import choose_device, choose_precision
from embedmask.inference.predictor import Predictor
from embedmask.training.callbacks import LAST_CHECKPOINT, MovingAverage, Progress, ResultsFolder
from embedmask.training.datamodule import SplitPair
from embedmask.training.module import EmbedMaskModule
from embedmask.training.samples import write_samples
from embedmask.visualize import plot_curves

log = logging.getLogger(__name__)

LIGHTNING_PRECISION: dict[torch.dtype, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    max_detections: int | None = None,
    device: str = "auto",
    report: Callable[[str], None] = log.info,
) -> dict[str, float]:
    """Train `recipe` on `data`, evaluate on its val split, and leave everything in `out`.

    The number of classes follows the data set. `out` holds `recipe.yaml`, `metrics.csv` (a row an epoch),
    `metrics.json`, `curves.png` (losses and AP), `samples/` (predictions beside ground truth),
    `model.safetensors` (the best by mask AP, also as `best.safetensors`), `last.safetensors`, `last.ckpt`
    (for `resume`) and TensorBoard logs.

    Args:
        data: folder with the splits `train` and `val`.
        out: results folder; new or empty, unless `resume`.
        resume: go on from the end of the last whole epoch in `out`.
        max_detections: per image, in evaluation and in the model that is kept; None: as the recipe says.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        report: takes one line a time: a summary of each epoch, and the result.

    Returns:
        What `metrics.json` holds: the metrics of `model.safetensors` on val, `seconds`, `steps`, `epochs`.

    Raises:
        BadInput: the data, the recipe or the folder cannot be used; nothing is left behind.
    """
    check_folder(out, resume)
    seed_everything(recipe.train.seed, workers=True, verbose=False)
    splits = SplitPair(data, recipe)
    report(f"{data}: {splits.train_set.layout}")
    recipe = with_classes(recipe, len(splits.train_set.class_names), max_detections)
    where = choose_device(device)
    dtype = choose_precision(where, recipe.train.precision)
    module = EmbedMaskModule(
        recipe,
        splits.val_set.category_ids,
        channels_last=dtype == torch.bfloat16,
    )
    if recipe.train.pretrained and not resume:
        module.model.load_pretrained_backbone()
    results = ResultsFolder(
        out,
        splits.val_set.annotations_file,
        splits.val_set.class_names,
        recipe.model.max_detections,
        report,
    )
    with results_folder(out):
        write_recipe(recipe, out / "recipe.yaml")
        with quiet():
            trainer = make_trainer(recipe, out, where, dtype, results)
            trainer.fit(
                module,
                datamodule=splits,
                ckpt_path=out / LAST_CHECKPOINT if resume else None,
                weights_only=True,
            )
            if results.evaluated_step != trainer.global_step:
                trainer.validate(module, datamodule=splits, verbose=False)
        if trainer.is_global_zero:
            finish(out, results, splits, trainer)
    return summary(results, trainer)


def check_folder(out: Path, resume: bool) -> None:
    """A run is never overwritten, and only a run that left `last.ckpt` can go on."""
    if resume:
        check_checkpoint(out / LAST_CHECKPOINT)
    elif os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("NODE_RANK", "0") != "0":
        return  # the first process has looked, and may have begun to write
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(
            f"{out}: already holds something; choose a new folder, or continue the run with --resume"
        )


def check_checkpoint(path: Path) -> None:
    """Whole, and made of tensors and plain values alone."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file, so there is no run to resume; leave out --resume to start one")
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(
            f"{path}: cannot be resumed, the file is damaged ({reason}); start a new run"
        ) from None


def with_classes(recipe: Recipe, num_classes: int, max_detections: int | None) -> Recipe:
    """The recipe for a data set of `num_classes` classes, and so many detections an image."""
    changes = {"num_classes": num_classes}
    if max_detections is not None:
        changes["max_detections"] = max_detections
    model: ModelConfig = override(recipe.model, changes, where="model")
    return Recipe(model=model, data=recipe.data, train=recipe.train)


def make_trainer(
    recipe: Recipe, out: Path, device: torch.device, dtype: torch.dtype, results: ResultsFolder
) -> Trainer:
    """Lightning's trainer with the recipe's length, precision and callbacks."""
    config = recipe.train
    # The results come before the average: they save the averaged weights while these are swapped in
    callbacks: list[Callback] = [results]
    if config.ema_decay is not None:
        callbacks.append(MovingAverage(config.ema_decay))
    bar = sys.stdout.isatty()
    if bar:
        callbacks.append(Progress())
    callbacks.append(last_checkpoint(out))
    return Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=devices_of(device),
        precision=LIGHTNING_PRECISION[dtype],
        logger=TensorBoardLogger(out, name="", version="tensorboard"),
        callbacks=callbacks,
        max_epochs=config.epochs if config.epochs is not None else -1,
        max_steps=config.max_steps if config.max_steps is not None else -1,
        max_time=None if config.max_minutes is None else timedelta(minutes=config.max_minutes),
        check_val_every_n_epoch=config.eval_every,
        gradient_clip_val=config.clip_norm,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=bar,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def devices_of(device: torch.device) -> list[int] | int | str:
    """All CUDA devices for `cuda`, one for `cuda:N` and everything else."""
    if device.type != "cuda":
        return 1
    return "auto" if device.index is None else [device.index]


def last_checkpoint(out: Path) -> ModelCheckpoint:
    """The whole state of the training, written over at the end of every epoch."""
    return ModelCheckpoint(
        dirpath=out,
        filename=LAST_CHECKPOINT.removesuffix(".ckpt"),
        save_on_train_epoch_end=True,
        every_n_epochs=1,
        enable_version_counter=False,
    )


@contextmanager
def results_folder(out: Path) -> Iterator[None]:
    """Make `out`; where training fails before its first checkpoint, take it away again."""
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if made and not (out / LAST_CHECKPOINT).exists():
            shutil.rmtree(out, ignore_errors=True)
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about itself: advice on workers, logging intervals, and its tips."""
    messages = (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*",
        ".*Trying to infer the `batch_size`.*",
        ".*isinstance.treespec, LeafSpec.*",
    )
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in messages:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """The whole recipe, every field, as YAML that `Recipe.from_yaml` takes back."""
    write_text(path, yaml.safe_dump(recipe.to_dict(), sort_keys=False))


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
