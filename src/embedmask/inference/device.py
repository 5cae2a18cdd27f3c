"""Where to compute and in which number format."""

from __future__ import annotations

import torch

from embedmask.config import Precision
from embedmask.errors import BadInput

DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: CUDA, else MPS, else the CPU; otherwise the device of that name.

    Raises:
        BadInput: no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"device {str(name)!r}: no such device; use auto, cpu, cuda, cuda:N or mps") from None
    if not _is_available(device):
        raise BadInput(f"device {str(name)!r}: not available here; use auto or cpu")
    return device


def choose_precision(device: torch.device, precision: Precision = "auto") -> torch.dtype:
    """The number format of the convolutions; `auto`: bfloat16 where `device` is fast at it, else float32.

    Embeddings, distances, losses and what is built from them stay float32 whatever is chosen.

    Raises:
        BadInput: no such precision.
    """
    if precision == "auto":
        return torch.bfloat16 if _is_fast_at_bfloat16(device) else torch.float32
    if precision not in DTYPES:
        raise BadInput(f"precision {precision!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[precision]


def _is_available(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _is_fast_at_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, at once; no timing."""
    if device.type == "cuda":
        # without emulation: cards before Ampere accept bfloat16 but are slower at it than at float32
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return _has_bfloat16_units()
    return False


def _has_bfloat16_units() -> bool:
    # private in torch, so a version that lacks one simply does not count it
    probes = (getattr(torch.cpu, f"_is_{unit}_supported", None) for unit in ("avx512_bf16", "amx_tile"))
    return any(probe() for probe in probes if probe is not None)
