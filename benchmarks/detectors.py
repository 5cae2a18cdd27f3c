"""Train the detectors and Mask R-CNN at equal steps, at a size for one core; write docs/detectors.md.

    python benchmarks/detectors.py --set shapes --set nuclei --nuclei DIR --runs runs/detectors
    python benchmarks/detectors.py --page --runs runs/detectors

A run is one detector on the data, steps and schedule of `benchmarks/detectors_SET.yaml`, with one seed. On nuclei,
torchvision's RetinaNet and ours with towers of the same length are also compared. A finished run writes one JSON file
and is not repeated; an interrupted one continues at its last checkpoint. `--steps` shortens the runs, to try the
script; their results are kept apart and are not in the page.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import retinanet_baseline  # registers its type of model
import torch
from reporting import table
from table2 import cell_text, prepare, verdict

from embedmask.config import Recipe, override
from embedmask.config.model_types import model_from_dict
from embedmask.files import write_json, write_text
from embedmask.training.fit import train

HERE = Path(__file__).parent
SETS = ("shapes", "nuclei")
METRICS = ("bbox/AP", "segm/AP", "segm/AP50")
BASE, BASELINE = "fcos", "maskrcnn"
DETECTORS: dict[str, dict[str, Any]] = {
    "fcos": {"detector": "fcos"},
    # squares of 8 to 90 px on strides 4 to 32
    "retinanet": {"detector": "retinanet", "anchor_scales": [2.0, 2.8284]},
    "tal": {"detector": "tal", "box_weight": 2.0},
    "fcos, task-aligned": {"assigner": "task_aligned", "box_weight": 2.0},
}
"""Model fields of each detector."""
RETINANET_BASELINE = "torchvision's RetinaNet"
# torchvision's towers have four convolutions
OURS: dict[str, dict[str, Any]] = {
    "retinanet, four convolutions": {**DETECTORS["retinanet"], "tower_convs": 4},
    "the same, boxes alone": {
        **DETECTORS["retinanet"],
        **{"tower_convs": 4, "mask_weight": 0.0, "smooth_weight": 0.0, "sample_in_mask": False},
    },
}
"""Model fields of our RetinaNet beside torchvision's; alone, boxes have no positives and no losses that need masks."""
RETINANET_SET = "nuclei"
"""Set on which RetinaNet is compared with torchvision's."""
ANCHOR_SIZES = {
    **dict.fromkeys(SETS, (8, 16, 32, 64, 128)),
    "photographs": (16, 32, 64, 128, 256),
}
"""Anchors of Mask R-CNN by set; `photographs` is the set of photographs.py."""
SHARED = (
    "backbone",
    "backbone_norm",
    "frozen_stages",
    "image_norm",
    "image_short_side",
    "image_long_side",
    "channels",
    "max_detections",
)
"""Fields that torchvision's models take from the recipe of the set."""


def recipe_of(detector: str, dataset: str, seed: int, steps: int | None = None) -> Recipe:
    """Return the recipe of a set with the detector's fields, the seed and, if given, another number of steps."""
    base = Recipe.from_yaml(HERE / f"detectors_{dataset}.yaml")
    shared = {name: getattr(base.model, name) for name in SHARED}
    if detector == BASELINE:
        values = {"kind": BASELINE, "anchor_sizes": ANCHOR_SIZES[dataset], **shared}
        model = model_from_dict(values, where=detector)
    elif detector == RETINANET_BASELINE:
        more = {name: getattr(base.model, name) for name in ("strides", "norm_groups", "nms_threshold")}
        scales = DETECTORS["retinanet"]["anchor_scales"]
        values = {"kind": retinanet_baseline.NAME, "anchor_scales": scales, **more, **shared}
        model = model_from_dict(values, where=detector)
    else:
        model = override(base.model, {**DETECTORS, **OURS}[detector], where=detector)
    changes = {"seed": seed} if steps is None else {"seed": seed, "max_steps": steps}
    return Recipe(model=model, data=base.data, train=override(base.train, changes, where=detector))


def run(sets: list[str], seeds: int, runs: Path, nuclei: Path | None, steps: int | None) -> None:
    """Train every detector that has no result yet."""
    # all detectors of a seed before the next seed: a stopped script leaves complete tables
    for seed in range(seeds):
        for dataset in sets:
            data = prepare(dataset, runs, nuclei, coco=None)
            extra = (*OURS, RETINANET_BASELINE) if dataset == RETINANET_SET else ()
            for detector in (*DETECTORS, *extra, BASELINE):
                file = result_file(runs, dataset, detector, seed, steps)
                if not file.exists():
                    run_one(recipe_of(detector, dataset, seed, steps), data, file)


def result_file(runs: Path, dataset: str, detector: str, seed: int, steps: int | None = None) -> Path:
    """Return the file of a run's metrics."""
    folder = "results" if steps is None else f"results_{steps}_steps"
    name = detector.replace(", ", "_").replace("'s ", "_").replace(" ", "_")
    return runs / folder / dataset / f"{name}_{seed}.json"


def run_one(recipe: Recipe, data: Path, file: Path) -> None:
    """Train a recipe on the CPU; write its metrics and its time, and delete the rest."""
    work = file.with_suffix(".work")
    metrics, minutes = train_or_resume(recipe, data, work)
    write_json(file, {**metrics, "core_minutes": minutes})
    shutil.rmtree(work)
    logging.info("%s: box AP %.4f, mask AP %.4f", file.stem, metrics["bbox/AP"], metrics["segm/AP"])


def train_or_resume(recipe: Recipe, data: Path, work: Path) -> tuple[dict[str, Any], float | None]:
    """Train a recipe on the CPU in `work`, or continue its interrupted run there.

    Returns:
        The run's metrics and its core minutes; None after an interruption, since they are only those of the last part.
    """
    resume, cpu = (work / "recipe.yaml").is_file(), time.process_time()
    metrics = train(recipe, data, work, device="cpu", resume=resume)
    return metrics, None if resume else (time.process_time() - cpu) / 60


def read_results(runs: Path, dataset: str, detector: str, seeds: int) -> dict[int, dict[str, Any]]:
    """Return the metrics of the finished runs of a detector by seed."""
    files = {seed: result_file(runs, dataset, detector, seed) for seed in range(seeds)}
    return {
        seed: json.loads(file.read_text(encoding="utf-8")) for seed, file in files.items() if file.exists()
    }


def table_lines(runs: Path, dataset: str, seeds: int) -> list[str]:
    """Return the tables of a set: figures of each detector, and its differences from FCOS; empty without runs."""
    # finished runs only, by detector and seed
    results = {name: read_results(runs, dataset, name, seeds) for name in (*DETECTORS, BASELINE)}
    if not any(results.values()):
        return []
    count = max(map(len, results.values()))
    lines = [
        f"## {dataset}",
        "",
        f"{count} {'seed' if count == 1 else 'seeds'}. A dash marks a detector without a run.",
        "",
    ]
    rows = [(name, *figure_cells([*by_seed.values()], METRICS)) for name, by_seed in results.items()]
    lines += table(["detector", "box AP", "mask AP", "mask AP50", "core minutes"], rows)
    # paired by seed: differences of runs that share data order and initial weights
    gains = [
        (name, *(difference(results[BASE], by_seed, metric) for metric in METRICS))
        for name, by_seed in results.items()
        if name != BASE
    ]
    lines += table(["difference from fcos", "box AP", "mask AP", "mask AP50"], gains)
    return [*lines, *retinanet_lines(runs, dataset, seeds)]


def retinanet_lines(runs: Path, dataset: str, seeds: int) -> list[str]:
    """Return the table of RetinaNet beside torchvision's; empty without runs of both."""
    baseline = read_results(runs, dataset, RETINANET_BASELINE, seeds)
    ours = {name: by_seed for name in OURS if (by_seed := read_results(runs, dataset, name, seeds))}
    if not ours or not baseline:
        return []
    metrics = ("bbox/AP", "bbox/AP50", "bbox/AP75")
    rows = [
        (name, *figure_cells([*by_seed.values()], metrics))
        for name, by_seed in {**ours, RETINANET_BASELINE: baseline}.items()
    ]
    gains = [
        (f"{name}, above torchvision's", *(difference(baseline, by_seed, metric) for metric in metrics), "")
        for name, by_seed in ours.items()
    ]
    head = ["", "box AP", "box AP50", "box AP75", "core minutes"]
    return [f"### RetinaNet beside torchvision's, {dataset}", "", *table(head, [*rows, *gains])]


def figure_cells(results: list[dict[str, Any]], metrics: Sequence[str]) -> list[str]:
    """Return the cells of a model's row: its metrics, and its core minutes."""
    return [*(cell_text(results, metric) for metric in metrics), minutes_text(results)]


def minutes_text(results: list[dict[str, Any]]) -> str:
    """Return the mean core minutes of the uninterrupted runs."""
    minutes = [result["core_minutes"] for result in results if result["core_minutes"] is not None]
    return f"{sum(minutes) / len(minutes):.1f}" if minutes else "-"


def difference(base: dict[int, dict[str, float]], other: dict[int, dict[str, float]], metric: str) -> str:
    """Return whether a detector is above `base` over the seeds that both have, as text."""
    seeds = sorted(base.keys() & other.keys())
    if not seeds:
        return "-"
    low, high = ([results[seed][metric] for seed in seeds] for results in (base, other))
    return f"{100 * (high[0] - low[0]):+.1f}, one seed" if len(seeds) == 1 else verdict(low, high)


def write_page(runs: Path, seeds: int, out: Path) -> None:
    """Write the page: the introduction, then the tables of the runs that exist."""
    introduction = (HERE / "detectors_introduction.md").read_text(encoding="utf-8")
    lines = [line for dataset in SETS for line in table_lines(runs, dataset, seeds)]
    lines = lines or ["No run of this comparison is finished yet, so there is no table."]
    write_text(out, introduction.rstrip() + "\n\n" + "\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Parse the command line, then train or write the page."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="write the page instead of training")
    parser.add_argument("--set", action="append", choices=SETS, dest="sets", help="default: both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps of each run, to try the script")
    parser.add_argument("--runs", type=Path, default=Path("runs/detectors"))
    parser.add_argument("--nuclei", type=Path, help="folder with nuclei's train.json, val.json and images/")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "detectors.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.page:
        write_page(args.runs, args.seeds, args.out)
    else:
        run(args.sets or list(SETS), args.seeds, args.runs, args.nuclei, args.steps)


if __name__ == "__main__":
    main()
