"""The command `embedmask export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    *,
    model: Path,
    format: Literal["onnx", "openvino"],
    out: Path | None = None,
    dense_masks: bool = False,
    max_detections: int | None = None,
) -> None:
    """Export a model as one graph, from images to detections; predict, eval and embedmask.runtime take the file.

    The graph normalises and pads images of any number and size, and applies NMS. Masks are decoded from its outputs.

    Args:
        model: Model file (.safetensors), or the name of a bundled model: nuclei.
        format: onnx, one file; or openvino, MODEL.xml with its weights in MODEL.bin.
        out: File to write, .onnx or .xml; by default the name of the model, in the current folder.
        dense_masks: Also output the log probability of every detection in every cell, for decoders without embeddings.
        max_detections: Maximum detections per image that the graph serves; by default from the model.
    """
    from embedmask.config import override
    from embedmask.export import ENDINGS, export_model
    from embedmask.weights.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model)
    network = checkpoint.model
    if max_detections is not None:
        network.config = override(
            checkpoint.config, {"max_detections": max_detections}, where="--max-detections"
        )
    path = Path(f"{model.stem}{ENDINGS[format]}") if out is None else out
    export_model(network, path, format, class_names=checkpoint.class_names, dense_masks=dense_masks)
    size = sum(
        file.stat().st_size
        for file in {path, path.with_suffix(".bin" if format == "openvino" else path.suffix)}
    )
    print(f"{network.config.backbone}, {len(checkpoint.class_names)} classes, {size / 1e6:.1f} MB · {path}")
