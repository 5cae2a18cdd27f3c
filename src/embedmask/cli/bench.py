"""`bench`: what is measured, and the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embedmask.benchmark.compare import BenchConfig
from embedmask.cli.recipes import resolve_recipe
from embedmask.config import DetectorConfig, ModelConfig, override
from embedmask.errors import BadInput
from embedmask.weights.checkpoint import load_checkpoint
from embedmask.weights.released import find_weights

COLUMNS = ("read", "resize", "preprocess", "network", "proposals", "masks", "results", "to_masks", "whole")


def make_plan(weights: Path | None, config: str, changes: Mapping[str, Any], **options: Any) -> BenchConfig:
    """What the command line asks for.

    Args:
        weights: model file; its own config counts then, not the recipe's.
        config: recipe, a name or a file.
        changes: field of the model -> value.
        options: further fields of `BenchConfig`.

    Raises:
        BadInput: unreadable weights, unknown recipe or field, impossible value, or a model that is no EmbedMask.
    """
    if weights is not None:
        weights = find_weights(weights)
        model: DetectorConfig = override(load_checkpoint(weights).config, changes, where="--model")
    else:
        model = resolve_recipe(config, {"model": changes}).model
    if not isinstance(model, ModelConfig):
        raise BadInput(
            f"{weights or config}: a Mask R-CNN; bench measures EmbedMask beside one, give such a model"
        )
    return BenchConfig(config=model, weights=weights, **options)


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    plan, machine = report["plan"], report["machine"]
    sizes = [f"{height}x{width}" for height, width in (plan["image_size"], plan["network_size"])]
    units = ", ".join(machine["processor_units"]) or "no vector units known"
    yield f"{machine['processor']} ({units}), {machine['threads']} threads"
    yield f"{machine['device']}, torch {machine['torch']}"
    yield f"image {sizes[0]}, network {sizes[1]}, medians of {plan['runs']} runs, milliseconds an image"
    yield ""
    yield f"{'':30}" + "".join(f"{name:>11}" for name in COLUMNS)
    for side, stages in report["medians"].items():
        cells = (f"{1000 * stages[name]:11.1f}" if name in stages else f"{'-':>11}" for name in COLUMNS)
        yield f"{side:30}" + "".join(cells)
    yield ""
    for side, work in report["works"].items():
        memory = report["memory_mb"].get(side)
        held = f", at most {memory['results']:.0f} MB ({memory['before']:.0f} MB before)" if memory else ""
        yield f"{side}: {work['detections']} detections, mean box {work['mean_box_area_px']:.0f} px{held}"
    for side, ratios in report["ratios"].items():
        times = [f"{ratio:.2f} times Mask R-CNN ({name})" for name, ratio in ratios.items()]
        yield f"{side} is {', '.join(times) or 'alone: no Mask R-CNN ran'}"
    for side, reason in report["fails"].items():
        yield f"{side} does not work here: {reason}"
