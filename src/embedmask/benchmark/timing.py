"""Clocks: runs of several sides in turn, their medians, and the machine that they ran on."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from embedmask.benchmark.pipelines import Pipeline

Times = dict[str, list[float]]
"""Stage, `whole`, or `to_masks` -> seconds of each run."""
CPU_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
"""What the processor may have that decides how fast bfloat16 is."""
PACKAGES = ("embedmask", "torch", "torchvision", "openvino")


def time_run(side: Pipeline, device: torch.device) -> dict[str, float]:
    """Seconds of each stage of one run, of all up to boolean masks (`to_masks`) and of all (`whole`)."""
    seconds: dict[str, float] = {}
    for name, stage in side.stages().items():
        begin = time.perf_counter()
        stage()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds[name] = time.perf_counter() - begin
    until = dict(zip(seconds, accumulate(seconds.values()), strict=True))
    return {**seconds, "to_masks": until["masks"], "whole": until["results"]}


def interleave(sides: Mapping[str, Pipeline], runs: int, device: torch.device) -> dict[str, Times]:
    """Every side once, then every side again: what else the machine does meets all of them alike."""
    times: dict[str, Times] = {name: {} for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            for stage, seconds in time_run(side, device).items():
                times[name].setdefault(stage, []).append(seconds)
    return times


def medians(times: Times, batch: int) -> dict[str, float]:
    """Of each stage, seconds an image."""
    return {stage: statistics.median(seconds) / batch for stage, seconds in times.items()}


def quartiles(times: Times, batch: int) -> dict[str, list[float]]:
    """The first and the third of each stage, seconds an image."""

    def ends(seconds: list[float]) -> list[float]:
        # a single run has no spread
        twice = seconds if len(seconds) > 1 else seconds * 2
        low, _, high = statistics.quantiles(twice, n=4, method="inclusive")
        return [low / batch, high / batch]

    return {stage: ends(seconds) for stage, seconds in times.items()}


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, device, threads and versions; no names."""
    cpu = _cpu_info()
    units = set(_first(r"^flags\s*:(.*)", cpu).split())
    return {
        "processor": _first(r"^model name\s*:\s*(.*)", cpu) or platform.machine(),
        "processor_units": [unit for unit in CPU_UNITS if unit in units],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "commit": _commit(),
    }


def _cpu_info() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this package is run from, marked where files have been changed since."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
