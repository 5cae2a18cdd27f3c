"""Exported files: their metadata and the settings in it. Written by `embedmask.export`, read by everything else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FORMAT = "embedmask-graph"
VERSION = 1
KEY = "embedmask"
"""Name of the metadata, one JSON text: in ONNX's `metadata_props`; in OpenVINO's `rt_info` as `embedmask/metadata`."""


class BadFile(ValueError):
    """Error in a file or value of the user: one line with the item and the fix."""


@dataclass(frozen=True)
class Settings:
    """All that a decoder needs beside the outputs of the graph.

    Attributes:
        class_names: name of each label.
        score_thresholds: default threshold on final scores, one per class.
        short_side, long_side, rounding: rule of resizing, see `resized_size`; `short_side` None: no resizing.
        page, channels, depth: page and channels of image files to read (None: the default), reduction to 8 bits.
        strides: px per cell of the levels.
        pixel_stride: px per cell of p.
        score: `product`, class score x centerness, or `root`, its square root.
        candidate_threshold, nms_threshold: applied within the graph, to the class score, or with `root` to the product.
        max_detections: results per image.
        outputs: K.
        rescore: multiply scores by the agreement of mask and box, see `rescore`.
        mask_threshold: phi above which a pixel belongs to a mask.
        interpolation: `prob` and `log_prob` resize phi or log phi from the grid of p, upsampled by `upsampling`, inside
            the box; `aligned` resizes phi from the grid of p itself, whose cells lie at y s + s // 2.
        upsampling: factor of p for `prob` and `log_prob`.
        margin, min_margin_cells: a mask reaches this part of the box's side, and at least this number of cells, beyond
            its box.
        outside_log_prob: log phi outside a mask's range of cells.
        dense_masks: whether the graph also returns log phi.
    """

    class_names: list[str]
    score_thresholds: list[float]
    short_side: int | None
    long_side: int
    rounding: str
    page: int | None
    channels: list[int] | None
    depth: str | float
    strides: list[int]
    pixel_stride: int
    score: str
    candidate_threshold: float
    nms_threshold: float
    max_detections: int
    outputs: int
    rescore: bool
    mask_threshold: float
    interpolation: str
    upsampling: int
    margin: float
    min_margin_cells: float
    outside_log_prob: float
    dense_masks: bool

    @property
    def least_score(self) -> float:
        """Return the smallest threshold on final scores that the graph serves."""
        least = self.candidate_threshold
        return math.sqrt(least) if self.score == "root" else least


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read the metadata of an exported file without its weights: `.onnx`, or `.xml` with its `.bin`.

    Returns:
        `settings` (the fields of `Settings`), `config` (the whole config of the model) and further information.

    Raises:
        BadFile: the file is missing, cut off, of another kind, without our metadata, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    text = _openvino_text(path) if path.suffix == ".xml" else _onnx_text(path)
    if text is None:
        raise BadFile(f"{path}: has no metadata of embedmask; use a file written by embedmask export")
    try:
        metadata: dict[str, Any] = json.loads(text)
        version = int(metadata["version"])
    except (ValueError, KeyError, TypeError):
        raise BadFile(f"{path}: its metadata is damaged; export the model again") from None
    if metadata.get("format") != FORMAT:
        raise BadFile(f"{path}: has no metadata of embedmask; use a file written by embedmask export")
    if version > VERSION:
        raise BadFile(
            f"{path}: format {version} is newer than {VERSION}, the latest supported; upgrade embedmask"
        )
    return metadata


def settings_of(metadata: dict[str, Any], path: str | Path) -> Settings:
    """Return the settings in a file's metadata; `BadFile` if one is missing."""
    values = metadata.get("settings", {})
    missing = [field.name for field in fields(Settings) if field.name not in values]
    if missing:
        raise BadFile(f"{path}: its metadata lacks {missing[0]!r}; export the model again")
    return Settings(**{field.name: values[field.name] for field in fields(Settings)})


def _onnx_text(path: Path) -> str | None:
    """Return the text under `KEY` in the metadata of an ONNX file, by a walk over the top of its protobuf message."""
    damaged = BadFile(f"{path}: not an ONNX file, or cut off; export or copy it again")
    size, found, has_graph = path.stat().st_size, None, False
    with path.open("rb") as file:
        while file.tell() < size:
            tag = _varint(file.read, damaged)
            field, kind = tag >> 3, tag & 7
            if kind == 0:
                _varint(file.read, damaged)
                continue
            length = _varint(file.read, damaged)
            if kind != 2 or file.tell() + length > size or not 1 <= field <= 26:
                raise damaged
            has_graph |= field == 7
            if field == 14:  # metadata_props: key is field 1, value field 2
                entry = _fields(file.read(length), damaged)
                if entry.get(1) == KEY.encode():
                    found = entry.get(2, b"").decode("utf-8", "replace")
            else:
                file.seek(length, os.SEEK_CUR)
    if not has_graph:
        raise damaged
    return found


def _fields(message: bytes, damaged: BadFile) -> dict[int, bytes]:
    """Return the texts of a protobuf message by their field numbers."""
    place, found = 0, {}

    def read(count: int) -> bytes:
        nonlocal place
        place += count
        return message[place - count : place]

    while place < len(message):
        tag = _varint(read, damaged)
        found[tag >> 3] = read(_varint(read, damaged))
    return found


def _varint(read: Callable[[int], bytes], damaged: BadFile) -> int:
    """Read a number in groups of seven bits, lowest first; the eighth bit is set if another follows."""
    value = 0
    for shift in range(0, 70, 7):
        byte = read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise damaged


def _openvino_text(path: Path) -> str | None:
    """Return the metadata in the `rt_info` of an OpenVINO file; its weights must be there in full."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError):
        raise BadFile(f"{path}: not an OpenVINO file, or cut off; export or copy it again") from None
    weights = path.with_suffix(".bin")
    ends = [int(data.get("offset", 0)) + int(data.get("size", 0)) for data in root.iter("data")]
    if not weights.is_file() or weights.stat().st_size < max(ends, default=0):
        raise BadFile(f"{weights}: missing or cut off; export or copy it again, beside {path.name}")
    entry = root.find(f"rt_info/{KEY}/metadata")
    return None if entry is None else entry.get("value")
