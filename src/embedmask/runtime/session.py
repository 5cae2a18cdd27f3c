"""Engines that run an exported graph: onnxruntime and OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .graph_file import BadFile

Array = NDArray[Any]


class Session:
    """A graph with its engine.

    Attributes:
        engine: `onnxruntime` or `openvino`.
    """

    def __init__(self, path: str | Path, *, engine: str | None = None, threads: int | None = None) -> None:
        """Load a graph.

        Args:
            path: `.onnx` or `.xml`.
            engine: `onnxruntime` or `openvino`; None: openvino for `.xml`, else onnxruntime.
            threads: of the CPU; None: the engine's choice.

        Raises:
            BadFile: the engine is not installed, or cannot load the file.
        """
        self.engine = engine or ("openvino" if Path(path).suffix == ".xml" else "onnxruntime")
        try:
            self._run = (_with_openvino if self.engine == "openvino" else _with_onnxruntime)(path, threads)
        except ImportError:
            raise BadFile(f"{path}: needs {self.engine}; pip install {self.engine}") from None
        except Exception as error:  # the engines raise errors of their own
            reason = " ".join(str(error).split())[:120]
            raise BadFile(f"{path}: {self.engine} cannot load it ({reason}); export it again") from error

    def run(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Run the graph on images of one size, uint8 RGB `[N, 3, H, W]`; return its outputs by name.

        boxes float32 `[N, K, 4]` px of `images`, scores `[N, K]`, labels int64 `[N, K]` (-1: none), q `[N, K, D]`,
        s `[N, K, 1 or D]`, p `[N, D, h, w]`, log_phi if exported.
        """
        outputs: dict[str, Array] = self._run(np.ascontiguousarray(images))
        return outputs


def _with_onnxruntime(path: str | Path, threads: int | None) -> Any:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _with_openvino(path: str | Path, threads: int | None) -> Any:
    import openvino  # type: ignore[import-untyped, unused-ignore]

    # float32: boxes of bfloat16 are several px off
    properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        properties |= {"INFERENCE_NUM_THREADS": threads}  # type: ignore[dict-item]
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)
    names = [output.any_name for output in compiled.outputs]

    def run(images: Array) -> dict[str, Array]:
        results = compiled([images])
        return {name: np.array(results[index]) for index, name in enumerate(names)}

    return run
