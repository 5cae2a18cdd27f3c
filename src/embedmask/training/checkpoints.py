"""`last.ckpt`, the whole state of a training: when it is written, how, and whether it can be read again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from embedmask.errors import BadInput, TrainingStopped
from embedmask.files import atomic_write

LAST_CHECKPOINT = "last.ckpt"
SECONDS_BETWEEN = 60
"""Epochs that follow each other faster share a checkpoint."""


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt` over and over: within epochs, and at the end of whole ones.

    A run goes on from it as if it had never stopped, so it is only written between optimizer steps.

    Args:
        path: the file.
        minutes: time between two of them within an epoch; None: not by the clock.
        steps: optimizer steps between two of them; None: not by their number.
    """

    def __init__(self, path: Path, *, minutes: float | None, steps: int | None) -> None:
        self.path = path
        self.minutes = minutes
        self.steps = steps
        self._clock = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write, where it is time to, or where the training ends within the epoch."""
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        # the end of an epoch has its own, after the evaluation
        if between_steps and not _is_epoch_whole(trainer) and self._is_due(trainer):
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write. An epoch that was cut short has been written at its last step, where it can go on."""
        if _is_epoch_whole(trainer) and not self._is_too_soon(trainer):
            self._write(trainer, pl_module)

    def _is_too_soon(self, trainer: Trainer) -> bool:
        """Whether a short epoch ends, which is not the last one, soon after a checkpoint that the clock asks for."""
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if is_last or self.steps is not None or self.minutes is None:
            return False
        pause = min(60 * self.minutes, SECONDS_BETWEEN)
        return bool(trainer.strategy.broadcast(time.monotonic() - self._clock < pause))

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.should_stop:
            return True
        if self.steps is not None and trainer.global_step % self.steps == 0:
            return True
        if self.minutes is None:
            return False
        # the clock of the first process counts for all
        return bool(trainer.strategy.broadcast(time.monotonic() - self._clock >= 60 * self.minutes))

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        if not all(bool(value.isfinite().all()) for value in module.parameters()):
            raise TrainingStopped(
                f"step {trainer.global_step}: weights are no longer finite; {self.path.name} stays as it was; "
                "lower --train.lr or set --train.clip_norm"
            )
        trainer.save_checkpoint(self.path)
        self._clock = time.monotonic()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, each whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write by `atomic_write`; `BadInput` where that fails, for example on a full disk."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's own complaint hides what the disk said
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def check_checkpoint(path: Path) -> None:
    """Whole, and made of tensors and plain values alone."""
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(
            f"{path}: cannot be resumed, the file is damaged ({reason}); start a new run"
        ) from None


def _is_epoch_whole(trainer: Trainer) -> bool:
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)
