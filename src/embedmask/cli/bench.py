"""Configuration and report of `embedmask bench`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from embedmask.benchmark.compare import BenchConfig
from embedmask.config import DetectorConfig, ModelConfig, model_type_of, override
from embedmask.config.bundled import resolve_recipe
from embedmask.errors import BadInput
from embedmask.machine import processor_text
from embedmask.weights.checkpoint import load_checkpoint
from embedmask.weights.released import find_weights

COLUMNS = ("read", "resize", "preprocess", "network", "proposals", "masks", "results", "to_masks", "whole")
CPU = "CPU"
"""Column of the CPU time of the whole."""


def make_bench_config(
    weights: Path | None, config: str, changes: Mapping[str, Any], **options: Any
) -> BenchConfig:
    """Build the benchmark's configuration from the options of the command.

    Args:
        weights: Model file, whose config takes precedence over the recipe's.
        config: Recipe, a name or a file.
        changes: Overrides of model fields.
        options: Further fields of `BenchConfig`.

    Raises:
        BadInput: Unreadable weights, unknown recipe or field, invalid value, or a model that is not EmbedMask.
    """
    if weights is not None:
        weights = find_weights(weights)
        model: DetectorConfig = override(load_checkpoint(weights).config, changes, where="--model")
    else:
        model = resolve_recipe(config, {"model": changes}).model
    entry = model_type_of(model)
    if entry.config is not ModelConfig:
        raise BadInput(
            f"{weights or config}: is a {entry.title}; bench compares an EmbedMask model to one, pass an EmbedMask"
        )
    return BenchConfig(config=cast(ModelConfig, model), weights=weights, **options)


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the printed report.

    Args:
        report: Figures of `compare`, times in seconds.
    """
    plan, machine = report["plan"], report["machine"]
    sizes = [f"{height}x{width}" for height, width in (plan["image_size"], plan["network_size"])]
    yield f"{processor_text(machine)}, {machine['threads']} threads"
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in machine["matrix_gflops"].items())
    rates = f", matrix Gflop per CPU second: {rates}" if rates else ""
    yield f"{machine['device']}, torch {machine['torch']}{rates}"
    yield f"image {sizes[0]}, network {sizes[1]}, median of {plan['runs']} runs, ms per image"
    yield ""
    yield f"{'':30}" + "".join(f"{name:>11}" for name in (*COLUMNS, CPU))
    for pipeline, stages in report["medians"].items():
        # pipelines differ in their stages: Mask R-CNN resizes and decodes inside its network
        cells = (f"{1000 * stages[name]:11.1f}" if name in stages else f"{'-':>11}" for name in COLUMNS)
        cpu = f"{1000 * report['cpu_medians'][pipeline]['whole']:11.1f}"
        yield f"{pipeline:30}" + "".join(cells) + cpu
    yield ""
    for pipeline, work in report["works"].items():
        memory = report["memory_mb"].get(pipeline)
        peak = f", peak {memory['results']:.0f} MB ({memory['before']:.0f} MB before)" if memory else ""
        yield f"{pipeline}: {work['detections']} detections, mean box {work['mean_box_area_px']:.0f} px{peak}"
    for pipeline, ratios in report["ratios"].items():
        cpu_ratios = report["cpu_ratios"][pipeline]
        speedups = [
            f"{ratio:.2f}x the speed of Mask R-CNN ({name}; {cpu_ratios[name]:.2f}x by CPU time)"
            for name, ratio in ratios.items()
        ]
        yield f"{pipeline}: {', '.join(speedups) or 'no Mask R-CNN pipeline ran to compare with'}"
    for pipeline, reason in report["fails"].items():
        yield f"{pipeline} failed: {reason}"
