"""Choice of device and number format."""

from __future__ import annotations

import pytest
import torch

from embedmask.device import choose_device, choose_precision, full_float32
from embedmask.errors import BadInput

CPU = torch.device("cpu")


def test_choose_device_by_name() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device(CPU) == CPU
    assert choose_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "meta"])
def test_raises_on_missing_device(name: str) -> None:
    with pytest.raises(BadInput, match="device"):
        choose_device(name)


def test_auto_prefers_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(BadInput, match="cuda:2"):
        choose_device("cuda:2")


def test_auto_does_not_select_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == CPU
    assert choose_device("mps") == torch.device("mps")


def test_float32_on_cuda_is_not_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
        with full_float32(torch.device("cuda")):
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32 == before
        with full_float32(CPU):
            assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_precision_by_name(name: str) -> None:
    assert choose_precision(CPU, name) == getattr(torch, name)  # type: ignore[arg-type]


def test_unknown_precision() -> None:
    with pytest.raises(BadInput, match="use auto, float32"):
        choose_precision(CPU, "half")  # type: ignore[arg-type]


@pytest.mark.parametrize("units", [False, True])
def test_auto_precision_on_cpu(monkeypatch: pytest.MonkeyPatch, units: bool) -> None:
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: units, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert choose_precision(CPU) == (torch.bfloat16 if units else torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision(CPU) == torch.float32


def test_auto_precision_without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert choose_precision(CPU) == torch.float32


@pytest.mark.parametrize("native", [False, True])
def test_auto_precision_on_cuda(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native
    )
    assert choose_precision(torch.device("cuda")) == (torch.bfloat16 if native else torch.float32)
    assert choose_precision(torch.device("mps")) == torch.float32
