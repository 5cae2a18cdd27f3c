"""Export of a model to one graph, ONNX or OpenVINO, from uint8 images to boxes, scores, labels and embeddings."""

from __future__ import annotations

from embedmask.export.write import (
    ENDINGS,
    export_model,
    onnx_model,
    openvino_model,
    to_openvino,
    write_openvino,
)

__all__ = ["ENDINGS", "export_model", "onnx_model", "openvino_model", "to_openvino", "write_openvino"]
