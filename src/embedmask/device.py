"""Choice of device, number format and number of workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from embedmask.config import Precision
from embedmask.errors import BadInput

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
MAX_WORKERS = 8


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of this name; `auto` selects CUDA, else the CPU. Nothing was tested on MPS.

    Raises:
        BadInput: the device does not exist or is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {str(name)!r}: no such device; use auto, cpu, cuda, cuda:N or mps") from None
    is_available = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
    }
    if not is_available.get(device.type, False):
        raise BadInput(f"device {str(name)!r}: not available here; use auto or cpu")
    return device


def choose_precision(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """Return the number format of the convolutions; `auto` selects bfloat16 if `device` is fast at it, else float32.

    Embeddings, distances and losses are computed in float32 in any case.

    Raises:
        BadInput: no such precision.
    """
    if precision != "auto":
        if precision not in DTYPES:
            raise BadInput(f"precision {precision!r}: use auto, {', '.join(DTYPES)}")
        return DTYPES[precision]
    is_fast = False
    if device.type == "cuda":
        # without emulation: cards before Ampere accept bfloat16 but are slower at it than at float32
        is_fast = bool(torch.cuda.is_bf16_supported(including_emulation=False))
    elif device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        # units that multiply bfloat16; the probes are private in torch, so a version may lack one
        probes = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("avx512_bf16", "amx_tile"))
        is_fast = any(probe() for probe in probes if probe is not None)
    return torch.bfloat16 if is_fast else torch.float32


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 convolutions on CUDA in float32: by default torch uses TF32, which keeps 10 of 23 bits."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def choose_workers(requested: int | None) -> int:
    """Return the number of loading processes; None selects one fewer than the available cores, at most 8."""
    if requested is not None:
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, MAX_WORKERS)


def has_int8_units() -> bool:
    """Return whether an x86 processor has units that multiply int8: VNNI or AMX; other processors were not measured."""
    read = getattr(torch.cpu, "get_capabilities", None)
    if read is None:  # older versions of torch
        probes = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("vnni", "amx_tile"))
        return any(probe() for probe in probes if probe is not None)
    return any(read().get(unit, False) for unit in ("avx512_vnni", "avx_vnni", "amx_int8"))
