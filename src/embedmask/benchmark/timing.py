"""Timing of pipelines: interleaved runs, medians and quartiles, and a description of the machine."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Hashable, Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from embedmask.benchmark.pipelines import Pipeline

Run = TypeVar("Run", bound=Hashable)
Times = dict[str, list[float]]
"""Stage, `to_masks` or `whole` -> seconds of each run."""
CPU_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
"""Processor features that determine the speed of bfloat16."""
PACKAGES = ("embedmask", "torch", "torchvision", "openvino")


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


def machine(device: torch.device) -> dict[str, Any]:
    """Return processor, device, threads and versions, without host or user names."""
    path = Path("/proc/cpuinfo")
    cpu = path.read_text(encoding="utf-8") if path.is_file() else ""
    units = set(_first(r"^flags\s*:(.*)", cpu).split())
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": _first(r"^model name\s*:\s*(.*)", cpu) or platform.machine(),
        "processor_units": [unit for unit in CPU_UNITS if unit in units],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        **versions,
        "commit": _commit(),
    }


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with "-dirty" if files have changed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
