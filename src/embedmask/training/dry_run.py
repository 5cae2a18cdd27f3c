"""`embedmask train --dry-run`: two training steps and a short evaluation, to check a run before it starts."""

from __future__ import annotations

import copy
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from embedmask.config import DataConfig, Recipe
from embedmask.data.loader import TrainBatch, collate
from embedmask.data.transforms import TrainTransform
from embedmask.device import choose_workers
from embedmask.distributed import is_rank_zero, quiet
from embedmask.errors import BadInput
from embedmask.files import temporary_folder
from embedmask.machine import peak_memory
from embedmask.samples import evenly_spaced
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.engine import Hardware, explain_out_of_memory
from embedmask.training.fit import (
    Report,
    check_folder,
    initialize_weights,
    make_results,
    make_run,
    prepare,
    rank_zero_only,
    recipe_of,
    with_required_settings,
    write_final_results,
)
from embedmask.training.identity import check_identity, write_identity
from embedmask.training.module import EmbedMaskModule
from embedmask.training.step_log import duration

NUM_EVALUATED = 4
"""Number of val images that a dry run evaluates."""


def run_dry(
    recipe: Recipe,
    data: Path,
    out: Path | None = None,
    *,
    resume: bool = False,
    max_detections: int | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
    report: Report,
) -> Estimate:
    """Run `train` with the same arguments for two steps and four val images, and leave no files.

    The first step has the largest batch: the images with most pixels and most objects, at the largest scale. The
    second has the first batch of the training. Evaluation and all output files are included, in a temporary folder
    on the disk of `out`.

    Returns:
        The estimated time and memory of the whole run.

    Raises:
        BadInput: `train` would also fail: on the data, recipe, folder, device memory or disk space.
        TrainingStopped: a loss is not finite.
    """
    if out is not None:
        check_folder(out, resume)
    hardware = Hardware.choose(recipe.train, device, devices, nodes)
    report = rank_zero_only(report)
    recipe = with_required_settings(recipe, recipe_of(out) if resume and out is not None else None, report)
    recipe, splits, module = prepare(recipe, data, max_detections, hardware, DryRunDataModule)
    if out is not None and resume and is_rank_zero():
        check_identity(out, recipe, splits)
    initialize_weights(module.model, recipe.train, report)
    estimate = try_run(recipe, splits, module, hardware, out)
    for line in (*splits.report_lines(data), *estimate.lines()):
        report(line)
    return estimate


def try_run(
    recipe: Recipe, splits: DryRunDataModule, module: EmbedMaskModule, hardware: Hardware, out: Path | None
) -> Estimate:
    """Train, evaluate and write all output to a temporary folder on the disk of `out`, or anywhere if it is None."""
    splits.evaluated = evenly_spaced(len(splits.val_set), NUM_EVALUATED)
    short = replace(
        recipe.train,
        epochs=1,
        max_steps=None,
        eval_every=1,
        eval_minutes=None,
        max_minutes=None,
        early_stop=None,
    )
    # the scores of an untrained network are low: without a threshold there are detections to evaluate
    module.recipe = replace(recipe, model=replace(recipe.model, candidate_threshold=0.0))
    watch = Stopwatch()
    temporary = (
        temporary_folder(out or Path(gettempdir())) if is_rank_zero() else nullcontext(Path(gettempdir()))
    )
    with quiet(), explain_out_of_memory(recipe.train), temporary as folder:
        results = make_results(folder, recipe, splits, lambda line: None)
        if is_rank_zero():
            write_identity(folder, recipe, splits)
        trainer = make_run(replace(recipe, train=short), folder, hardware, results, watch)
        trainer.fit(module, datamodule=splits)
        estimate = watch.estimate(recipe, splits, trainer)
        if trainer.is_global_zero:
            write_final_results(folder, results, splits, trainer)
            check_disk_space(folder, out)
    return estimate


def check_disk_space(folder: Path, out: Path | None) -> None:
    """Check that the disk of `out` has room for the files of `folder`.

    Raises:
        BadInput: there is not enough room.
    """
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    # an atomic write holds the old and the new file: the largest one counts twice. `folder` lies on the same disk and
    # is removed before the run, so its files count as free
    needed, free = sum(sizes) + max(sizes), sum(sizes) + shutil.disk_usage(folder).free
    if out is not None and free < needed:
        raise BadInput(
            f"{out}: the disk has {free / 1e6:.0f} MB free, the run needs {needed / 1e6:.0f} MB; free some space or "
            "choose another disk"
        )


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run, estimated by a dry run.

    Attributes:
        step_seconds: seconds per optimizer step.
        image_seconds: seconds per image in an evaluation.
        steps: number of optimizer steps of the run.
        evaluations: number of evaluations of the run.
        images: number of val images per process.
        minutes_allowed: time limit of the recipe; None: no limit.
        peak_bytes: peak memory of a process, on CUDA that of the device; None: unknown on this system.
    """

    step_seconds: float
    image_seconds: float
    steps: int
    evaluations: int
    images: int
    minutes_allowed: float | None
    peak_bytes: int | None

    @property
    def total_seconds(self) -> float:
        """Return the duration of the run, at most the time limit."""
        needed = self.steps * self.step_seconds + self.evaluations * self.images * self.image_seconds
        return min(needed, math.inf if self.minutes_allowed is None else 60 * self.minutes_allowed)

    def lines(self) -> list[str]:
        """Return the estimate as lines of text."""
        memory = (
            "" if self.peak_bytes is None else f" · at most {self.peak_bytes / 2**30:.2g} GiB per process"
        )
        return [
            f"about {self.step_seconds:.2g} s per step, {self.image_seconds:.2g} s per val image{memory}",
            f"the run takes about {duration(self.total_seconds)}: {self.steps} steps, "
            f"{self.evaluations} evaluations of {self.images} images · nothing was written",
        ]


class DryRunDataModule(TrainValDataModule):
    """Data module of a dry run: the largest and the first batch of train, and a few images of val.

    Attributes:
        load_seconds: seconds to load and augment the first batch.
        batches: number of batches in an epoch of the real run.
    """

    load_seconds = 0.0
    batches = 0

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """Return a loader of the two batches, each repeated for the accumulated parts of a step."""
        loader: Any = super().train_dataloader()
        self.batches = len(loader)
        indices = next(iter(loader.batch_sampler))
        start = time.monotonic()
        first = collate([loader.dataset[index] for index in indices])
        self.load_seconds = time.monotonic() - start
        parts = self.recipe.train.accumulate
        batches: Any = [self._largest_batch(len(indices))] * parts + [first] * parts
        # the batches are collated already; without `collate_fn` the loader would convert them
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)

    def _largest_batch(self, size: int) -> TrainBatch:
        dataset = copy.copy(self.train_set)
        dataset.transform = TrainTransform(
            at_largest_scale(self.recipe.data), self.recipe.model.image_rounding
        )
        by_pixels = sorted(range(len(dataset)), key=lambda item: -math.prod(dataset.sizes[item]))
        by_objects = sorted(range(len(dataset)), key=lambda item: -len(dataset.annotations(item)))
        # in turn the next of either order; a data set smaller than the batch is repeated
        items = [item for pair in zip(by_pixels[:size], by_objects[:size], strict=True) for item in pair]
        chosen = (items * size)[:size]
        return collate([dataset.sample(item, torch.Generator().manual_seed(item)) for item in chosen])


class Stopwatch(Callback):
    """Callback that times every training batch and val image, with the device synchronized."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.images: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start the clock."""
        self._start = _now(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Record the time of the batch."""
        self.batches.append(_now(trainer) - self._start)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; the time of an image includes loading it."""
        self._start = _now(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Record the time of the image."""
        self.images.append(_now(trainer) - self._start)
        self._start = _now(trainer)

    def estimate(self, recipe: Recipe, splits: DryRunDataModule, trainer: Trainer) -> Estimate:
        """Return the estimate of the whole run from the recorded times."""
        config = recipe.train
        # the second step alone, since the first one warms up
        computing = sum(self.batches[-config.accumulate :])
        workers = choose_workers(config.workers)
        loading = config.accumulate * splits.load_seconds
        steps_per_epoch = math.ceil(splits.batches / config.accumulate)
        steps = config.max_steps or steps_per_epoch * (config.epochs or 0)
        evaluations = math.ceil(math.ceil(steps / steps_per_epoch) / config.eval_every)
        # worker processes load while the device computes
        step_seconds = max(computing, loading / workers) if workers else computing + loading
        if config.eval_minutes is not None:
            evaluations = min(evaluations, 1 + int(steps * step_seconds / (60 * config.eval_minutes)))
        return Estimate(
            step_seconds=step_seconds,
            image_seconds=min(self.images),  # the others include the warm-up
            steps=steps,
            evaluations=evaluations,
            images=math.ceil(len(splits.val_set) / trainer.world_size),
            minutes_allowed=config.max_minutes,
            peak_bytes=peak_memory(trainer.strategy.root_device),
        )


def at_largest_scale(config: DataConfig) -> DataConfig:
    """Return the augmentation with its random scale fixed at the maximum."""
    sides = (max(config.short_sides),) if config.short_sides else ()
    return replace(config, short_sides=sides, scale_range=(config.scale_range[1],) * 2)


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.monotonic()
