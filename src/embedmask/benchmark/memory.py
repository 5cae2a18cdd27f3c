"""Peak memory of one run, in a process of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Steps = Mapping[str, Callable[[], None]]


def peaks_in_own_process(prepare: Callable[..., Steps], *args: Any) -> dict[str, float]:
    """The most memory that was held until the end of each step of one run, MB, and what was held `before` it.

    On a CUDA device it is the device's memory that torch has handed out, elsewhere the resident memory of the
    process; empty where the system does not say.

    Args:
        prepare: called in a fresh process with the other arguments, which must be plain values; gives the steps.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, prepare, args).result()


def _measure(prepare: Callable[..., Steps], args: tuple[Any, ...]) -> dict[str, float]:
    steps = prepare(*args)
    _forget_peaks()
    held = {"before": _memory("VmRSS", torch.cuda.memory_allocated)}
    for name, step in steps.items():
        step()
        held[name] = _memory("VmHWM", torch.cuda.max_memory_allocated)
    return {name: bytes_held / 1e6 for name, bytes_held in held.items() if bytes_held is not None}


def _forget_peaks() -> None:
    """What importing and preparing took at most is not the run's."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5")


def _memory(name: str, on_device: Callable[[], int]) -> int | None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return on_device()
    # the resource module's figure would include what the parent process held when it started this one
    status = Path("/proc/self/status")
    found = re.search(
        rf"^{name}:\s+(\d+) kB", status.read_text(encoding="utf-8") if status.is_file() else "", re.M
    )
    return 1024 * int(found[1]) if found else None
