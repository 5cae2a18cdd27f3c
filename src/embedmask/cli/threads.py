"""CPU threads: their number, and how long idle OpenMP threads spin."""

from __future__ import annotations

import os

from embedmask.errors import BadInput

OPENMP_SLEEP: dict[str, str] = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""How long an OpenMP thread spins at the end of a parallel loop before it sleeps: iterations for GNU's library (about
0.5 ms), ms for Intel's and LLVM's. Their defaults, about 15 ms and 200 ms, exceed the scheduler's time slice: beside
another job, spinning threads take the processor from the threads that they wait for."""
OPENMP_VARIABLES = (*OPENMP_SLEEP, "OMP_WAIT_POLICY")
"""Environment variables by which users set the waiting of threads themselves."""


def let_threads_sleep() -> None:
    """Set `OPENMP_SLEEP` unless the user has set any of `OPENMP_VARIABLES`; it has no effect once torch is loaded."""
    if not any(name in os.environ for name in OPENMP_VARIABLES):
        os.environ.update(OPENMP_SLEEP)


def use_threads(count: int | None) -> None:
    """Set the number of CPU threads; None keeps PyTorch's choice.

    Raises:
        BadInput: `count` is below 1.
    """
    if count is None:
        return
    if count < 1:
        raise BadInput(f"--threads must be at least 1, got {count}")
    import torch

    torch.set_num_threads(count)
