"""The command `embedmask predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from embedmask.cli.terminal import FAILURE, INVALID_INPUT, SUCCESS, is_interactive
from embedmask.cli.threads import use_threads
from embedmask.cli.thresholds import parse_score_threshold
from embedmask.config import Engine, Precision
from embedmask.errors import BadInput
from embedmask.predict import PredictSummary

DEFAULT_OVERLAP = 128
"""Overlap of neighboring tiles, px."""


def predict(
    *,
    source: list[str],
    weights: Path,
    out: Path,
    format: Literal["coco", "labels", "tiff", "polygons", "yolo", "masks", "geojson", "roi", "csv"] = "coco",
    ids_from: Path | None = None,
    no_draw: bool = False,
    score_threshold: str | None = None,
    max_detections: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    page: int | None = None,
    channels: list[int] = [],  # noqa: B006
    level: int = 0,
    resume: bool = False,
    batch_size: int | None = None,
    precision: Precision = "auto",
    engine: Engine = "torch",
    threads: int | None = None,
    device: str = "auto",
    devices: int | None = None,
    nodes: int = 1,
) -> int:
    """Predict instance masks in images and videos.

    Writes the images with masks drawn, predictions.json (COCO results) and images.json to --out, replacing existing
    files of the same name. Exits with code 1 when some files could not be read; they are listed at the end.

    Args:
        source: Images, OME-Zarr folders, videos (mp4, avi, mov, mkv, webm, m4v, mpg), folders, or patterns such as
            'photos/*.jpg'.
        weights: Model file (.safetensors), file of embedmask export (.onnx, .xml), name of a bundled model (nuclei), or
            user/model on the Hugging Face Hub.
        out: Results folder; its images.json maps each image_id to a file and frame.
        format: Additional annotations per image: labels/NAME.png (16-bit label image), labels/NAME.tif (tiff: label
            image of 16 bits, 32 if needed), polygons/NAME.json (LabelMe), labels/NAME.txt with data.yaml (yolo),
            masks/NAME/ (one image per mask), geojson/NAME.geojson (QuPath), rois/NAME.zip (roi: ImageJ), or
            measurements/NAME.csv (area, perimeter, intensity and others). roi and csv need
            pip install 'embedmask[microscopy]'.
        ids_from: Data set folder that contains the images. Results use its image and category ids, so they can be
            evaluated against its annotations. By default, images are numbered from 1.
        no_draw: Do not write images and videos with masks drawn.
        score_threshold: Minimum score, 0 to 1: one number, or CLASS=NUMBER,CLASS=NUMBER; by default from the model.
        max_detections: Maximum detections per image; by default from the model.
        tile: Side of square tiles for large images, px; results of neighboring tiles are merged. Pyramids and OME-Zarr
            are then read by windows. 0: no tiles.
        overlap: Overlap of neighboring tiles, px; half the size of a typical object is enough. By default 128.
        page: Page of TIFF stacks or frame of animations, from 0; by default from the model, else the first.
        channels: Channels of image files, from 0: one as gray, or three as RGB; by default from the model, else the
            image's own colors or its first channel.
        level: Level of image pyramids, from 0, the full resolution. Results are in its frame; GeoJSON is in the frame
            of level 0.
        resume: Continue an interrupted run with the same options; finished files are skipped.
        batch_size: Images per batch; by default chosen for the device.
        precision: auto, float32, bfloat16 or float16; auto is bfloat16 where the device is fast at it.
        engine: torch, compile (takes minutes to start) or openvino (CPU; needs pip install 'embedmask[export]'). For
            exported files onnxruntime or openvino, by default the one of the file.
        threads: CPU threads per process; by default PyTorch's choice.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: Processes on this machine; by default one per CUDA device, else one. Not needed under torchrun.
        nodes: Number of machines, which share a file system. Run the command on each one, with NODE_RANK, MASTER_ADDR
            and MASTER_PORT set.
    """
    if overlap is not None and not tile:
        raise BadInput(f"--overlap {overlap}: is the overlap of tiles; add --tile, or omit it")
    use_threads(threads)
    from embedmask.predict import run

    summary = run(
        source,
        weights,
        out,
        format=format,
        ids_from=ids_from,
        draw=not no_draw,
        score_threshold=parse_score_threshold(score_threshold),
        max_detections=max_detections,
        tile=tile or None,
        overlap=DEFAULT_OVERLAP if overlap is None else overlap,
        page=page,
        channels=channels or None,
        level=level,
        resume=resume,
        batch_size=batch_size,
        precision=precision,
        engine=engine,
        device=device,
        devices=devices,
        nodes=nodes,
        progress=is_interactive(),
    )
    return print_summary(summary, out)


def print_summary(summary: PredictSummary, out: Path) -> int:
    """Print the summary of a prediction and return its exit code."""
    for line in (*summary.notes, *summary.broken):
        print(f"embedmask: {line}", file=sys.stderr)
    # the summary is empty on all processes but the first, which is not a failure
    if not summary.num_images:
        return INVALID_INPUT if summary.broken else SUCCESS
    print(f"{summary.num_objects} objects in {summary.num_images} images · {out}")
    if summary.hint:
        print(f"no detections: {summary.hint}")
    return FAILURE if summary.broken else SUCCESS
