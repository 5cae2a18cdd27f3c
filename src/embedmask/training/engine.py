"""Lightning's trainer, set up for a recipe."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch import Callback, Trainer
from torch import distributed

from embedmask.config import TrainConfig
from embedmask.errors import BadInput
from embedmask.inference.device import choose_device, choose_precision
from embedmask.training.checkpoints import AtomicCheckpointIO
from embedmask.training.processes import Processes, choose_processes, is_distributed

LIGHTNING_PRECISION: dict[torch.dtype, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
    torch.float16: "16-mixed",
}
PATIENCE = timedelta(days=30)
"""Wait so long for processes that have more to do than this one."""


@dataclass(frozen=True)
class Hardware:
    """Where a run computes.

    Attributes:
        device: of every process.
        dtype: of the convolutions.
        processes: how the work is spread.
    """

    device: torch.device
    dtype: torch.dtype
    processes: Processes

    @classmethod
    def choose(cls, config: TrainConfig, device: str, devices: int | None, nodes: int) -> Hardware:
        """What the user asked for, as far as it is there.

        Raises:
            BadInput: no such device, or one that lacks the precision; an impossible number of processes.
        """
        where = choose_device(device)
        dtype = choose_precision(where, config.precision)
        if dtype == torch.float16 and where.type == "cpu":
            raise BadInput(
                "--precision float16: training on the CPU has bfloat16 and float32; choose one of them"
            )
        return cls(where, dtype, choose_processes(where, devices, nodes))

    @property
    def channels_last(self) -> bool:
        """The layout that fast bfloat16 convolutions want."""
        return self.dtype == torch.bfloat16


def make_trainer(
    config: TrainConfig, hardware: Hardware, callbacks: Sequence[Callback], **changes: Any
) -> Trainer:
    """Lightning's trainer with the recipe's epochs or minutes, precision, accumulation and clipping.

    Args:
        callbacks: all of them.
        changes: further settings of Lightning's, or others in place of these.
    """
    settings: dict[str, Any] = {
        "accelerator": accelerator(hardware.device),
        "devices": hardware.processes.devices,
        "num_nodes": hardware.processes.nodes,
        # every loss reaches every parameter, so DDP need not look for those that one does not
        "strategy": "ddp" if hardware.processes.are_many else "auto",
        "precision": LIGHTNING_PRECISION[hardware.dtype],
        "plugins": [AtomicCheckpointIO()],
        "callbacks": list(callbacks),
        "max_epochs": config.epochs if config.epochs is not None else -1,
        "max_time": None if config.max_minutes is None else timedelta(minutes=config.max_minutes),
        "check_val_every_n_epoch": config.eval_every,
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": config.clip_norm,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 10,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**settings, **changes})


def accelerator(device: torch.device) -> str:
    """What Lightning calls a kind of device."""
    return "gpu" if device.type == "cuda" else device.type


@contextmanager
def joined(device: torch.device, processes: Processes) -> Iterator[torch.device]:
    """Start the processes that no launcher has started, and let all find each other, for work that is no training.

    Args:
        device: the kind of device that each computes on.

    Yields:
        This process's own device.
    """
    strategy = DDPStrategy(timeout=PATIENCE)
    with quiet():
        fabric = Fabric(
            accelerator=accelerator(device),
            devices=processes.devices,
            num_nodes=processes.nodes,
            strategy=strategy,
        )
        fabric.launch()
    try:
        yield fabric.device
    finally:
        if is_distributed():
            distributed.destroy_process_group()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about itself: advice on workers, logging intervals, and its tips."""
    messages = (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*",
        ".*Trying to infer the `batch_size`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*your dataloader is not resumable.*",  # it is, by what `TrainValDataModule` keeps
    )
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in messages:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def told_when_memory_ends(config: TrainConfig) -> Iterator[None]:
    """Say in one line what to lower where the memory of the device does not suffice."""
    try:
        yield
    except RuntimeError as error:
        # the processor's allocator has no error of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise BadInput(
            f"the device's memory does not hold {config.batch_size} images in {config.accumulate} part(s) a step: "
            f"set --train.accumulate {2 * config.accumulate} for half of it, or lower --train.batch_size or the "
            f"images' size in --augment ({str(error).split('. ')[0]})"
        ) from error
