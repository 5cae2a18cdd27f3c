"""What a run leaves behind: its results folder, its moving average, its quiet progress bar."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from embedmask.evaluation.coco import CocoEvaluator
from embedmask.files import write_text
from embedmask.training.module import EmbedMaskModule
from embedmask.weights.checkpoint import save

Row = dict[str, float]
BEST_METRIC = "segm/AP"
LAST_CHECKPOINT = "last.ckpt"


class ResultsFolder(Callback):
    """Evaluates val, keeps one row an epoch, and writes metrics and weights into the results folder.

    Files: `metrics.csv` after every epoch; after every evaluation `last.safetensors` and, where `segm/AP`
    improved, `best.safetensors` (the averaged weights, if there is an average).

    Args:
        out: the results folder, it exists.
        annotations: COCO json of val.
        class_names: written into the weights.
        max_detections: per image in evaluation.
        report: takes the one summary line of each epoch.
    """

    def __init__(
        self,
        out: Path,
        annotations: Path,
        class_names: list[str],
        max_detections: int,
        report: Callable[[str], None],
    ) -> None:
        self.out = out
        self.annotations = annotations
        self.class_names = class_names
        self.max_detections = max_detections
        self.report = report
        self.history: list[Row] = []
        self.best: Row = {}
        self.evaluated_step = -1
        self.seconds = 0.0
        self._results: list[dict[str, Any]] = []
        self._metrics: Row = {}
        self._epoch_start = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had never stopped."""
        return {
            "history": self.history,
            "best": self.best,
            "evaluated_step": self.evaluated_step,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Back to the end of the last whole epoch; rows after it are forgotten."""
        self.history = state_dict["history"]
        self.best = state_dict["best"]
        self.evaluated_step = state_dict["evaluated_step"]
        self.seconds = state_dict["seconds"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_start = time.monotonic()

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
        """Compute AP, on every process alike, and save the weights that were just evaluated."""
        evaluator = CocoEvaluator(self.annotations, self.max_detections)
        evaluator.add(gather_results(self._results))
        self._results = []
        self._metrics = evaluator.compute()
        self.evaluated_step = trainer.global_step
        improved = not self.best or _rank(self._metrics) > _rank(self.best)
        if improved:
            self.best = dict(self._metrics)
        for logger in trainer.loggers:
            logger.log_metrics(self._metrics, step=trainer.global_step)
        if trainer.is_global_zero:
            self._save_weights(pl_module, improved)
        if trainer.state.fn != TrainerFn.FITTING:
            self._close_last_row(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One row in metrics.csv, one line on the screen."""
        seconds = time.monotonic() - self._epoch_start
        self.seconds += seconds
        row = epoch_row(trainer, seconds) | self._metrics
        self._metrics = {}
        self.history.append(row)
        self._tell(trainer)

    def _close_last_row(self, trainer: Trainer) -> None:
        """The evaluation after training belongs to the epoch that training ended in."""
        self.history[-1] = self.history[-1] | self._metrics
        self._metrics = {}
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_csv(self.history, self.out / "metrics.csv")
            self.report(summary_line(self.history[-1]))

    def _save_weights(self, pl_module: LightningModule, improved: bool) -> None:
        assert isinstance(pl_module, EmbedMaskModule)
        names = ("last", "best") if improved else ("last",)
        for name in names:
            save(pl_module.model, self.out / f"{name}.safetensors", class_names=self.class_names)


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, used in evaluation and kept at the end.

    The decay rises to `decay` over the first steps, `min(decay, (1 + n) / (10 + n))`: a short run is not held
    back by its random start.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(avg_fn=RisingDecay(decay))


class RisingDecay:
    """`average <- d average + (1 - d) current` with d rising to `decay`."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    @torch.no_grad()
    def __call__(self, average: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        count = float(num_averaged)
        return torch.lerp(average, current, 1 - min(self.decay, (1 + count) / (10 + count)))


class Progress(TQDMProgressBar):
    """Lightning's bar without the version number, which says nothing here."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar: the loss."""
        shown = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in shown.items() if name == "loss"}


def gather_results(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of all processes, on every one of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return results
    parts: list[list[dict[str, Any]]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, results)
    return [result for part in parts for result in part]


def epoch_row(trainer: Trainer, seconds: float) -> Row:
    """Epoch (from 1), step, rate of the last step, seconds, and the mean of every loss over the epoch."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    losses = {
        name.removesuffix("_epoch"): value
        for name, value in metrics.items()
        if name.startswith("loss/") and name.endswith("_epoch")
    }
    head = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": metrics["lr"]}
    return {**head, "seconds": round(seconds, 2), **losses}


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
