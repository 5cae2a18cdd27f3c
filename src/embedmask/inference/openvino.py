"""The network converted to OpenVINO, which is kept on the disk: the conversion takes longer than a hundred images."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from embedmask.config import model_to_dict
from embedmask.errors import BadInput
from embedmask.files import atomic_write
from embedmask.inference.fused import Maps, Trunk
from embedmask.model.embedmask import EmbedMask

FORMAT = 1
"""Counts up with what a cached file holds: a change of the trunk's code is not seen in its name otherwise."""
DIGEST_BYTES = hashlib.sha256().digest_size
TRACED_SIZE, PROBE_SIZE = (256, 256), (160, 192)
PROBE_TOLERANCE = 1e-2
"""Largest difference from the network in float32, in the largest value of a map; rounding makes 1e-5."""


def openvino_trunk(model: EmbedMask, dtype: torch.dtype) -> Callable[[Tensor], Maps]:
    """What `Trunk.forward` computes, for frames of any size, by OpenVINO on the CPU.

    The first conversion of a model is kept in `cache_folder()`, for these weights, format, processor and version.

    Args:
        model: on the CPU; stays as it is.
        dtype: of convolutions and what lies between them; the maps that come out are float32.

    Raises:
        BadInput: OpenVINO is missing, cannot compute in `dtype`, or cannot convert the backbone.
    """
    library = _library()
    if model.mean.device.type != "cpu":
        raise BadInput("engine 'openvino' runs on the CPU; choose device cpu, or engine torch or compile")
    core = library.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float16: "f16"}.get(dtype, "f32"),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # several processes on one machine would all be pinned to the same cores
        "ENABLE_CPU_PINNING": False,
    }
    machine = core.get_property("CPU", "FULL_DEVICE_NAME")
    path = cache_folder() / f"{_key(model, str(dtype), machine, library.__version__)}.openvino"
    compiled = _read(core, path, properties)
    if compiled is None:
        trunk = Trunk(model, torch.float32, portable=True)
        network = _convert(library, trunk)
        _compare(core, network, trunk, model.config.backbone)
        compiled = core.compile_model(network, "CPU", properties)
        _write(compiled, path)
    return _runner(compiled)


def cache_folder() -> Path:
    """Where converted networks are kept: EMBEDMASK_CACHE, else `embedmask` in the user's cache folder."""
    named = os.environ.get("EMBEDMASK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "embedmask"


class _Flat(nn.Module):
    """A trunk that gives its maps in one row, as OpenVINO has it."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels, logits, box_features = self.trunk(images)
        return pixels, *logits, *box_features


class _Request(threading.local):
    """Each thread has its own buffers."""

    def __init__(self, compiled: Any) -> None:
        self.request = compiled.create_infer_request()


def _runner(compiled: Any) -> Callable[[Tensor], Maps]:
    own = _Request(compiled)

    def run(images: Tensor) -> Maps:
        """The maps lie in the request's buffers: they hold until its next run."""
        results = own.request.infer([images.contiguous().numpy()], share_inputs=True, share_outputs=True)
        pixels, *maps = [torch.from_numpy(results[index]) for index in range(len(results))]
        return pixels, maps[: len(maps) // 2], maps[len(maps) // 2 :]

    return run


def _library() -> Any:
    try:
        import openvino  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise BadInput("engine 'openvino' needs OpenVINO; pip install 'embedmask[export]'") from None
    return openvino


def _key(model: EmbedMask, *others: str) -> str:
    """Differs wherever the converted network would."""
    digest = hashlib.sha256(json.dumps([FORMAT, model_to_dict(model.config), *others]).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _convert(library: Any, trunk: Trunk) -> Any:
    with warnings.catch_warnings(), torch.inference_mode():
        # the tracer is deprecated, and warns of each size that it takes for fixed
        warnings.simplefilter("ignore")
        return library.convert_model(_Flat(trunk), example_input=torch.zeros(1, 3, *TRACED_SIZE))


def _compare(core: Any, network: Any, trunk: Trunk, backbone: str) -> None:
    """Tracing takes what Python computes from a size for fixed: see that another size than the traced comes out."""
    images = torch.randn(2, 3, *PROBE_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = _Flat(trunk)(images)
    try:
        found = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images.numpy()])
        maps = [torch.from_numpy(found[index]) for index in range(len(wanted))]
        alike = all(_alike(one, other) for one, other in zip(maps, wanted, strict=True))
    except RuntimeError:
        alike = False
    if not alike:
        raise BadInput(f"backbone {backbone!r} cannot be converted to OpenVINO; use engine torch or compile")


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= PROBE_TOLERANCE * other.abs().max())


def _read(core: Any, path: Path, properties: dict[str, Any]) -> Any:
    """The network in a file of `_write`; None: there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, blob = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(blob).digest() != digest:
        return None
    try:
        return core.import_model(io.BytesIO(blob), "CPU", properties)
    except RuntimeError:
        return None


def _write(compiled: Any, path: Path) -> None:
    stream = io.BytesIO()
    compiled.export_model(stream)
    blob = stream.getvalue()
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
    except BadInput as error:
        # predicting works without it
        warnings.warn(f"the converted network is not kept: {error}; set EMBEDMASK_CACHE", stacklevel=2)
