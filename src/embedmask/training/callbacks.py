"""Training callbacks: the results folder, the end of training, the moving average and the progress bar."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from safetensors import safe_open
from torch import Tensor

from embedmask.config import Recipe
from embedmask.distributed import gather
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.threshold_curves import Choice, choose_thresholds
from embedmask.files import write_text
from embedmask.training.module import EmbedMaskModule
from embedmask.training.step_log import Row, loss_text
from embedmask.weights.checkpoint import reading_safetensors, save

BEST_METRIC = "segm/AP"
BEST_FILE = "best.safetensors"
EVALUATION = "evaluation"
"""Entry in the metadata of `BEST_FILE`: its step and its metrics, as JSON."""
STORED = ("history", "best", "last", "best_step", "evaluated_step", "without_better")
"""Attributes of `ResultsFolder` that a checkpoint stores."""


class ResultsFolder(Callback):
    """Callback that evaluates val and writes metrics and weights to the results folder.

    It writes `recipe.yaml` at the start, `metrics.csv` after every epoch, `last.safetensors` after every evaluation
    and `best.safetensors` whenever `segm/AP` improved. With a moving average these are the averaged weights. The
    metrics of `best.safetensors` are in its metadata, since it may be newer than the checkpoint of a resumed run.

    Args:
        out: existing folder.
        evaluator: evaluator of val on rank zero; None on other ranks.
        class_names: class names to store in the weights files.
        report: receives the summary line of each epoch.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        evaluator: CocoEvaluator | None,
        class_names: list[str],
        report: Callable[[str], None],
    ) -> None:
        self.out = out
        self.recipe = recipe
        self.evaluator = evaluator
        self.class_names = class_names
        self.report = report
        self.history: list[Row] = []
        self.best: Row = {}
        self.choice: Choice | None = None
        self.last: Row = {}
        self.best_step = -1
        self.evaluated_step = -1
        self.without_better = 0
        self.epoch = RunningMeans()
        self.trained = False
        """Whether this process has trained a step."""
        self._results: list[tuple[int, list[dict[str, Any]]]] = []
        self._metrics: Row = {}
        self._clock = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the duration of all finished epochs, including their evaluations."""
        return sum(row["seconds"] for row in self.history)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        self._stop_clock()
        # plain values only, since checkpoints are read with weights_only=True
        return {**{name: getattr(self, name) for name in STORED}, "epoch": vars(self.epoch)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint, and the metrics of `best.safetensors`.

        Raises:
            BadInput: `best.safetensors` is damaged.
        """
        # checkpoints of earlier versions lack some of the values
        state_dict = {"last": state_dict["best"], **state_dict}
        vars(self).update((name, state_dict[name]) for name in STORED if name in state_dict)
        self.epoch = RunningMeans(**state_dict["epoch"])
        stored = read_evaluation(self.out / BEST_FILE)
        if stored is not None:
            self.best, self.best_step = stored["metrics"], stored["step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and write the recipe, which a resumed run may have changed."""
        self._clock = time.monotonic()
        if trainer.is_global_zero:
            self.write_recipe()
        self._stop_early(trainer)  # a resumed run may have stopped early before

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the losses of the batch to the means of the epoch."""
        self.trained = True
        self.epoch.add(outputs["losses"], outputs["lr"])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the results of the previous evaluation."""
        self._results = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        *args: Any,
    ) -> None:
        """Collect the results of the batch."""
        self._results.extend(outputs["results"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute AP on rank zero, broadcast it, and save the evaluated weights."""
        # with fewer images than processes some evaluate the same image: the dict drops duplicates
        by_image = dict(gather(self._results))
        results = [row for rows in by_image.values() for row in rows]
        self._results = []
        # `_measure` returns no metrics on other ranks, which need them to stop early together
        self._metrics = trainer.strategy.broadcast(self._measure(results))
        self.evaluated_step = trainer.global_step
        improved = not self.best or _rank(self._metrics) > _rank(self.best)
        self.without_better = 0 if self._exceeds_history() else self.without_better + 1
        self.last = dict(self._metrics)
        if improved:
            self.best, self.best_step = self.last, trainer.global_step
        _log(trainer, self._metrics)
        if trainer.is_global_zero:
            self._save_weights(pl_module, improved)
        # an evaluation within training is followed by `on_train_epoch_end`, which adds the row
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_early(trainer)
        elif self.epoch.batches:
            self._add_row(trainer)  # the checkpoint was written at the last step, within an epoch
        else:
            self.history[-1] |= self._metrics  # training ended without an evaluation: complete the last row
            if trainer.is_global_zero:
                write_csv(self.history, self.out / "metrics.csv")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append a row to `metrics.csv` and report the summary line."""
        self._add_row(trainer)

    @property
    def kept(self) -> dict[str, Any]:
        """Return the metrics of the weights that `train.keep` selects, with their origin (`kept`, `kept_step`)."""
        if self.recipe.train.keep == "last":
            return {**self.last, "kept": "last", "kept_step": self.evaluated_step}
        # an evaluation within an epoch is not in the history of a resumed run
        steps = {self.best_step, *(row["step"] for row in self._evaluated_rows())}
        kept = f"best of {len(steps)} evaluations" if len(steps) > 1 else "the only evaluated"
        return {**self.best, "kept": kept, "kept_step": self.best_step}

    def write_recipe(self) -> None:
        """Write `recipe.yaml` with every field of the recipe."""
        write_text(self.out / "recipe.yaml", yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))

    def _add_row(self, trainer: Trainer) -> None:
        self._stop_clock()
        means = self.epoch.means()
        _log(trainer, {f"epoch_{name}": value for name, value in means.items()})
        head = {"epoch": len(self.history) + 1, "step": trainer.global_step, "lr": self.epoch.lr}
        self.history.append({**head, "seconds": round(self.epoch.seconds, 2), **means, **self._metrics})
        self.epoch = RunningMeans()
        self._metrics = {}
        if trainer.is_global_zero:
            write_csv(self.history, self.out / "metrics.csv")
            self.report(summary_line(self.history[-1]))

    def _stop_clock(self) -> None:
        now = time.monotonic()
        self.epoch.seconds += now - self._clock
        self._clock = now

    def _evaluated_rows(self) -> list[Row]:
        return [row for row in self.history if BEST_METRIC in row]

    def _exceeds_history(self) -> bool:
        """Return whether the last evaluation is better than those before it.

        `best` may be newer than the checkpoint: to compare with it would stop a resumed run too early.
        """
        return all(_rank(self._metrics) > _rank(row) for row in self._evaluated_rows())

    def _stop_early(self, trainer: Trainer) -> None:
        patience = self.recipe.train.early_stop
        if patience is not None and self.without_better >= patience:
            trainer.should_stop = True

    def _measure(self, results: list[dict[str, Any]]) -> Row:
        if self.evaluator is None:
            return {}
        self.evaluator.reset()
        self.evaluator.add(results)
        self.choice = choose_thresholds(self.evaluator, per_class=self.recipe.train.class_thresholds)
        return self.evaluator.compute() | self.choice.metrics()

    def _save_weights(self, pl_module: LightningModule, improved: bool) -> None:
        assert isinstance(pl_module, EmbedMaskModule)
        model = pl_module.model
        config = model.config
        # a threshold that the recipe sets takes precedence over the best one on val
        if self.choice is not None and self.recipe.model.default_score_threshold is None:
            config = replace(config, default_score_threshold=self.choice.threshold)
        save(model, self.out / "last.safetensors", class_names=self.class_names, config=config)
        if improved:
            evaluation = {EVALUATION: json.dumps({"step": self.best_step, "metrics": self.best})}
            names = self.class_names
            save(model, self.out / BEST_FILE, class_names=names, config=config, metadata=evaluation)


@dataclass
class RunningMeans:
    """Sums over the batches of the current epoch, as plain values that a checkpoint can store."""

    losses: Row = field(default_factory=dict)
    batches: int = 0
    lr: float = 0.0
    seconds: float = 0.0

    def add(self, losses: Row, lr: float) -> None:
        """Add the losses of a batch and replace the learning rate."""
        self.losses = {name: self.losses.get(name, 0.0) + value for name, value in losses.items()}
        self.batches += 1
        self.lr = lr

    def means(self) -> Row:
        """Return the mean of each loss over the batches, by `loss/NAME`."""
        return {f"loss/{name}": value / self.batches for name, value in self.losses.items()}


class StopAfter(Callback):
    """Callback that ends training after `steps` optimizer steps.

    Lightning's `max_steps` would start an empty epoch when a finished run is resumed.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once where a resumed run has finished already."""
        self._stop_if_done(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop after the last step."""
        self._stop_if_done(trainer)

    def _stop_if_done(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps


class EvaluationPause(Callback):
    """Delay evaluations, due each `every` epochs, until `minutes` have passed since the last one, or since the start.

    The evaluation at the end of the training is not affected: `fit` runs it if the last weights were not evaluated.
    """

    def __init__(self, minutes: float, every: int) -> None:
        self.minutes = minutes
        self.every = every
        self._clock = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock."""
        self._clock = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Decide at the last batch of an epoch, before Lightning looks at the interval."""
        if trainer.is_last_batch:
            # the clock of rank zero decides for all processes
            due = trainer.strategy.broadcast(time.monotonic() - self._clock >= 60 * self.minutes)
            # an interval longer than the epochs so far lets Lightning skip this one
            trainer.check_val_every_n_epoch = self.every if due else trainer.current_epoch + 2


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which is evaluated and saved in their place.

    In update n the decay is `min(decay, (1 + n) / (10 + n))`, so that short runs do not average in their
    initial weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=partial(update_average, decay))


@torch.no_grad()
def update_average(decay: float, averages: list[Tensor], current: list[Tensor], num: Tensor | int) -> None:
    """Update the averages of all tensors of a dtype in place, with a rising decay; integer buffers are copied."""
    if averages[0].is_floating_point():
        decay = min(decay, (1 + float(num)) / (10 + float(num)))
        # lerp(average, current, 1 - d) = d average + (1 - d) current, one kernel for all tensors
        torch._foreach_lerp_(averages, current, 1 - decay)
    else:
        torch._foreach_copy_(averages, current)


class Progress(TQDMProgressBar):
    """Lightning's progress bar with the loss alone, without the version number."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the metrics shown beside the bar."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name == "loss"}


def _log(trainer: Trainer, values: Row) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


def summary_line(row: Row) -> str:
    """Return one line for an epoch: the loss and its terms, AP if it was evaluated, and seconds."""
    aps = ", ".join(
        f"{label} AP {100 * row[key]:.1f}"
        for label, key in (("mask", "segm/AP"), ("box", "bbox/AP"))
        if key in row
    )
    parts = [f"epoch {row['epoch']:.0f}", f"step {row['step']:.0f}", loss_text(row)]
    return " · ".join([*parts, *([aps] if aps else []), f"{row['seconds']:.0f} s"])


def write_csv(rows: list[Row], path: Path) -> None:
    """Write rows as CSV, with columns in order of first appearance and missing values left empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: value if isinstance(value, int) else f"{value:.6g}" for name, value in row.items()}
        )
    write_text(path, text.getvalue())


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """Return the evaluation in the metadata of a weights file; None without one, as in files of earlier versions.

    Raises:
        BadInput: the file is damaged.
    """
    if not path.is_file():
        return None
    with reading_safetensors(path), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(EVALUATION)
    # `math.nan`, as in new metrics: dicts with another nan differ
    return None if text is None else dict(json.loads(text, parse_constant=lambda name: math.nan))


def _rank(metrics: Row) -> float:
    """Return the metric that the best weights are chosen by; it is nan where val has no objects."""
    value = metrics[BEST_METRIC]
    return -1.0 if math.isnan(value) else value
