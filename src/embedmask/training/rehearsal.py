"""`embedmask train --dry-run`: two real steps and a few pictures of val tell beforehand whether a run will work."""

from __future__ import annotations

import copy
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from embedmask.config import DataConfig, Recipe
from embedmask.data.loader import TrainBatch, collate
from embedmask.data.transforms import TrainTransform
from embedmask.inference.loop import choose_workers
from embedmask.training.callbacks import MovingAverage
from embedmask.training.datamodule import SplitPair
from embedmask.training.engine import Hardware, make_trainer, quiet, told_when_memory_ends
from embedmask.training.fit import Report, check_folder, prepare, set_first_weights
from embedmask.training.processes import is_first
from embedmask.training.samples import spread

NUM_EVALUATED = 4


def rehearse(
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
    """Do all that `train` does, with the same arguments, but for two steps and four pictures, and write nothing.

    The first step has the largest batch that the data can give: of the pictures that have most pixels and most
    objects, at the largest scale. The second has the batch that training begins with.

    Raises:
        BadInput: what would also stop `train`: data, recipe, folder, or the device's memory.
        TrainingStopped: a loss is not finite.
    """
    if out is not None:
        check_folder(out, resume)
    hardware = Hardware.choose(recipe.train, device, devices, nodes)
    recipe, splits, module = prepare(recipe, data, max_detections, hardware, TwoSteps)
    set_first_weights(module.model, recipe.train, report if is_first() else lambda line: None)
    splits.evaluated = spread(len(splits.val_set), NUM_EVALUATED)
    watch = Stopwatch()
    average = [] if recipe.train.ema_decay is None else [MovingAverage(recipe.train.ema_decay)]
    short = replace(recipe.train, epochs=1, max_steps=None, eval_every=1, max_minutes=None)
    with quiet(), told_when_memory_ends(recipe.train):
        trainer = make_trainer(short, hardware, [watch, *average], logger=False, enable_checkpointing=False)
        trainer.fit(module, datamodule=splits)
    estimate = watch.estimate(recipe, splits, trainer)
    if is_first():
        report(f"{data}: {splits.layout}")
        for line in estimate.lines():
            report(line)
    return estimate


@dataclass(frozen=True)
class Estimate:
    """What a rehearsal has found.

    Attributes:
        step_seconds: of one optimizer step.
        picture_seconds: of one picture in an evaluation.
        steps: of the whole run.
        evaluations: of the whole run.
        pictures: of val, in each process.
        minutes_allowed: where the recipe sets a limit.
        peak_bytes: memory of a process, on the device where that has its own; None: not known here.
    """

    step_seconds: float
    picture_seconds: float
    steps: int
    evaluations: int
    pictures: int
    minutes_allowed: float | None
    peak_bytes: int | None

    @property
    def total_seconds(self) -> float:
        """Of the whole run: steps and evaluations, or the time allowed."""
        needed = self.steps * self.step_seconds + self.evaluations * self.pictures * self.picture_seconds
        return min(needed, math.inf if self.minutes_allowed is None else 60 * self.minutes_allowed)

    def lines(self) -> list[str]:
        """For people."""
        memory = "" if self.peak_bytes is None else f" · at most {self.peak_bytes / 2**30:.2g} GiB a process"
        return [
            f"about {self.step_seconds:.2g} s a step, {self.picture_seconds:.2g} s a picture of val{memory}",
            f"the whole takes about {duration(self.total_seconds)}: {self.steps} steps, "
            f"{self.evaluations} evaluations of {self.pictures} pictures · nothing was written",
        ]


class TwoSteps(SplitPair):
    """Of train the largest batch and the first one, of val a few pictures.

    Attributes:
        load_seconds: what it took to load and change the pictures of the first batch.
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
    """Times every batch and picture; the device has finished when the time is taken."""

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.pictures: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Start."""
        self._start = _now(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop."""
        self.batches.append(_now(trainer) - self._start)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start: the time of a picture includes the wait for it."""
        self._start = _now(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop, and start again."""
        self.pictures.append(_now(trainer) - self._start)
        self._start = _now(trainer)

    def estimate(self, recipe: Recipe, splits: TwoSteps, trainer: Trainer) -> Estimate:
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
            picture_seconds=min(self.pictures),
            steps=steps,
            evaluations=math.ceil(epochs / config.eval_every),
            pictures=math.ceil(len(splits.val_set) / trainer.world_size),
            minutes_allowed=config.max_minutes,
            peak_bytes=peak_memory(trainer.strategy.root_device),
        )


def largest_views(config: DataConfig) -> DataConfig:
    """The same views, always at their largest scale."""
    sides = (max(config.short_sides),) if config.short_sides else ()
    return replace(config, short_sides=sides, scale_range=(config.scale_range[1],) * 2)


def peak_memory(device: torch.device) -> int | None:
    """Bytes that the process has had at most: on a CUDA device, else in RAM, where the system says so."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def duration(seconds: float) -> str:
    """Two units, for people: 3 d 4 h, 5 h 6 min, 7 min, 8 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{days} d {hours % 24} h"


def _now(trainer: Trainer) -> float:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.monotonic()


def _as_it_is(batch: Any) -> Any:
    return batch
