"""`last.ckpt`, the full training state: its schedule, atomic writes and validation."""

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
"""Minimum time between checkpoints at the ends of epochs."""
OLDER_KEYS = {"SplitPair": "TrainValDataModule"}
"""Entries of `last.ckpt` in earlier versions: Lightning names them after classes."""


class LastCheckpoint(Checkpoint):
    """Callback that overwrites `last.ckpt` within epochs and at their ends, always between optimizer steps.

    Within an epoch it does so every `minutes` and every `steps` optimizer steps; None: no such interval.
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
        """Write a checkpoint where one is due, or where training ends within the epoch."""
        # the last batch of an epoch is left to `on_train_epoch_end`, which runs after the evaluation
        if ends_step(trainer, batch_idx) and not _is_epoch_complete(trainer) and self._is_due(trainer):
            self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint, unless the epoch was cut short: then its last step has written one."""
        if _is_epoch_complete(trainer) and not self._is_too_soon(trainer):
            self._write(trainer, pl_module)

    def _is_too_soon(self, trainer: Trainer) -> bool:
        """Return whether to skip the checkpoint of an epoch; with `steps` or without `minutes` none is skipped."""
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if is_last or self.steps is not None or self.minutes is None:
            return False
        pause = min(60 * self.minutes, SECONDS_BETWEEN)
        # saving is collective and clocks differ: rank zero decides for all
        return bool(trainer.strategy.broadcast(time.monotonic() - self._clock < pause))

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.should_stop or (self.steps is not None and trainer.global_step % self.steps == 0):
            return True
        if self.minutes is None:
            return False
        # saving is collective and clocks differ: rank zero decides for all
        return bool(trainer.strategy.broadcast(time.monotonic() - self._clock >= 60 * self.minutes))

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        if not all(bool(value.isfinite().all()) for value in module.parameters()):
            raise TrainingStopped(
                f"step {trainer.global_step}: weights are no longer finite; {self.path.name} was not overwritten; "
                "lower --train.lr or set --train.clip_norm"
            )
        trainer.save_checkpoint(self.path)
        self._clock = time.monotonic()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint reader and writer, with atomic writes."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; entries that have another name today are renamed."""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        return {OLDER_KEYS.get(key, key): value for key, value in checkpoint.items()}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint by `atomic_write`.

        Raises:
            BadInput: the file cannot be written, for example on a full disk.
        """
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's zip writer masks the OSError with its own assertion
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def check_checkpoint(path: Path) -> None:
    """Check that a checkpoint is complete and holds only tensors and plain values.

    Raises:
        BadInput: the file is damaged, or unpickling it would run code.
    """
    try:
        # "meta" reads the structure without allocating the tensors
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise BadInput(
            f"{path}: the checkpoint is damaged and cannot be resumed ({reason}); start a new run"
        ) from None


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether an optimizer step ends with this batch, the last of its accumulated parts."""
    # Lightning also steps after the last batch of an epoch, with fewer parts
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or _is_epoch_complete(trainer)


def _is_epoch_complete(trainer: Trainer) -> bool:
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)
