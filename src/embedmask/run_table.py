"""Table of training runs: metrics, speed and memory, with mean and spread over seeds (`embedmask report`)."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from embedmask.config.recipe import read_yaml
from embedmask.errors import BadInput

COLUMNS: Mapping[str, tuple[str, float]] = {
    "segm/AP": ("mask AP", 100), "segm/AP50": ("AP50", 100), "segm/AP75": ("AP75", 100),
    "segm/AP_small": ("APs", 100), "segm/AP_medium": ("APm", 100), "segm/AP_large": ("APl", 100),
    "bbox/AP": ("box AP", 100), "hours": ("hours", 1),
    "seconds_per_step": ("s/step", 1), "images_per_second": ("images/s", 1), "peak_gib": ("peak GiB", 1),
}  # fmt: skip
"""Metric -> heading and factor in the Markdown table; JSON has all metrics, unscaled."""


@dataclass(frozen=True)
class Run:
    """Finished training run.

    Attributes:
        folder: its results folder.
        seed: of its recipe.
        setting: recipe as last run without the seed, digests of annotations and images, and the number of steps
            where it is fixed, as JSON.
        metrics: numbers of `metrics.json`, and `hours`; values that were not measured are missing.
        environment: last start of `environment.json`; empty for runs of earlier versions.
    """

    folder: Path
    seed: int
    setting: str
    metrics: Mapping[str, float]
    environment: Mapping[str, Any]


def read_run(folder: Path) -> Run:
    """Read a results folder of `embedmask train`.

    Raises:
        BadInput: it is not the folder of a finished run, or a file is damaged.
    """
    try:
        return _run_of(folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"{folder}: run.json, recipe.yaml, metrics.json or environment.json is damaged "
            f"({type(error).__name__}: {error}); omit the folder, or train again"
        ) from None


def _run_of(folder: Path) -> Run:
    data = _read(folder / "run.json")["data"]
    recipe = read_yaml(folder / "recipe.yaml")  # `--resume` may change the recipe, but not that of run.json
    numbers = _read(folder / "metrics.json")
    metrics = {
        name: float(value)
        for name, value in numbers.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    train = {name: value for name, value in recipe["train"].items() if name != "seed"}
    starts = _read(folder / "environment.json") if (folder / "environment.json").is_file() else [{}]
    environment = starts[-1]
    # while a run is being extended, its metrics are those of its former length
    is_fixed = not (train.get("early_stop") or train.get("max_minutes"))
    steps = numbers.get("steps") if is_fixed else None
    images = [split.get("image files") for split in environment.get("data", {}).values()]
    return Run(
        folder,
        recipe["train"]["seed"],
        json.dumps([{**recipe, "train": train}, data, images, steps], sort_keys=True),
        metrics | {"hours": metrics["seconds"] / 3600},
        environment,
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: not a finished run, it has no {path.name}") from None
    except NotADirectoryError:
        raise BadInput(f"{path.parent}: is a file; choose the folder of a run") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error.__class__.__name__})") from None


def summarize_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Summarize runs: those that differ only in their seeds are one row.

    Args:
        folders: results folders.

    Returns:
        A mapping per row, in order of the first folder: `name`, the part that its folders share; `runs`, `seeds`;
        `metrics`, name -> `mean`, `spread` (sample standard deviation; None for one run) and `values`, of the metrics
        that every run has; `environments`, the last start of each run.

    Raises:
        BadInput: see `read_run`; or two runs of a row have the same seed.
    """
    rows: dict[str, list[Run]] = {}
    for run in map(read_run, dict.fromkeys(folders)):
        rows.setdefault(run.setting, []).append(run)
    return [_summarize(runs) for runs in rows.values()]


def _summarize(runs: Sequence[Run]) -> dict[str, Any]:
    first: dict[int, Run] = {}
    for run in runs:
        other = first.setdefault(run.seed, run)
        if other is not run:
            raise BadInput(
                f"{other.folder} and {run.folder} have the same recipe, data and seed; pass one of them"
            )
    names = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
    values = {name: [run.metrics[name] for run in runs] for name in names}
    return {
        "name": _common_name([str(run.folder) for run in runs]),
        "runs": [str(run.folder) for run in runs],
        "seeds": [run.seed for run in runs],
        "metrics": {
            name: {
                "mean": statistics.mean(numbers),
                "spread": statistics.stdev(numbers) if len(numbers) > 1 else None,
                "values": numbers,
            }
            for name, numbers in values.items()
        },
        "environments": [dict(run.environment) for run in runs],
    }


def _common_name(folders: Sequence[str]) -> str:
    """Return the common beginning of folder names, without separators at its end: a_0, a_1 -> a."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*folders, strict=False))
    prefix = "".join(letters[0] for letters in same).rstrip("/\\")
    if len(folders) > 1:
        prefix = prefix.rstrip("_-. ").removesuffix("seed").rstrip("_-. /\\")
    return Path(prefix).name or "runs"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `summarize_runs` as a Markdown table: mean ± spread, APs in points."""
    shown = [name for name in COLUMNS if any(name in row["metrics"] for row in rows)]
    head = ["run", "seeds", *(COLUMNS[name][0] for name in shown)]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        seeds = ", ".join(map(str, row["seeds"]))
        cells = (_cell(row["metrics"].get(name), COLUMNS[name][1]) for name in shown)
        lines.append(f"| {row['name']} | {seeds} | {' | '.join(cells)} |")
    for row in rows:
        machines = [json.dumps(start.get("machine"), sort_keys=True) for start in row["environments"]]
        if len(set(machines)) > 1:
            lines += [
                "",
                f"{row['name']}: its runs differ in machine, versions or commit; --json lists them.",
            ]
    return "\n".join(lines)


def _cell(metric: Mapping[str, Any] | None, factor: float) -> str:
    if metric is None:
        return "-"
    digits = 1 if factor == 100 else 2
    mean = f"{factor * metric['mean']:.{digits}f}"
    return mean if metric["spread"] is None else f"{mean} ± {factor * metric['spread']:.{digits}f}"
