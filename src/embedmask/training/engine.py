"""Lightning trainer and hardware of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from embedmask.config import TrainConfig
from embedmask.device import choose_device, choose_precision
from embedmask.distributed import Processes, accelerator, choose_processes
from embedmask.errors import BadInput
from embedmask.training.checkpoints import AtomicCheckpointIO, ends_step

LIGHTNING_PRECISION: dict[torch.dtype, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}


@dataclass(frozen=True)
class Hardware:
    """Device type of every process, dtype of the convolutions, and number of processes of a run."""

    device: torch.device
    dtype: torch.dtype
    processes: Processes

    @classmethod
    def choose(cls, config: TrainConfig, device: str, devices: int | None, nodes: int) -> Hardware:
        """Return the hardware that the recipe and the options request.

        Raises:
            BadInput: the device does not exist or lacks the precision, or the number of processes is invalid.
        """
        chosen = choose_device(device)
        dtype = choose_precision(chosen, config.precision)
        if dtype == torch.float16 and chosen.type == "cpu":
            raise BadInput("--precision float16: not supported on the CPU; use bfloat16 or float32")
        return cls(chosen, dtype, choose_processes(chosen, devices, nodes))


class TimeLimit(Timer):
    """Callback that ends training after `minutes`, between optimizer steps, where a checkpoint can be written."""

    def __init__(self, minutes: float) -> None:
        super().__init__(timedelta(minutes=minutes))

    @property
    def state_key(self) -> str:
        """Return the name of Lightning's timer, as in checkpoints of earlier versions."""
        return Timer.__qualname__

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock at the end of a step."""
        if ends_step(trainer, batch_idx):
            super().on_train_batch_end(trainer)


def make_trainer(
    config: TrainConfig, hardware: Hardware, callbacks: Sequence[Callback], **changes: Any
) -> Trainer:
    """Build Lightning's trainer for a recipe; `changes` are arguments of `Trainer` to add or replace."""
    limits = [] if config.max_minutes is None else [TimeLimit(config.max_minutes)]
    settings: dict[str, Any] = {
        "accelerator": accelerator(hardware.device),
        "devices": hardware.processes.devices,
        "num_nodes": hardware.processes.nodes,
        # every loss reaches every parameter, so DDP need not search for unused ones
        "strategy": "ddp" if hardware.processes.is_multi_process else "auto",
        "precision": LIGHTNING_PRECISION[hardware.dtype],
        "plugins": [AtomicCheckpointIO()],
        "callbacks": [*callbacks, *limits],
        # -1: no limit, with `max_steps` the callback `StopAfter` ends the training
        "max_epochs": config.epochs if config.epochs is not None else -1,
        "check_val_every_n_epoch": config.eval_every,
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip_norm,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,  # our loaders share the batches themselves
    }
    return Trainer(**{**settings, **changes})


@contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn an out-of-memory error into one line that names the settings to lower.

    Raises:
        BadInput: the device is out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        # the CPU allocator raises a plain RuntimeError
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise BadInput(
            f"out of memory with {config.batch_size} images in {config.accumulate} part(s) per step: set "
            f"--train.accumulate {2 * config.accumulate} to halve it, or lower --train.batch_size or the image size "
            f"in the data section ({str(error).split('. ')[0]})"
        ) from error
