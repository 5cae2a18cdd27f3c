"""Peak memory of one run, measured in a separate process."""

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
    """Return the peak memory up to the end of each step of one run, and the memory in use `before` it, MB.

    On a CUDA device this is the memory allocated by torch on the device; otherwise the resident memory of the process.
    Empty on systems that do not report it.

    Args:
        prepare: called in a new process with the other arguments; returns the steps. Both must be picklable.
        args: arguments of `prepare`.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure_peaks, prepare, args).result()


def measure_peaks(prepare: Callable[..., Steps], args: tuple[Any, ...]) -> dict[str, float]:
    """Return the same as `peaks_in_own_process`, measured in this process."""
    steps = prepare(*args)
    # reset the peaks: imports and preparation are not part of the run
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only; 5 resets VmHWM
        Path("/proc/self/clear_refs").write_text("5")
    peaks = {"before": _memory("VmRSS", torch.cuda.memory_allocated)}
    for name, step in steps.items():
        step()
        peaks[name] = _memory("VmHWM", torch.cuda.max_memory_allocated)
    return {name: peak / 1e6 for name, peak in peaks.items() if peak is not None}


def _memory(field: str, on_device: Callable[[], int]) -> int | None:
    """Return the device memory where CUDA is in use, otherwise a field of /proc/self/status, bytes."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return on_device()
    # not the resource module: its ru_maxrss includes the memory of the parent at the time of the fork
    status = Path("/proc/self/status")
    text = status.read_text(encoding="utf-8") if status.is_file() else ""
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * int(match[1]) if match else None
