"""Timing of pipelines: interleaved runs, medians and quartiles, and the rate of the processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch

from embedmask.benchmark.pipelines import Pipeline
from embedmask.machine import describe_machine

Run = TypeVar("Run", bound=Hashable)
Times = dict[str, list[float]]
"""Stage, `to_masks` or `whole` -> seconds of each run."""
MATRIX_SIDES, MATRIX_RUNS = (256, 1024), 10
"""Sides of the matrices whose product measures the rate of the processor, and number of products."""
MATRIX_SECONDS = 0.01
"""Longest time of a small product whose format is also measured with large matrices."""


@dataclass
class Measured:
    """Times of one pipeline.

    Attributes:
        wall: seconds on the clock, which include waiting for other work on the machine.
        cpu: CPU seconds of all threads of this process, which do not; on a CUDA device, those of the host.
    """

    wall: Times = field(default_factory=dict)
    cpu: Times = field(default_factory=dict)


def time_run(pipeline: Pipeline, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of each stage of one run, up to boolean masks (`to_masks`) and in total (`whole`).

    Returns:
        Seconds on the clock, and CPU seconds.
    """
    wall: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for name, stage in pipeline.stages().items():
        begin, cpu_begin = time.perf_counter(), time.process_time()
        stage()
        # CUDA kernels run asynchronously
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        wall[name], cpu[name] = time.perf_counter() - begin, time.process_time() - cpu_begin
    return _with_sums(wall), _with_sums(cpu)


def _with_sums(seconds: dict[str, float]) -> dict[str, float]:
    until = dict(zip(seconds, accumulate(seconds.values()), strict=True))
    return {**seconds, "to_masks": until["masks"], "whole": until["results"]}


def interleave(pipelines: Mapping[Run, Pipeline], runs: int, device: torch.device) -> dict[Run, Measured]:
    """Time `runs` rounds, each with one run of every pipeline, so that other load affects all pipelines alike."""
    times = {run: Measured() for run in pipelines}
    for _ in range(runs):
        for run, pipeline in pipelines.items():
            for kind, seconds in zip(
                (times[run].wall, times[run].cpu), time_run(pipeline, device), strict=True
            ):
                for stage, value in seconds.items():
                    kind.setdefault(stage, []).append(value)
    return times


def medians(times: Times, batch: int) -> dict[str, float]:
    """Return the median of each stage, seconds per image."""
    return {stage: statistics.median(seconds) / batch for stage, seconds in times.items()}


def quartiles(times: Times, batch: int) -> dict[str, list[float]]:
    """Return the first and third quartile of each stage, seconds per image."""
    return {stage: (np.quantile(seconds, (0.25, 0.75)) / batch).tolist() for stage, seconds in times.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """Return the machine as `describe_machine` does, and on a CPU its `matrix_gflops`."""
    rates = matrix_gflops() if device.type == "cpu" else {}
    return {**describe_machine(device), "matrix_gflops": rates}


def matrix_gflops() -> dict[str, float]:
    """Measure products of square matrices on the CPU: 10^9 operations per CPU second of a thread, by number format.

    The median of `MATRIX_RUNS` after a first one counts: the fastest depends on pauses of other work on the processor,
    and varied by a factor of three in int8. Larger matrices are faster; a format whose small product takes longer than
    `MATRIX_SECONDS` is not native to the processor, and would take minutes with them. Formats that this version of
    torch cannot multiply are left out.
    """
    matrix = torch.randn(MATRIX_SIDES[-1], MATRIX_SIDES[-1], generator=torch.Generator().manual_seed(0))
    formats: dict[str, tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]] = {
        "float32": (matrix, lambda x: x @ x),
        "bfloat16": (matrix.bfloat16(), lambda x: x @ x),
        "int8": ((matrix * 40).to(torch.int8), lambda x: torch._int_mm(x, x)),
    }
    rates = {}
    for name, (whole, product) in formats.items():
        for side in MATRIX_SIDES:
            try:
                seconds = _median_seconds(product, whole[:side, :side].contiguous())
            except (AttributeError, NotImplementedError, RuntimeError):
                break
            rates[name] = 2 * side**3 / seconds / 1e9
            if seconds > MATRIX_SECONDS:
                break
    return rates


def _median_seconds(product: Callable[[torch.Tensor], torch.Tensor], matrix: torch.Tensor) -> float:
    seconds = []
    for _ in range(MATRIX_RUNS + 1):
        begin = time.process_time()
        product(matrix)
        seconds.append(time.process_time() - begin)
    # a clock of coarse ticks may read 0
    return max(statistics.median(seconds[1:]), 1e-4)
