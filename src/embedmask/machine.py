"""Description of the machine and of the versions that a run was made with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CPU_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16")
"""Processor features that determine the speed of bfloat16."""
PACKAGES = (
    "embedmask",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "numpy",
    "pillow",
    "faster-coco-eval",
    "openvino",
    "onnxruntime",
)
"""Packages on which figures depend."""


def describe_machine(device: torch.device) -> dict[str, Any]:
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
        "memory_gib": _memory_gib(),
        **describe_device(device),
        "python": platform.python_version(),
        **versions,
        "commit": _commit(),
    }


def processor_text(machine: Mapping[str, Any]) -> str:
    """Return the processor of a described machine and its vector units."""
    units = ", ".join(machine["processor_units"]) or "vector units unknown"
    return f"{machine['processor']} ({units})"


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of the process in bytes, on CUDA that of the device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return the name of a device; of a CUDA device also its memory, CUDA, cuDNN and driver."""
    if device.type != "cuda":
        return {"device": device.type}
    driver = Path("/proc/driver/nvidia/version")
    return {
        "device": torch.cuda.get_device_name(device),
        "device_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "driver": _first(r"Module\s+([\d.]+)", driver.read_text(encoding="utf-8"))
        if driver.is_file()
        else None,
    }


def _memory_gib() -> float | None:
    """Return the memory of the machine; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else ""


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with "-dirty" if files have changed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
