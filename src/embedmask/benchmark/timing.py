"""Timing of pipelines: interleaved runs, medians and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Mapping
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch

from embedmask.benchmark.pipelines import Pipeline

Run = TypeVar("Run", bound=Hashable)
Times = dict[str, list[float]]
"""Stage, `to_masks` or `whole` -> seconds of each run."""


def time_run(pipeline: Pipeline, device: torch.device) -> dict[str, float]:
    """Return the seconds of each stage of one run, up to boolean masks (`to_masks`) and in total (`whole`)."""
    seconds: dict[str, float] = {}
    for name, stage in pipeline.stages().items():
        begin = time.perf_counter()
        stage()
        # CUDA kernels run asynchronously
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds[name] = time.perf_counter() - begin
    until = dict(zip(seconds, accumulate(seconds.values()), strict=True))
    return {**seconds, "to_masks": until["masks"], "whole": until["results"]}


def interleave(pipelines: Mapping[Run, Pipeline], runs: int, device: torch.device) -> dict[Run, Times]:
    """Time `runs` rounds, each with one run of every pipeline, so that other load affects all pipelines alike."""
    times: dict[Run, Times] = {run: {} for run in pipelines}
    for _ in range(runs):
        for run, pipeline in pipelines.items():
            for stage, seconds in time_run(pipeline, device).items():
                times[run].setdefault(stage, []).append(seconds)
    return times


def medians(times: Times, batch: int) -> dict[str, float]:
    """Return the median of each stage, seconds per image."""
    return {stage: statistics.median(seconds) / batch for stage, seconds in times.items()}


def quartiles(times: Times, batch: int) -> dict[str, list[float]]:
    """Return the first and third quartile of each stage, seconds per image."""
    return {stage: (np.quantile(own, (0.25, 0.75)) / batch).tolist() for stage, own in times.items()}
