"""Helpers of command-line tests: a model with detections in every image, and expected failures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from tiny_run import TINY

from embedmask.cli import main
from embedmask.cli.commands import COMMANDS
from embedmask.cli.parser import build_parser, find_command, rename_data_fields
from embedmask.config import ModelConfig
from embedmask.config.bundled import find_recipe, resolve_recipe
from embedmask.data.coco import CocoInstances
from embedmask.evaluation.run import write_results
from embedmask.model.embedmask import EmbedMask
from embedmask.weights.checkpoint import save


def save_eager(shapes: Path, path: Path) -> Path:
    """Write a model of a data set's classes that has detections in every image."""
    names = [c["name"] for c in json.loads((shapes / "val.json").read_text())["categories"]]
    config = ModelConfig(**{**TINY["model"], "num_classes": len(names), "candidate_threshold": 0.0})
    torch.manual_seed(0)
    model = EmbedMask(config)
    torch.nn.init.constant_(model.head.class_logits.bias, 2.0)
    save(model, path, class_names=names)
    return path


def make_findable(data: Path, weights: Path) -> Path:
    """Replace the objects of val by every third result of a model, whose AP is then between 0 and 1."""
    results = write_results(weights, CocoInstances.open(data, "val"), data.parent / "results.json")
    found = [one for one in json.loads(results.read_text()) if mask_api.area(one["segmentation"]) > 0]
    content = json.loads((data / "val.json").read_text())
    content["annotations"] = [
        {
            "id": number,
            "iscrowd": 0,
            "area": int(mask_api.area(one["segmentation"])),
            "bbox": mask_api.toBbox(one["segmentation"]).tolist(),
            **{key: one[key] for key in ("image_id", "category_id", "segmentation")},
        }
        for number, one in enumerate(found[::3], start=1)
    ]
    (data / "val.json").write_text(json.dumps(content))
    return data


def fails(capsys: pytest.CaptureFixture[str], *words: Any, lines: int = 0) -> str:
    """Run a command that must exit with code 2, and return its one line on stderr.

    Args:
        capsys: Fixture of pytest.
        words: Arguments of the command.
        lines: Number of lines on stdout before the failure, such as the layout of the data set and the machine.
    """
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    messages = captured.err.splitlines()
    assert len(messages) == 1, captured.err
    assert messages[0].startswith("embedmask: ")
    assert captured.out.count("\n") == lines
    return messages[0]


def resolve(line: str) -> None:
    """Parse a command, and resolve the recipe and the fields of configs that it names; raise on unknown ones."""
    parsed = build_parser(COMMANDS).parse_args(rename_data_fields(shlex.split(line)[1:]))
    _, arguments = find_command(COMMANDS, parsed)
    if arguments.get("show"):
        find_recipe(arguments["show"])
    if "config" in arguments:
        sections = {"model": "model", "data": "augment", "train": "train"}
        changes = {section: arguments.get(name) for section, name in sections.items()}
        resolve_recipe(arguments["config"] or "shapes", changes)


def copy_with(shapes: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy a data set and modify its annotations."""
    data = folder / "data"
    data.mkdir()
    (data / "images").symlink_to(shapes / "images", target_is_directory=True)
    for split in ("train", "val"):
        content = json.loads((shapes / f"{split}.json").read_text())
        change(content)
        (data / f"{split}.json").write_text(json.dumps(content))
    return data


def two_points(annotations: dict[str, Any]) -> None:
    """Replace the first object by a polygon of two points."""
    annotations["annotations"][0].update(segmentation=[[3, 3, 9, 9]])
