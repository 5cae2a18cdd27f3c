"""`embedmask train --dry-run`: two real steps and a few images of val tell beforehand whether a run will work."""

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
from embedmask.errors import BadInput
from embedmask.files import temporary_folder
from embedmask.inference.loop import choose_workers
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.engine import Hardware, explain_out_of_memory, quiet
from embedmask.training.fit import (
    Report,
    check_folder,
    finish,
    make_results,
    make_run,
    prepare,
    set_first_weights,
    with_settings,
)
from embedmask.training.identity import check_identity, write_identity
from embedmask.training.module import EmbedMaskModule
from embedmask.training.processes import is_rank_zero
from embedmask.training.samples import spread
from embedmask.training.step_log import duration, peak_memory

NUM_EVALUATED = 4


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
    """Do all that `train` does, with the same arguments, but for two steps and four images of val, and leave nothing.

    The first step has the largest batch that the data can give: of the images that have most pixels and most
    objects, at the largest scale. The second has the batch that training begins with. Evaluation and all that a run
    leaves are made too, in a folder on the disk of `out` that is removed again.

    Raises:
        BadInput: what would also stop `train`: data, recipe, folder, the device's memory, or room on the disk.
        TrainingStopped: a loss is not finite.
    """
    if out is not None:
        check_folder(out, resume)
    hardware = Hardware.choose(recipe.train, device, devices, nodes)
    tell = report if is_rank_zero() else lambda line: None
    recipe = with_settings(recipe, out if resume else None, tell)
    recipe, splits, module = prepare(recipe, data, max_detections, hardware, DryRunDataModule)
    if out is not None and resume and is_rank_zero():
        check_identity(out, recipe, splits)
    set_first_weights(module.model, recipe.train, tell)
    estimate = try_run(recipe, splits, module, hardware, out)
    if is_rank_zero():
        for line in (*splits.report_lines(data), *estimate.lines()):
            report(line)
    return estimate


def try_run(
    recipe: Recipe, splits: DryRunDataModule, module: EmbedMaskModule, hardware: Hardware, out: Path | None
) -> Estimate:
    """Train, evaluate and write as `train` does, in a temporary folder on the disk of `out`, None: any."""
    splits.evaluated = spread(len(splits.val_set), NUM_EVALUATED)
    short = replace(recipe.train, epochs=1, max_steps=None, eval_every=1, max_minutes=None, early_stop=None)
    # an untrained network is sure of nothing: without a threshold there is something to evaluate
    module.recipe = replace(recipe, model=replace(recipe.model, score_threshold=0.0))
    watch = Stopwatch()
    near = temporary_folder(out or Path(gettempdir())) if is_rank_zero() else nullcontext(Path(gettempdir()))
    with quiet(), explain_out_of_memory(recipe.train), near as folder:
        results = make_results(folder, recipe, splits, lambda line: None)
        if is_rank_zero():
            write_identity(folder, recipe, splits)
        trainer = make_run(replace(recipe, train=short), folder, hardware, results, watch)
        trainer.fit(module, datamodule=splits)
        estimate = watch.estimate(recipe, splits, trainer)
        if trainer.is_global_zero:
            finish(folder, results, splits, trainer)
            check_room(folder, out)
    return estimate


def check_room(folder: Path, out: Path | None) -> None:
    """Check that the disk of `out` holds what lies in `folder`, and the largest file twice while it is replaced.

    Raises:
        BadInput: it does not.
    """
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    needed, free = sum(sizes) + max(sizes), sum(sizes) + shutil.disk_usage(folder).free
    if out is not None and free < needed:
        raise BadInput(
            f"{out}: its disk has room for {free / 1e6:.0f} MB, the run needs {needed / 1e6:.0f} MB; "
            "make room on it, or choose another"
        )


@dataclass(frozen=True)
class Estimate:
    """What a rehearsal has found.

    Attributes:
        step_seconds: of one optimizer step.
        image_seconds: of one image in an evaluation.
        steps: of the whole run.
        evaluations: of the whole run.
        images: of val, in each process.
        minutes_allowed: where the recipe sets a limit.
        peak_bytes: memory of a process, on the device where that has its own; None: not known here.
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
        """Of the whole run: steps and evaluations, or the time allowed."""
        needed = self.steps * self.step_seconds + self.evaluations * self.images * self.image_seconds
        return min(needed, math.inf if self.minutes_allowed is None else 60 * self.minutes_allowed)

    def lines(self) -> list[str]:
        """For people."""
        memory = "" if self.peak_bytes is None else f" · at most {self.peak_bytes / 2**30:.2g} GiB a process"
        return [
            f"about {self.step_seconds:.2g} s a step, {self.image_seconds:.2g} s an image of val{memory}",
            f"the whole takes about {duration(self.total_seconds)}: {self.steps} steps, "
            f"{self.evaluations} evaluations of {self.images} images · nothing was written",
        ]


class DryRunDataModule(TrainValDataModule):
    """Of train the largest batch and the first one, of val a few images.

    Attributes:
        load_seconds: what it took to load and change the images of the first batch.
        batches: of a whole epoch.
    """

    load_seconds = 0.0
    batches = 0

    def train_dataloader(self) -> DataLoader[TrainBatch]:
        """The two batches, each as often as a step has parts, already loaded."""
        loader: Any = super().train_dataloader()
        self.batches = len(loader)
        draws = next(iter(loader.batch_sampler))
        start = time.monotonic()
        first = collate([loader.dataset[draw] for draw in draws])
        self.load_seconds = time.monotonic() - start
        parts = self.recipe.train.accumulate
        batches: Any = [self._largest(len(draws))] * parts + [first] * parts
        return DataLoader(batches, batch_size=None, collate_fn=_as_it_is)

    def _largest(self, count: int) -> TrainBatch:
        whole = copy.copy(self.train_set)
        whole.transform = TrainTransform(largest_views(self.recipe.data))
        by_pixels = sorted(range(len(whole)), key=lambda item: -math.prod(whole.sizes[item]))
        by_objects = sorted(range(len(whole)), key=lambda item: -len(whole.annotations(item)))
        items = [
            order[place] for place in range(count) for order in (by_pixels, by_objects) if place < len(whole)
        ]
        chosen = (items * count)[:count]
        return collate([whole.sample(item, torch.Generator().manual_seed(item)) for item in chosen])


class Stopwatch(Callback):
    """Times every batch and image; the device has finished when the time is taken."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.images: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start."""
        self._start = _now(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop."""
        self.batches.append(_now(trainer) - self._start)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start: the time of an image includes the wait for it."""
        self._start = _now(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop, and start again."""
        self.images.append(_now(trainer) - self._start)
        self._start = _now(trainer)

    def estimate(self, recipe: Recipe, splits: DryRunDataModule, trainer: Trainer) -> Estimate:
        """The whole run, from what was timed; firsts of a kind are left out, they warm up."""
        config = recipe.train
        computing = sum(self.batches[-config.accumulate :])
        workers = choose_workers(config.workers)
        loading = config.accumulate * splits.load_seconds
        steps_an_epoch = math.ceil(splits.batches / config.accumulate)
        steps = config.max_steps or steps_an_epoch * (config.epochs or 0)
        epochs = math.ceil(steps / steps_an_epoch)
        return Estimate(
            # workers load while the device computes
            step_seconds=max(computing, loading / workers) if workers else computing + loading,
            image_seconds=min(self.images),
            steps=steps,
            evaluations=math.ceil(epochs / config.eval_every),
            images=math.ceil(len(splits.val_set) / trainer.world_size),
            minutes_allowed=config.max_minutes,
            peak_bytes=peak_memory(trainer.strategy.root_device),
        )


def largest_views(config: DataConfig) -> DataConfig:
    """The same views, always at their largest scale."""
    sides = (max(config.short_sides),) if config.short_sides else ()
    return replace(config, short_sides=sides, scale_range=(config.scale_range[1],) * 2)


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.monotonic()


def _as_it_is(batch: Any) -> Any:
    return batch
