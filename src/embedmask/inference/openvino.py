"""Conversion of the network to OpenVINO, cached on disk: it takes longer than predicting a hundred images.

OpenVINO's own cache (`CACHE_DIR`) cannot replace these files: its key is the converted network, so each process would
convert again (4 s of CPU time instead of 0.3 s).
"""

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
from embedmask.runtime import openvino_core

FORMAT = 1
"""Version of the cached files. Increase it when the code of the trunk changes, which their names do not reflect."""
DIGEST_BYTES = hashlib.sha256().digest_size
TRACED_SIZE, PROBE_SIZE = (256, 256), (160, 192)
PROBE_TOLERANCE = 1e-2
"""Maximum difference from the network in float32, relative to the largest value of a map; rounding causes 1e-5."""


def openvino_trunk(model: EmbedMask, dtype: torch.dtype) -> Callable[[Tensor], Maps]:
    """Return a function that computes `Trunk.forward` for frames of any size with OpenVINO on the CPU.

    The converted network is cached in `cache_folder()` for these weights, dtype, processor and version of OpenVINO.

    Args:
        model: on the CPU; it is not changed.
        dtype: of the convolutions and the maps between them; the resulting maps are float32.

    Raises:
        BadInput: OpenVINO is missing, cannot compute in `dtype`, or cannot convert the backbone.
    """
    try:
        import openvino  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise BadInput("engine 'openvino' needs OpenVINO; pip install 'embedmask[export]'") from None
    if model.mean.device.type != "cpu":
        raise BadInput("engine 'openvino' runs on the CPU; choose device cpu, or engine torch or compile")
    core = openvino_core()
    properties = {
        "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float16: "f16"}.get(dtype, "f32"),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # several processes on one machine would all be pinned to the same cores
        "ENABLE_CPU_PINNING": False,
    }
    machine = core.get_property("CPU", "FULL_DEVICE_NAME")
    cache = _CacheFile(model, str(dtype), machine, openvino.__version__)
    compiled = cache.read(core, properties)
    if compiled is None:
        compiled = core.compile_model(_convert(openvino, core, model), "CPU", properties)
        cache.write(compiled)
    return _Runner(compiled)


def cache_folder() -> Path:
    """Return the folder of converted networks: EMBEDMASK_CACHE, else `embedmask` in the user's cache folder."""
    named = os.environ.get("EMBEDMASK_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "embedmask"


class _Flat(nn.Module):
    """A trunk that returns its maps as a flat tuple, as OpenVINO requires."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels, logits, box_features = self.trunk(images)
        return pixels, *logits, *box_features


class _Runner(threading.local):
    """A compiled network with one inference request, and so its own buffers, per thread."""

    def __init__(self, compiled: Any) -> None:
        """Create the request; `threading.local` calls this again in every thread that uses the object."""
        self.request = compiled.create_infer_request()

    def __call__(self, images: Tensor) -> Maps:
        """Run the network; the maps share the buffers of the request and are valid until its next run."""
        results = self.request.infer([images.contiguous().numpy()], share_inputs=True, share_outputs=True)
        pixels, *maps = [torch.from_numpy(results[index]) for index in range(len(results))]
        return pixels, maps[: len(maps) // 2], maps[len(maps) // 2 :]


class _CacheFile:
    """File of a compiled network: a SHA-256 digest, which reveals damage, then OpenVINO's export."""

    def __init__(self, model: EmbedMask, *others: str) -> None:
        """Derive the name of the file from the config, the weights and `others`."""
        digest = hashlib.sha256(json.dumps([FORMAT, model_to_dict(model.config), *others]).encode())
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().numpy().tobytes())
        self.path = cache_folder() / f"{digest.hexdigest()[:32]}.openvino"

    def read(self, core: Any, properties: dict[str, Any]) -> Any:
        """Return the compiled network, or None if the file is missing or damaged."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, blob = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() != digest:
            return None
        try:
            return core.import_model(io.BytesIO(blob), "CPU", properties)
        except RuntimeError:
            return None

    def write(self, compiled: Any) -> None:
        """Write the compiled network; a failure is a warning, because prediction works without the cache."""
        stream = io.BytesIO()
        compiled.export_model(stream)
        blob = stream.getvalue()
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_bytes(hashlib.sha256(blob).digest() + blob)
        except BadInput as error:
            message = (
                f"the converted network is not cached: {error}; set EMBEDMASK_CACHE to a writable folder"
            )
            warnings.warn(message, stacklevel=2)


def _convert(library: Any, core: Any, model: EmbedMask) -> Any:
    """Convert the trunk of a model and verify the result.

    Tracing turns values that Python computes from a size into constants, so maps of a size other than the traced one
    are compared with those of the trunk.
    """
    trunk = _Flat(Trunk(model, torch.float32, portable=True))
    images = torch.randn(2, 3, *PROBE_SIZE, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.inference_mode():
        # torch's tracer is deprecated, and it warns of each size that becomes a constant
        warnings.simplefilter("ignore")
        network = library.convert_model(trunk, example_input=torch.zeros(1, 3, *TRACED_SIZE))
        expected = trunk(images)
    try:
        results = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images.numpy()])
        maps = [torch.from_numpy(results[index]) for index in range(len(expected))]
        is_equal = all(
            one.shape == other.shape
            and bool((one - other).abs().max() <= PROBE_TOLERANCE * other.abs().max())
            for one, other in zip(maps, expected, strict=True)
        )
    except RuntimeError:  # OpenVINO's error for a graph that does not fit the size
        is_equal = False
    if not is_equal:
        backbone = model.config.backbone
        raise BadInput(f"backbone {backbone!r} cannot be converted to OpenVINO; use engine torch or compile")
    return network
