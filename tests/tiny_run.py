"""A tiny recipe for tests of the training, and helpers to compare runs."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embedmask.config import Recipe

TINY: dict[str, Any] = {
    "model": {
        "backbone": "test_resnet",
        "backbone_norm": "batch",
        "frozen_stages": 0,
        "channels": 32,
        "norm_groups": 8,
        "tower_convs": 1,
        "embed_dim": 8,
        "image_short_side": 64,
        "image_long_side": 64,
    },
    "data": {"short_sides": []},
    "train": {
        "batch_size": 4,
        "max_steps": None,
        "epochs": 2,
        "lr": 0.002,
        "warmup_steps": 2,
        "pretrained": False,
        "precision": "float32",
        "workers": 0,
        "ema_decay": 0.9,
    },
}
TORCHRUN = {
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "TORCHELASTIC_RUN_ID": "test",
}
"""Environment that torchrun sets in both of two processes."""


def free_port() -> int:
    """Return a free port on which two processes can connect."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        pytest.skip(f"processes cannot talk to each other here: {error}")


def tiny(model: dict[str, Any] | None = None, **train: Any) -> Recipe:
    """Return the tiny recipe with changes to its model and its training."""
    sections = {"data": TINY["data"], "model": {**TINY["model"], **(model or {})}}
    return Recipe.from_mapping({**sections, "train": {**TINY["train"], **train}}, where="test")


def left_behind(out: Path) -> dict[str, Any]:
    """Return the values of `last.ckpt` by their paths, except those that depend on the clock."""
    values: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{path}/{key}")
        elif isinstance(value, (list, tuple)):
            walk(dict(enumerate(value)), path)
        else:
            values[path] = value

    walk(torch.load(out / "last.ckpt", weights_only=True), "")
    return {path: value for path, value in values.items() if "seconds" not in path}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether the results of two runs are identical."""

    def equal(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else repr(x) == repr(y)

    return a.keys() == b.keys() and all(equal(value, b[path]) for path, value in a.items())


def start(function: Callable[..., None], *args: Any) -> multiprocessing.process.BaseProcess:
    """Start a function in a new process with all modules imported."""
    if sys.platform == "win32":
        pytest.skip("no quick way to start processes here")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["embedmask.training.fit", "embedmask.predict.job"])
    process = context.Process(target=function, args=args)
    process.start()
    return process


def exit_codes(*processes: multiprocessing.process.BaseProcess) -> list[int | None]:
    """Wait for processes, and return their exit codes; None for one that took too long and was killed."""
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes
