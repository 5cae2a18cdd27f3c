"""Several processes: how many, which one this is, and what the others hold."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from embedmask.errors import BadInput
from embedmask.structures import Size

T = TypeVar("T")

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")
"""What launchers tell a process about its rank, before the processes have found each other."""


@dataclass(frozen=True)
class Processes:
    """How the work is spread.

    Attributes:
        devices: processes of each machine; or the number of the one CUDA card to use, in a list.
        nodes: machines.
    """

    devices: int | list[int] = 1
    nodes: int = 1

    @property
    def are_many(self) -> bool:
        """Whether there may be more than one."""
        return self.nodes > 1 or (isinstance(self.devices, int) and self.devices > 1)


def choose_processes(device: torch.device, devices: int | None, nodes: int) -> Processes:
    """How the work is spread over `device`s.

    A launcher (torchrun) has decided already, and what it says holds. Else Lightning starts what is missing.

    Args:
        device: `cuda` means every card, `cuda:N` that one; on the CPU a process is what `devices` counts.
        devices: processes of each machine; None: one, or one a card.
        nodes: machines.

    Raises:
        BadInput: a number below 1, or one that contradicts the launcher or `cuda:N`.
    """
    for name, value in (("--devices", devices), ("--nodes", nodes)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1, got {value}")
    if distributed.is_available() and distributed.is_torchelastic_launched():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices not in (None, local):
            raise BadInput(
                f"--devices {devices}: torchrun has started {local} a machine; leave the option out"
            )
        return Processes(local, int(os.environ["WORLD_SIZE"]) // local)
    if device.type == "cuda" and device.index is not None:
        if devices not in (None, 1):
            raise BadInput(f"--devices {devices}: --device {device} is one card; use --device cuda")
        return Processes([device.index], nodes)
    every = torch.cuda.device_count() if device.type == "cuda" else 1
    return Processes(every if devices is None else devices, nodes)


def is_rank_zero() -> bool:
    """Whether this is the process that writes and speaks."""
    return all(os.environ.get(name, "0") == "0" for name in RANK_VARIABLES)


def is_distributed() -> bool:
    """Whether the processes have found each other; False in a run of one."""
    return distributed.is_available() and distributed.is_initialized()


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process among those that have found each other, and how many they are."""
    return (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)


def gather(items: list[T]) -> list[T]:
    """The items of all processes, on every one of them."""
    if not is_distributed():
        return items
    parts: list[list[T]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def all_reduce_max_size(sizes: Sequence[Sequence[int]], device: torch.device) -> Size:
    """Return the largest height and the largest width that any process has.

    Args:
        sizes: `(height, width)` of this process's images, one at least.
        device: of this process.
    """
    height, width = map(max, zip(*sizes, strict=True))
    if not is_distributed():
        return height, width
    both = torch.tensor((height, width), device=device)
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    return int(both[0]), int(both[1])
