"""The command `embedmask export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from embedmask.config.data import Split


def export(
    *,
    model: Path,
    format: Literal["onnx", "openvino"],
    out: Path | None = None,
    dense_masks: bool = False,
    max_detections: int | None = None,
    int8: Path | None = None,
    images: int | None = None,
    max_drop: float | None = None,
    split: Split | None = None,
    where: str | None = None,
) -> None:
    """Export a model as one graph, from images to detections; predict, eval and embedmask.runtime take the file.

    The graph normalizes and pads images of any number and size, and applies NMS. Masks are decoded from its outputs.

    Args:
        model: Model file (.safetensors), the name of a bundled model, or user/model on the Hugging Face Hub.
        format: onnx, one file; or openvino, MODEL.xml with its weights in MODEL.bin.
        out: File to write, .onnx or .xml; by default the name of the model, in the current folder.
        dense_masks: Also output the log probability of every detection in every cell, for decoders without embeddings.
        max_detections: Maximum detections per image that the graph serves; by default from the model.
        int8: Data set folder: compute the convolutions in int8, calibrated on its train split, and print AP and time
            before and after. Needs --format openvino, the extras export and int8, and a processor with VNNI or AMX.
        images: Calibration images for --int8; by default 64.
        max_drop: Write no file if mask AP or box AP drops by more in int8; by default 0.003.
        split: Split on which --int8 measures AP and time; by default val.
        where: Only images whose record in the annotation file has KEY=VALUE, for --int8.
    """
    from embedmask.config import override
    from embedmask.errors import BadInput
    from embedmask.export import ENDINGS, export_model
    from embedmask.export.measured import Int8Options, export_int8
    from embedmask.weights.checkpoint import load_checkpoint
    from embedmask.weights.hub import FILE_SUFFIX

    measuring = {"images": images, "max_drop": max_drop, "split": split, "where": where}
    int8_options: dict[str, Any] = {name: value for name, value in measuring.items() if value is not None}
    if int8_options and int8 is None:
        raise BadInput(f"--{next(iter(int8_options)).replace('_', '-')} needs --int8 DATA")
    checkpoint = load_checkpoint(model)
    network = checkpoint.model
    if max_detections is not None:
        network.config = override(
            checkpoint.config, {"max_detections": max_detections}, where="--max-detections"
        )
    # only the suffix of a weights file is not part of the name: lr0.01 is a folder
    name = model.stem if FILE_SUFFIX.fullmatch(model.suffix) else model.name
    path = Path(f"{name}{ENDINGS[format]}") if out is None else out
    if int8 is None:
        export_model(network, path, format, class_names=checkpoint.class_names, dense_masks=dense_masks)
    else:
        if format != "openvino":
            raise BadInput(f"--int8 needs --format openvino, got {format}")
        options = Int8Options(data=int8, **int8_options)
        entry = export_int8(checkpoint, path, options, dense_masks=dense_masks, report=print)
        print("\n".join(int8_lines(entry)))
    size = sum(
        file.stat().st_size
        for file in {path, path.with_suffix(".bin" if format == "openvino" else path.suffix)}
    )
    print(f"{network.config.backbone}, {len(checkpoint.class_names)} classes, {size / 1e6:.1f} MB · {path}")


def int8_lines(entry: dict[str, Any]) -> list[str]:
    """Return a table of AP before and after, and of the time of each model; `entry` is that of `export_int8`."""
    before, after, times = entry["before"], entry["after"], entry["cpu_ms"]
    lines = [f"{'':14}{'float32':>9}{'int8':>9}"]
    lines += [f"{key:14}{before[key]:9.4f}{after[key]:9.4f}" for key in before]
    torch = f"engine torch, {entry['torch_precision']}"
    names = {"float32 graph": "float32 graph", "engine torch": torch, "int8 graph": "int8 graph"}
    speeds = ", ".join(f"{title} {times[name]:.0f}" for name, title in names.items())
    return [*lines, f"CPU ms per image, {entry['threads']} threads: {speeds}"]
