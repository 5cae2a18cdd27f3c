"""The processor's threads: how many, and that they sleep where they wait."""

from __future__ import annotations

import os

from embedmask.errors import BadInput

CALM: dict[str, str] = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""How long a thread of OpenMP spins at the end of a parallel loop before it sleeps: turns for GNU's library, about
0.5 ms; ms for Intel's and LLVM's. Their own defaults, about 15 ms and 200 ms, are longer than the time slices of the
system: beside another job, threads then spin away the time of those that they wait for."""
CHOSEN = (*CALM, "OMP_WAIT_POLICY")


def let_threads_sleep() -> None:
    """Set `CALM` in the environment, unless the user has chosen; it counts where torch is not loaded yet."""
    if not any(name in os.environ for name in CHOSEN):
        os.environ.update(CALM)


def use_threads(count: int | None) -> None:
    """Compute on so many threads; None: as many as torch takes.

    Raises:
        BadInput: a number below 1.
    """
    if count is None:
        return
    if count < 1:
        raise BadInput(f"--threads must be at least 1, got {count}")
    import torch

    torch.set_num_threads(count)
