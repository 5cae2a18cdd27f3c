"""`environment.json`: hardware, versions, seed and data of each start of a run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from embedmask.config import Recipe
from embedmask.data.coco import CocoInstances
from embedmask.files import write_json
from embedmask.machine import describe_machine
from embedmask.training.data_module import TrainValDataModule
from embedmask.training.engine import Hardware

ENVIRONMENT_FILE = "environment.json"
DIGEST_BYTES = 4096
"""Bytes read at the beginning and at the end of an image file."""


def write_environment(out: Path, recipe: Recipe, splits: TrainValDataModule, hardware: Hardware) -> str:
    """Append a start of the run to `environment.json`: a resumed run may continue on another machine.

    Returns:
        One line for the log.
    """
    path, processes = out / ENVIRONMENT_FILE, hardware.processes
    per_node = processes.devices if isinstance(processes.devices, int) else len(processes.devices)
    starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    now: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.train.seed,
        "precision": str(hardware.dtype).removeprefix("torch."),
        "nodes": processes.nodes,
        "processes_per_node": per_node,
        "machine": describe_machine(hardware.device),
        "data": {"train": describe_data(splits.train_set), "val": describe_data(splits.val_set)},
    }
    write_json(path, [*starts, now])
    machine, data = now["machine"], now["data"]
    hardware_text = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    hashes = ", ".join(f"{name} {split['annotations'][:12]}" for name, split in data.items())
    return (
        f"{hardware_text}, {processes.nodes * per_node} process(es), {now['precision']} · "
        f"embedmask {machine['commit'] or machine['embedmask']}, torch {machine['torch']} · seed {now['seed']} · "
        f"data {hashes}"
    )


def describe_data(dataset: CocoInstances) -> dict[str, Any]:
    """Return the fingerprint of a split, the SHA-256 of its annotation file (None for a folder), and of its images."""
    source = dataset.annotations_file
    whole = hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else None
    # each file once, however often a balanced set repeats it
    paths = dict.fromkeys(dataset.image_path(index) for index in range(len(dataset)))
    return {**dataset.fingerprint(), "file sha256": whole, "image files": image_digest(paths)}


def image_digest(paths: Iterable[Path]) -> str:
    """Return a SHA-256 over size, beginning and end of image files, which other pixels nearly always change."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():  # a Zarr folder
            continue
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - DIGEST_BYTES, 0))
            end = file.read()
            file.seek(0)
            digest.update(f"{size} ".encode() + file.read(DIGEST_BYTES) + end)
    return digest.hexdigest()
