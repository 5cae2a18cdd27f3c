"""Step log of a training: `steps.csv`, and a line of progress every minute without a terminal."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from embedmask.files import write_text
from embedmask.machine import peak_memory
from embedmask.training.checkpoints import ends_step

Row = dict[str, float]
STEPS_FILE = "steps.csv"
LINE_SECONDS = 60.0
"""Minimum time between two lines of progress."""


class StepLog(Callback):
    """Callback that writes a CSV row per optimizer step and reports progress every minute, on rank zero.

    Columns: step, epoch, lr, the losses (means over accumulated parts), images per second of all processes, seconds
    of the step including data loading, and peak memory of the process in GiB.

    Args:
        path: CSV file; a resumed run keeps the rows up to its checkpoint.
        report: receives lines of progress; None: no lines.
        steps: number of steps of the run; None: it ends with its last epoch.
    """

    def __init__(self, path: Path, report: Callable[[str], None] | None, steps: int | None = None) -> None:
        self.path = path
        self.steps = steps
        self.report = report
        self._file: TextIO | None = None
        self._parts: list[Row] = []
        self._images = 0
        self._columns: Sequence[str] = ()
        self._clock = self._reported = time.monotonic()
        self._start: tuple[int, float] = (0, self._clock)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file and keep the rows of the steps before a resumed run's checkpoint."""
        self._clock = self._reported = time.monotonic()
        self._start = (trainer.global_step, self._clock)
        if not trainer.is_global_zero:
            return
        rows = []
        # a new run starts an empty file; a resumed one drops rows of steps that it will repeat
        if trainer.global_step and self.path.is_file():
            with self.path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.reader(file) if row]
        head = rows[:1]
        self._columns = head[0] if head else ()
        # a full disk or a power cut may have left an incomplete row
        whole = (row for row in rows[1:] if len(row) == len(self._columns))
        rows = [row for row in whole if int(row[0]) <= trainer.global_step]
        write_text(self.path, "".join(",".join(row) + "\n" for row in (*head, *rows)))
        # line-buffered, so that the file can be followed and a killed run loses no complete row
        self._file = self.path.open("a", encoding="utf-8", newline="", buffering=1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row of a complete step."""
        if self._file is None:
            return
        self._parts.append(outputs["losses"])
        self._images += outputs["images"]
        if not ends_step(trainer, batch_idx):
            return
        now = time.monotonic()
        seconds, self._clock = now - self._clock, now
        means = {f"loss/{key}": sum(p[key] for p in self._parts) / len(self._parts) for key in self._parts[0]}
        images, self._parts, self._images = self._images, [], 0
        memory = peak_memory(pl_module.device)
        row: Row = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch + 1,
            "lr": outputs["lr"],
            **means,
            "images_per_second": images / max(seconds, 1e-9),
            "seconds": seconds,
            "peak_gib": float("nan") if memory is None else memory / 2**30,
        }
        self._write(row)
        if self.report is not None and now - self._reported >= LINE_SECONDS:
            self._reported = now
            self.report(self._line(row, trainer, now))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the file."""
        self.on_train_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again, so that evaluations do not count in the seconds of a step."""
        self._clock = time.monotonic()

    def _write(self, row: Row) -> None:
        assert self._file is not None
        if not self._columns:
            self._columns = list(row)
            self._file.write(",".join(self._columns) + "\n")
        values = (row.get(name, float("nan")) for name in self._columns)
        self._file.write(",".join(f"{v}" if isinstance(v, int) else f"{v:.6g}" for v in values) + "\n")

    def _line(self, row: Row, trainer: Trainer, now: float) -> str:
        # without an end by epochs, Lightning's estimate is infinite
        steps = self.steps or int(trainer.estimated_stepping_batches)
        first, start = self._start
        rate = (now - start) / max(row["step"] - first, 1)  # seconds per step, evaluations included
        return (
            f"step {row['step']:.0f} of {steps} · {loss_text(row)} · lr {row['lr']:.3g} · "
            f"{row['images_per_second']:.3g} images/s · {row['peak_gib']:.2g} GiB · "
            f"{duration(rate * max(steps - row['step'], 0))} left"
        )


def step_speed(path: Path) -> Row:
    """Return the speed and memory of a run from its `steps.csv`.

    Returns:
        `seconds_per_step` and `images_per_second`, medians over all steps, data loading included; `peak_gib`, the
        highest memory of the process. Empty without a step.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return {}
    seconds, images, memory = (
        [float(row[name]) for row in rows] for name in ("seconds", "images_per_second", "peak_gib")
    )
    return {
        "seconds_per_step": statistics.median(seconds),
        "images_per_second": statistics.median(images),
        "peak_gib": max(memory),
    }


def loss_text(row: Row) -> str:
    """Return the total loss of a row and its terms as text."""
    terms = {name.removeprefix("loss/"): value for name, value in row.items() if name.startswith("loss/")}
    total = terms.pop("total", float("nan"))
    return f"loss {total:.3f} ({', '.join(f'{name} {value:.3f}' for name, value in terms.items())})"


def duration(seconds: float) -> str:
    """Return a duration as text in at most two units: 3 d 4 h, 5 h 6 min, 7 min, 8 s."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{days} d {hours % 24} h"
