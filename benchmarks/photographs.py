"""Train EmbedMask on two detectors and Mask R-CNN on photographs at equal steps; write a section of docs/results.md.

    python benchmarks/photographs.py --data DIR --pretrained FILE --runs runs/photographs [--models tal maskrcnn]
    python benchmarks/photographs.py --data DIR --pretrained FILE --runs runs/photographs --variants
    python benchmarks/photographs.py --page --runs runs/photographs

DIR is a data set in COCO format with train and val, FILE has the ImageNet weights of `tf_efficientnet_lite0`, the
backbone of all three. Images, augmentation and solver are those of `benchmarks/detectors_photographs.yaml`. A run
writes one JSON file when it is finished and is not repeated; an interrupted one continues at its last checkpoint.
Then time and memory of the models of seed 0 are measured, on one thread. `--variants` trains EmbedMask with one changed
setting each instead. `--steps` changes the number of steps; runs of each length are kept apart, and the page compares
them in one table, since models that take the same time have different numbers of steps, and draws AP against time.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectors import BASELINE, minutes_text, recipe_of, train_or_resume
from nuclei import memory, seconds_per_image
from nuclei_page import around_marks
from reporting import table
from table2 import cell_text

from embedmask.config import Recipe, override
from embedmask.data.coco import CocoInstances
from embedmask.files import atomic_write, write_json, write_text
from embedmask.inference.predictor import Predictor
from embedmask.machine import describe_machine, processor_text
from embedmask.weights.checkpoint import load_checkpoint

HERE = Path(__file__).parent
SET = "photographs"
BEGIN, END = (f"<!-- benchmarks/photographs.py: {mark} -->" for mark in ("begin", "end"))
CURVES = ("segm/AP", "boundary/AP", "bbox/AP")
MODELS = {"fcos": "EmbedMask, `fcos`", "tal": "EmbedMask, `tal`", BASELINE: "Mask R-CNN"}
"""Detectors of `detectors.py`, and their names on the page."""
BASE = "tal"
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "embed_stride: 2": {"model": {"embed_stride": 2}},
    "embed_dim: 32": {"model": {"embed_dim": 32}},
    "box_expansion: 1": {"model": {"box_expansion": 1.0}},
    "sample_in_mask: false": {"model": {"sample_in_mask": False}},
    "mask_weight: 1": {"model": {"mask_weight": 1.0}},
    "mask_loss: dice": {"model": {"mask_loss": "dice"}},
    "mask_loss: bce": {"model": {"mask_loss": "bce"}},
    "ema_decay: null": {"train": {"ema_decay": None}},
}
"""Changed settings of `BASE`, by section of the recipe."""
METRICS = {
    "segm/AP": "mask AP",
    "segm/AP50": "AP50",
    "segm/AP75": "AP75",
    "segm/AP90": "AP90",
    "boundary/AP": "boundary AP",
    "bbox/AP": "box AP",
}
COSTS = ("core minutes", "parameters", "CPU ms per image", "peak MB")


def recipe(detector: str, seed: int, pretrained: Path | None, steps: int | None = None) -> Recipe:
    """Return the recipe of a model with the seed, a file of weights and, if given, another number of steps."""
    whole = recipe_of(detector, SET, seed, steps)
    if pretrained is None:
        return whole
    return replace(whole, train=override(whole.train, {"pretrained": str(pretrained)}, where="--pretrained"))


def variant(name: str, seed: int, pretrained: Path | None, steps: int | None = None) -> Recipe:
    """Return the recipe of `BASE` with the changed setting."""
    base = recipe(BASE, seed, pretrained, steps)
    for part, fields in VARIANTS[name].items():
        base = replace(base, **{part: override(getattr(base, part), fields, where=name)})
    return base


def run_name(title: str, seed: int) -> str:
    """Return the name of a run's files."""
    return f"{re.sub('[^a-z0-9.]+', '_', title).strip('_')}_{seed}"


def folder_of(runs: Path, steps: int | None) -> Path:
    """Return the folder of all runs of a length, `steps` or that of the recipe."""
    return runs / f"{steps or recipe('fcos', 0, None).train.max_steps}_steps"


def run(folder: Path, data: Path, recipes: dict[str, Recipe]) -> None:
    """Train the models that have no result yet; the keys of `recipes` are NAME_SEED."""
    for name, own in recipes.items():
        file, work = folder / f"{name}.json", folder / name
        if file.exists():
            continue
        metrics, minutes = train_or_resume(own, data, work)
        checkpoint = load_checkpoint(work / "model.safetensors")
        facts = {
            "core_minutes": minutes,
            "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
            "score_threshold": checkpoint.config.score_thresholds()[0],
            "machine": describe_machine(torch.device("cpu")),
        }
        write_json(file, {**metrics, **facts})
        logging.info("%s: mask AP %.4f, boundary AP %.4f", name, metrics["segm/AP"], metrics["boundary/AP"])


def measure_speed(folder: Path, data: Path, models: Sequence[str]) -> None:
    """Write CPU milliseconds per image and memory of the models of seed 0 to `speed.json`.

    Models are compared in turn: if one was not measured yet, those measured before are measured again.
    """
    measured = read(folder / "speed.json").get("cpu_ms", {})
    if set(models) <= set(measured):
        return
    names = list(dict.fromkeys([*measured, *models]))
    files = {name: folder / f"{name}_0" / "model.safetensors" for name in names}
    dataset = CocoInstances.open(data, "val")
    thresholds = {name: load_checkpoint(path).config.score_thresholds()[0] for name, path in files.items()}
    predictors = {name: Predictor.load(path, device="cpu") for name, path in files.items()}
    seconds = seconds_per_image(predictors, thresholds, dataset, clock=time.process_time)
    result = {
        "cpu_ms": {name: 1000 * value for name, value in seconds.items()},
        "memory_mb": {name: memory(path, dataset, thresholds[name]) for name, path in files.items()},
        "images": len(dataset),
        "machine": describe_machine(torch.device("cpu")),
    }
    write_json(folder / "speed.json", result)


def read(file: Path) -> dict[str, Any]:
    """Return the content of a JSON file, or nothing where it is missing."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def finished_runs(folder: Path, name: str, seeds: int) -> dict[int, dict[str, Any]]:
    """Return the results of the finished runs of a model or variant, by seed."""
    return {k: own for k in range(seeds) if (own := read(folder / f"{run_name(name, k)}.json"))}


def lengths(runs: Path) -> dict[int, Path]:
    """Return the folders of the runs of each length, by their number of steps, in ascending order."""
    folders = {int(path.name.removesuffix("_steps")): path for path in runs.glob("*_steps")}
    return dict(sorted(folders.items()))


def section(runs: Path, seeds: int) -> str:
    """Return the table of the finished runs of all lengths, and the sentences below it."""
    rows, variants, machines = [], [], []
    for steps, folder in lengths(runs).items():
        results = {name: finished_runs(folder, name, seeds) for name in (*MODELS, *VARIANTS)}
        speed = read(folder / "speed.json")
        rows += [model_row(name, steps, [*results[name].values()], speed) for name in MODELS if results[name]]
        variants += variant_lines(results, steps)
        machines += [own["machine"] for by_seed in results.values() for own in by_seed.values()]
        machines += [speed["machine"]] if speed else []
    if not rows:
        return "No run is finished yet, so there is no table."
    columns = ["", "steps", "seeds", *METRICS.values(), *COSTS]
    processors = sorted({processor_text(own) for own in machines})
    versions = sorted({own["torch"] for own in machines})
    commits = sorted({own["commit"] or "unknown" for own in machines})
    where = f"Machine: {'; '.join(processors)}, one thread, torch {', '.join(versions)}"
    return "\n".join([*table(columns, rows), *variants, f"{where}; commit {', '.join(commits)}."])


def model_row(name: str, steps: int, results: list[dict[str, Any]], speed: dict[str, Any]) -> list[str]:
    """Return the row of a model and a number of steps; the time of interrupted runs is a dash."""
    cells = [MODELS[name], f"{steps:,}", str(len(results))]
    cells += [cell_text(results, metric) for metric in METRICS]
    cells += [minutes_text(results), f"{results[0]['parameters'] / 1e6:.1f} M"]
    return [*cells, number(speed, "cpu_ms", name), number(speed.get("memory_mb", {}), name, "images")]


def variant_lines(results: Mapping[str, dict[int, dict[str, Any]]], steps: int) -> list[str]:
    """Return the table of the finished variants of a length beside their base; empty without one."""
    base = results[BASE]
    # a variant is compared on the seeds that its base has, too
    finished = [name for name in VARIANTS if base.keys() & results[name].keys()]
    if not finished:
        return []
    rows = []
    compared = {seed for name in finished for seed in base.keys() & results[name].keys()}
    for name in (BASE, *finished):
        common = sorted(compared & results[name].keys())
        own = [results[name][seed] for seed in common]
        gains = [100 * sum(results[name][k][m] - base[k][m] for k in common) / len(common) for m in METRICS]
        cells = [cell_text(own, m) for m in METRICS] if name == BASE else [f"{gain:+.1f}" for gain in gains]
        rows.append([f"`{name}`", str(len(own)), *cells, minutes_text(own)])
    title = f"`{BASE}` after {steps:,} steps, and with one changed setting each: difference in points, same seeds:"
    return [title, "", *table(["", "seeds", *METRICS.values(), "core minutes"], rows)]


def draw_curves(runs: Path, seeds: int, file: Path) -> None:
    """Draw AP against the core minutes of training, a panel for each metric of `CURVES`, a point for each length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    for marker, (name, title) in zip("osD", MODELS.items(), strict=True):
        points = timed_points(runs, name, seeds)
        if not points:
            continue
        times = [minutes for _, minutes, _ in points]
        for metric, panel in zip(CURVES, panels, strict=True):
            means = [100 * sum(own[metric] for own in results) / len(results) for _, _, results in points]
            panel.plot(times, means, marker=marker, label=title.replace("`", ""))
            for (steps, *_), *point in zip(points, times, means, strict=True):
                place = (6, -11) if name == BASE else (6, -22)
                panel.annotate(f"{steps} steps", point, place, textcoords="offset points", fontsize=8)
    for metric, panel in zip(CURVES, panels, strict=True):
        panel.margins(x=0.45, y=0.15)
        panel.set(title=METRICS[metric], xlabel="core minutes of training", xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend(loc="lower right")
    with atomic_write(file) as temporary:
        figure.savefig(temporary)


def timed_points(runs: Path, name: str, seeds: int) -> list[tuple[int, float, list[dict[str, Any]]]]:
    """Return steps, mean core minutes and results of each length of a model; interrupted runs have no time."""
    points = []
    for steps, folder in lengths(runs).items():
        results = [*finished_runs(folder, name, seeds).values()]
        minutes = [own["core_minutes"] for own in results]
        if results and None not in minutes:
            points.append((steps, sum(minutes) / len(minutes), results))
    return points


def number(values: dict[str, Any], *path: str) -> str:
    """Return a nested value as a whole number, or a dash where it is missing."""
    found: Any = values
    for key in path:
        found = (found or {}).get(key)
    return "-" if found is None else f"{found:.0f}"


def main() -> None:
    """Parse the command line, then train or write the section."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="write the section instead of training")
    parser.add_argument(
        "--variants", action="store_true", help="train EmbedMask with one changed setting each"
    )
    parser.add_argument("--data", type=Path, help="folder with train.json, val.json and images/")
    parser.add_argument(
        "--pretrained", type=Path, help="weights of the backbone; default: downloaded by timm"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=[*MODELS], help="to train")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="steps of each run; default: as in the recipe")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "results.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.page:
        before, after = around_marks(args.out, BEGIN, END)
        write_text(args.out, f"{before}{BEGIN}\n{section(args.runs, args.seeds)}\n{END}{after}")
        draw_curves(args.runs, args.seeds, args.out.parent / "photographs" / "curves.png")
        return
    if args.data is None:
        parser.error("--data DIR is missing")
    make, names = (variant, [*VARIANTS]) if args.variants else (recipe, args.models)
    recipes = {
        run_name(name, seed): make(name, seed, args.pretrained, args.steps)
        for seed in range(args.seeds)
        for name in names
    }
    folder = folder_of(args.runs, args.steps)
    run(folder, args.data, recipes)
    if not args.variants:
        measure_speed(folder, args.data, args.models)


if __name__ == "__main__":
    main()
