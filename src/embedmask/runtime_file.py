"""The metadata of an exported file, read without its weights; part of the runtime without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

if __package__:
    from .runtime_masks import BadFile, Settings
else:  # a copy outside a package
    from runtime_masks import BadFile, Settings  # type: ignore

FORMAT, VERSION, KEY = "embedmask-graph", 1, "embedmask"
"""Name of the metadata, one JSON text: in ONNX's `metadata_props`; in OpenVINO's `rt_info` as `embedmask/metadata`."""


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
    """Return the text under `KEY` in the metadata of an ONNX file, by walking the top level of its protobuf message."""
    damaged = BadFile(f"{path}: not an ONNX file, or cut off; export or copy it again")
    text, has_graph = None, False
    with path.open("rb") as file:
        for field, length in _parts(file, path.stat().st_size, damaged):
            if not 1 <= field <= 26:
                raise damaged
            has_graph |= field == 7
            if field == 14:  # metadata_props: key is field 1, value field 2
                end = file.tell() + length
                entry = {part: file.read(count) for part, count in _parts(file, end, damaged)}
                if entry.get(1) == KEY.encode():
                    text = entry.get(2, b"").decode("utf-8", "replace")
    if not has_graph:
        raise damaged
    return text


def _parts(file: BinaryIO, end: int, damaged: BadFile) -> Iterator[tuple[int, int]]:
    """Yield field number and length of each text in a protobuf message; `file` is then at its first byte."""
    while file.tell() < end:
        tag = _varint(file, damaged)
        if tag & 7 == 0:  # a number
            _varint(file, damaged)
            continue
        length = _varint(file, damaged)
        after = file.tell() + length
        if tag & 7 != 2 or after > end:
            raise damaged
        yield tag >> 3, length
        file.seek(after)


def _varint(file: BinaryIO, damaged: BadFile) -> int:
    """Read a number in groups of seven bits, lowest first; the eighth bit is set if another follows."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
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
