"""What a run leaves behind: its results folder, its moving average, its quiet progress bar."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from embedmask.config import DetectorConfig, Recipe
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.evaluation.threshold_curves import Choice, choose_thresholds
from embedmask.files import write_text
from embedmask.training.module import EmbedMaskModule
from embedmask.training.processes import gather
from embedmask.weights.checkpoint import save

Row = dict[str, float]
BEST_METRIC = "segm/AP"


class ResultsFolder(Callback):
    """Evaluates val, keeps one row an epoch, and writes metrics and weights into the results folder.

    Files: `recipe.yaml`; `metrics.csv` after every epoch; after every evaluation `last.safetensors` and, where
    `segm/AP` improved, `best.safetensors` (the averaged weights, if there is an average).

    Args:
        out: the results folder, it exists.
        recipe: of the run.
        evaluator: of val; None in all processes but the first.
        class_names: written into the weights.
        report: takes the one summary line of each epoch.
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
        self.evaluations = 0
        self.evaluated_step = -1
        self.without_better = 0
        self.epoch = RunningMeans()
        self._results: list[tuple[int, list[dict[str, Any]]]] = []
        self._metrics: Row = {}
        self._clock = time.monotonic()

    @property
    def seconds(self) -> float:
        """What the run has taken so far, evaluations in training included."""
        return sum(row["seconds"] for row in self.history)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had never stopped."""
        self._stop_clock()
        return {
            "history": self.history,
            "best": self.best,
            "last": self.last,
            "best_step": self.best_step,
            "evaluations": self.evaluations,
            "evaluated_step": self.evaluated_step,
            "without_better": self.without_better,
            "epoch": vars(self.epoch),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Back to where the checkpoint was written; what came after it is forgotten."""
        self.history = state_dict["history"]
        self.best = state_dict["best"]
        self.last = state_dict.get("last", self.best)  # a run of an earlier version
        self.best_step = state_dict.get("best_step", -1)
        self.evaluations = state_dict.get("evaluations", 0)
        self.evaluated_step = state_dict["evaluated_step"]
        self.without_better = state_dict["without_better"]
        self.epoch = RunningMeans(**state_dict["epoch"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; a run that has stopped early does not begin again."""
        self._clock = time.monotonic()
        if trainer.is_global_zero:
            self.write_recipe()  # a resumed run may have another; that it fits the checkpoint is known by now
        self._stop_early(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the batch to the epoch."""
        self.epoch.add(outputs["losses"], outputs["lr"])

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the results of the evaluation before."""
        self._results = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        *args: Any,
    ) -> None:
        """Collect the batch's results."""
        self._results.extend(outputs["results"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute AP in the first process, tell the others, and save the weights that were just evaluated."""
        by_image = dict(gather(self._results))  # two processes may have seen the same image
        results = [row for rows in by_image.values() for row in rows]
        self._results = []
        self._metrics = trainer.strategy.broadcast(self._measure(results))
        self.evaluated_step = trainer.global_step
        improved = not self.best or _rank(self._metrics) > _rank(self.best)
        self.without_better = 0 if improved else self.without_better + 1
        self.last = dict(self._metrics)
        self.evaluations += 1
        if improved:
            self.best, self.best_step = self.last, trainer.global_step
        _log(trainer, self._metrics)
        if trainer.is_global_zero:
            self._save_weights(pl_module, improved)
        if trainer.state.fn == TrainerFn.FITTING:
            self._stop_early(trainer)
        elif self.epoch.batches:
            self._add_row(trainer)  # training ended within this epoch, in a part of the run before this one
        else:
            self.history[-1] |= self._metrics  # the epoch that training ended in, told already
            if trainer.is_global_zero:
                write_csv(self.history, self.out / "metrics.csv")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One row in metrics.csv, one line on the screen."""
        self._add_row(trainer)

    @property
    def kept(self) -> dict[str, Any]:
        """Metrics of the weights that the run keeps, and which these are."""
        if self.recipe.train.keep == "last":
            return {**self.last, "kept": "last", "kept_step": self.evaluated_step}
        kept = f"best of {self.evaluations} evaluations" if self.evaluations > 1 else "the only evaluated"
        return {**self.best, "kept": kept, "kept_step": self.best_step}

    def write_recipe(self) -> None:
        """The whole recipe, every field, as YAML that `Recipe.from_yaml` takes back."""
        write_text(self.out / "recipe.yaml", yaml.safe_dump(self.recipe.to_dict(), sort_keys=False))

    def _add_row(self, trainer: Trainer) -> None:
        self._stop_clock()
        means = self.epoch.means()
        _log(trainer, {f"epoch_{name}": value for name, value in means.items()})
        head = {"epoch": len(self.history) + 1, "step": trainer.global_step, "lr": self.epoch.lr}
        self.history.append({**head, "seconds": round(self.epoch.seconds, 2), **means, **self._metrics})
        self.epoch = RunningMeans()
        self._metrics = {}
        self._tell(trainer)

    def _stop_clock(self) -> None:
        now = time.monotonic()
        self.epoch.seconds += now - self._clock
        self._clock = now

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

    def _tell(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_csv(self.history, self.out / "metrics.csv")
            self.report(summary_line(self.history[-1]))

    def _save_weights(self, pl_module: LightningModule, improved: bool) -> None:
        assert isinstance(pl_module, EmbedMaskModule)
        model = pl_module.model
        config = self._with_threshold(model.config)
        for name in ("last", "best") if improved else ("last",):
            save(model, self.out / f"{name}.safetensors", class_names=self.class_names, config=config)

    def _with_threshold(self, config: DetectorConfig) -> DetectorConfig:
        """Return the config with the threshold that is best on val, unless the recipe sets one."""
        if self.choice is None or self.recipe.model.decision_threshold is not None:
            return config
        return replace(config, decision_threshold=self.choice.threshold)


@dataclass
class RunningMeans:
    """An epoch so far, in plain values, which a checkpoint holds: so its row covers all of it after a resume."""

    losses: Row = field(default_factory=dict)
    batches: int = 0
    lr: float = 0.0
    seconds: float = 0.0

    def add(self, losses: Row, lr: float) -> None:
        """One more batch; the rate of the last one is kept."""
        self.losses = {name: self.losses.get(name, 0.0) + value for name, value in losses.items()}
        self.batches += 1
        self.lr = lr

    def means(self) -> Row:
        """`loss/NAME` -> mean over the batches."""
        return {f"loss/{name}": value / self.batches for name, value in self.losses.items()}


class StopAfter(Callback):
    """Ends training after so many steps. (Lightning's own limit begins an empty epoch where a run is resumed.)"""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is over does not begin again."""
        self._look(trainer)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Look whether it was the last step."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.steps


class EvaluationPause(Callback):
    """Delay evaluations that `eval_every` asks for until enough time has passed since the last one.

    The evaluation at the end of the training is not affected: `fit` runs it where the last weights have none.

    Args:
        minutes: least time between two evaluations, and from the start to the first one.
        every: epochs between evaluations.
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
    """Exponential moving average of the weights, used in evaluation and kept at the end.

    The decay rises to `decay` over the first steps, `min(decay, (1 + n) / (10 + n))`: a short run is not held
    back by its random start.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=RisingDecay(decay))


class RisingDecay:
    """`average <- d average + (1 - d) current` with d rising to `decay`, for all tensors of a kind at once."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, averages: list[Tensor], current: list[Tensor], num: Tensor | int) -> None:
        """In place; counters, which have no average, become the newest."""
        if averages[0].is_floating_point():
            share = 1 - min(self.decay, (1 + float(num)) / (10 + float(num)))
            torch._foreach_lerp_(averages, current, share)
        else:
            torch._foreach_copy_(averages, current)


class Progress(TQDMProgressBar):
    """Lightning's bar without the version number, which says nothing here."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar: the loss."""
        shown = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in shown.items() if name == "loss"}


def _log(trainer: Trainer, values: Row) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)


def summary_line(row: Row) -> str:
    """One epoch in one line: loss, its terms, AP where it was evaluated, seconds."""
    terms = ", ".join(
        f"{name[5:]} {value:.3f}"
        for name, value in row.items()
        if name.startswith("loss/") and name != "loss/total"
    )
    aps = ", ".join(
        f"{label} AP {100 * row[key]:.1f}"
        for label, key in (("mask", "segm/AP"), ("box", "bbox/AP"))
        if key in row
    )
    parts = [
        f"epoch {row['epoch']:.0f}",
        f"step {row['step']:.0f}",
        f"loss {row.get('loss/total', float('nan')):.3f} ({terms})",
    ]
    return " · ".join([*parts, *([aps] if aps else []), f"{row['seconds']:.0f} s"])


def write_csv(rows: list[Row], path: Path) -> None:
    """One line a row, the columns in the order in which they first appear; a missing value stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def _short(value: float) -> str:
    """Six digits; whole numbers whole."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _rank(metrics: Row) -> float:
    """What the best weights are chosen by; a val split without objects has no AP."""
    value = metrics[BEST_METRIC]
    return -1.0 if math.isnan(value) else value
