"""Several processes: their number, their start, their ranks and collective operations."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from embedmask.errors import BadInput
from embedmask.structures import Size

T = TypeVar("T")

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")
"""Environment variables by which launchers set the rank, known before the process group exists."""
PATIENCE = timedelta(days=30)
"""Timeout of collective operations; processes with less work wait for the others."""


@dataclass(frozen=True)
class Processes:
    """Number of processes and machines, as Lightning takes them.

    Attributes:
        devices: processes per machine, or a list with the index of a single CUDA device.
        nodes: number of machines.
    """

    devices: int | list[int] = 1
    nodes: int = 1

    @property
    def is_multi_process(self) -> bool:
        """Return whether there is more than one process."""
        return self.nodes > 1 or (isinstance(self.devices, int) and self.devices > 1)


def choose_processes(device: torch.device, devices: int | None, nodes: int) -> Processes:
    """Return the processes to train with. Those of a launcher (torchrun) take precedence over the arguments.

    Args:
        device: `cuda` for all CUDA devices, `cuda:N` for one, or another device type.
        devices: processes per machine; None: one per CUDA device, else one.
        nodes: number of machines.

    Raises:
        BadInput: a number is below 1, or contradicts the launcher or `cuda:N`.
    """
    for name, value in (("--devices", devices), ("--nodes", nodes)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}")
    # torchrun sets WORLD_SIZE to processes per machine x machines
    if distributed.is_available() and distributed.is_torchelastic_launched():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices not in (None, local):
            raise BadInput(
                f"--devices {devices}: torchrun has started {local} processes per machine; omit the option"
            )
        return Processes(local, int(os.environ["WORLD_SIZE"]) // local)
    if device.type == "cuda" and device.index is not None:
        if devices not in (None, 1):
            raise BadInput(f"--devices {devices}: --device {device} is one device; use --device cuda")
        return Processes([device.index], nodes)
    available = torch.cuda.device_count() if device.type == "cuda" else 1
    return Processes(available if devices is None else devices, nodes)


def accelerator(device: torch.device) -> str:
    """Return Lightning's name of a device type."""
    return "gpu" if device.type == "cuda" else device.type


@contextmanager
def launch_processes(device: torch.device, processes: Processes) -> Iterator[torch.device]:
    """Start the processes that no launcher has started and join them in a process group, without training.

    Each one runs the calling script from its beginning, as Lightning starts them. A single process is left alone.

    Args:
        device: device type of every process.

    Yields:
        The device of this process.
    """
    if not processes.is_multi_process:
        yield device
        return
    # Lightning belongs to the extra `train`, which one process does not need
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

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
    """Silence Lightning's tips and its warnings about workers and logging intervals."""
    messages = (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*in eval mode at the start of training.*",
        ".*Trying to infer the `batch_size`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*your dataloader is not resumable.*",  # it is: `TrainValDataModule` stores its position
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


def is_rank_zero() -> bool:
    """Return whether this is rank zero."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


def is_distributed() -> bool:
    """Return whether the process group is initialized."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; (0, 1) without a process group."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def gather(items: list[T]) -> list[T]:
    """Return the items of all processes, in the order of ranks, on every process."""
    if not is_distributed():
        return items
    # the lists may differ in length, so they are pickled: one list per rank
    parts: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def all_reduce_max_size(sizes: Sequence[Sequence[int]], device: torch.device) -> Size:
    """Return the maximum height and the maximum width over the images of all processes.

    Args:
        sizes: `(height, width)` of each image of this process, at least one.
        device: device of this process.
    """
    height, width = map(max, zip(*sizes, strict=True))
    if not is_distributed():
        return height, width
    size = torch.tensor((height, width), device=device)
    distributed.all_reduce(size, distributed.ReduceOp.MAX)
    return int(size[0]), int(size[1])
