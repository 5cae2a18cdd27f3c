"""Run the five ablations of the paper's Table 2, on COCO or at a size for two cores; write docs/ablations.md.

    python benchmarks/table2.py run --data shapes --data nuclei --nuclei DIR --runs runs/table2
    python benchmarks/table2.py run --data coco --coco DIR --seeds 1 --runs runs/table2
    python benchmarks/table2.py report --runs runs/table2

On COCO a cell is its recipe `configs/ablations/CELL.yaml`. On the other sets it applies the model fields of that recipe
to `benchmarks/table2_SET.yaml`: all cells of a set have the same data, steps and schedule. Cells with the same model
(the paper's table repeats its best one) are trained once. A finished run writes one JSON file and is not repeated, so
the script can be stopped at any time.

`--override SECTION.FIELD=VALUE` changes every cell, for a trial: --override train.max_steps=2.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from reporting import table
from scipy.stats import t  # type: ignore[import-untyped]

from embedmask.config import Recipe, override, read_yaml
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.run import evaluate_weights
from embedmask.files import write_json, write_text
from embedmask.synthetic.dataset import make_shapes
from embedmask.training.fit import train

HERE = Path(__file__).parent
CELLS = HERE.parent / "configs" / "ablations"
SETS = ("shapes", "nuclei", "coco")
METRICS = ("segm/AP", "segm/AP50", "segm/AP75")
BY_SIZE = (*METRICS, "segm/AP_small", "segm/AP_medium", "segm/AP_large")
SMALL = "segm/AP_small"
TITLES = dict(zip(BY_SIZE, ("AP", "AP50", "AP75", "APs", "APm", "APl"), strict=True))
NUCLEI_SIDE = 360
"""Maximum side of the nuclei images used, px; with larger ones evaluation takes as long as training."""


@dataclass(frozen=True)
class Table:
    """One of the five ablations: its question, its settings in the paper's ascending order of mask AP, its columns."""

    letter: str
    question: str
    cells: dict[str, str]
    metrics: tuple[str, ...] = METRICS


TABLES = (
    Table(
        "a",
        "margin",
        {
            "a_hinge": "hinge loss, fixed margins",
            "a_constant": "mask loss, constant margin",
            "a_predicted": "mask loss, predicted margin",
        },
        BY_SIZE,
    ),
    Table(
        "b",
        "cluster center",
        {"b_pixel": "pixel embedding at the location", "b_proposal": "proposal embedding"},
        BY_SIZE,
    ),
    Table(
        "c",
        "samples for q and s",
        {
            "c_neither": "neither in mask nor IoU > 0.5",
            "c_in_mask": "in mask",
            "c_in_mask_iou": "in mask and IoU > 0.5",
        },
    ),
    Table(
        "d", "pixels of the mask loss", {"d_box_1.5": "box x1.5", "d_box_1.0": "box", "d_box_1.2": "box x1.2"}
    ),
    Table("e", "embedding dimension", {"e_dim_8": "8", "e_dim_16": "16", "e_dim_32": "32"}),
)

PAPER: dict[str, tuple[float, ...]] = {
    "a_hinge": (30.0, 52.0, 30.2, 13.8, 33.1, 43.4),
    "a_constant": (33.1, 53.8, 34.7, 14.7, 36.4, 47.9),
    "a_predicted": (33.3, 54.0, 35.0, 15.8, 36.6, 47.7),
    "b_pixel": (30.9, 52.0, 31.9, 14.0, 34.9, 44.5),
    "b_proposal": (33.3, 54.0, 35.0, 15.8, 36.6, 47.7),
    "c_neither": (32.6, 53.9, 34.0),
    "c_in_mask": (32.9, 53.7, 34.3),
    "c_in_mask_iou": (33.3, 54.0, 35.0),
    "d_box_1.0": (33.3, 54.0, 35.0),
    "d_box_1.2": (33.5, 54.1, 35.3),
    "d_box_1.5": (33.1, 53.7, 34.9),
    "e_dim_8": (33.0, 54.0, 34.6),
    "e_dim_16": (33.2, 54.0, 34.8),
    "e_dim_32": (33.3, 54.0, 35.0),
}
"""Mask AP, AP50, AP75 on COCO minival, R-50, 1x; in (a) and (b) also AP by size, small to large (Table 2)."""


def recipe_of(cell: str, dataset: str, seed: int = 0, changes: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a cell on a set with the seed and the overrides `SECTION.FIELD=VALUE`."""
    if dataset == "coco":
        recipe = Recipe.from_yaml(CELLS / f"{cell}.yaml")
    else:
        recipe = Recipe.from_yaml(HERE / f"table2_{dataset}.yaml")
        # the box expansion of the paper's final model, unless the cell changes it
        method = {"box_expansion": 1.2, **(read_yaml(CELLS / f"{cell}.yaml").get("model") or {})}
        recipe = replace(recipe, model=override(recipe.model, method, where=cell))
    for change in (f"train.seed={seed}", *changes):
        name, equals, value = change.partition("=")
        section, dot, field = name.partition(".")
        if not (equals and dot and section in ("model", "data", "train")):
            raise BadInput(f"--override {change}: write SECTION.FIELD=VALUE, such as train.max_steps=2")
        part = override(
            getattr(recipe, section), {field: yaml.safe_load(value)}, where=f"--override {change}"
        )
        recipe = replace(recipe, **{section: part})
    return recipe


def trained_as(cell: str, dataset: str) -> str:
    """Return the first cell with the same model, whose runs stand for those of this cell."""
    return next(other for other in PAPER if recipe_of(other, dataset) == recipe_of(cell, dataset))


def prepare(dataset: str, runs: Path, nuclei: Path | None, coco: Path | None) -> Path:
    """Return the folder of a set's data; those of shapes and nuclei are created if missing."""
    if dataset == "coco":
        if coco is None:
            raise SystemExit(
                "--coco DIR is missing; give COCO's folder with annotations/, train2017/ and val2017/"
            )
        return coco
    folder = runs / "data" / dataset
    if not folder.exists():
        if dataset == "shapes":
            make_shapes(folder, train=2000, val=150, size=128, seed=0)
        else:
            write_small_nuclei(nuclei, folder)
    return folder


def write_small_nuclei(source: Path | None, folder: Path) -> None:
    """Write the small fluorescence images of both splits as a data set; the image folder is a link."""
    if source is None:
        raise SystemExit(
            "--nuclei DIR is missing; give the folder of nuclei with train.json, val.json and images/"
        )
    folder.mkdir(parents=True)
    (folder / "images").symlink_to((source / "images").resolve())
    for split in ("train", "val"):
        content = json.loads((source / f"{split}.json").read_text(encoding="utf-8"))
        images = [image for image in content["images"] if is_small(image)]
        ids = {image["id"] for image in images}
        annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in ids]
        write_json(folder / f"{split}.json", {**content, "images": images, "annotations": annotations})


def is_small(image: dict[str, Any]) -> bool:
    """Return whether an image record of nuclei is used here."""
    return image["modality"] == "fluorescence" and max(image["width"], image["height"]) <= NUCLEI_SIDE


def run(args: argparse.Namespace, sets: list[str]) -> None:
    """Train every cell that has no result yet; the arguments are those of the command line."""
    # all cells of a seed before the next seed: a stopped script leaves complete tables
    for seed in range(args.seeds):
        for dataset in sets:
            data = prepare(dataset, args.runs, args.nuclei, args.coco)
            for cell in PAPER:
                if (
                    trained_as(cell, dataset) == cell
                    and not result_file(args.runs, dataset, cell, seed).exists()
                ):
                    recipe = recipe_of(cell, dataset, seed, args.override)
                    run_one(cell, dataset, recipe, runs=args.runs, data=data, device=args.device)


def result_file(runs: Path, dataset: str, cell: str, seed: int) -> Path:
    """Return the file of a run's metrics."""
    return runs / "results" / dataset / f"{cell}_{seed}.json"


def run_one(cell: str, dataset: str, recipe: Recipe, *, runs: Path, data: Path, device: str) -> None:
    """Train one cell; write its metrics and delete the rest."""
    seed = recipe.train.seed
    work = runs / f"work_{dataset}_{cell}_{seed}"
    # of a run that was stopped
    shutil.rmtree(work, ignore_errors=True)
    start = time.monotonic()
    train(recipe, data, work, device=device)
    metrics = evaluate_as_authors(work / "model.safetensors", data, device)
    write_json(result_file(runs, dataset, cell, seed), metrics)
    shutil.rmtree(work)
    logging.info(
        "%s %s seed %d: AP %.4f, %.0f s", dataset, cell, seed, metrics["segm/AP"], time.monotonic() - start
    )


def evaluate_as_authors(weights: Path, data: Path, device: str) -> dict[str, Any]:
    """Return the metrics on val with masks placed as the authors' code does, as in the paper's table."""
    return evaluate_weights(weights, CocoInstances.open(data, "val"), reference_masks=True, device=device)


def read_results(runs: Path, dataset: str, cell: str) -> list[dict[str, float | None]]:
    """Return the metrics of the finished seeds of a cell, by ascending seed."""
    folder = runs / "results" / dataset
    files = sorted(
        folder.glob(f"{trained_as(cell, dataset)}_*.json"), key=lambda f: int(f.stem.rpartition("_")[2])
    )
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Return mean and sample standard deviation; the latter is nan for fewer than two values."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def verdict(low: Sequence[float | None], high: Sequence[float | None]) -> str:
    """Return whether `high` is significantly above `low`, as text: a paired t-test over the seeds, 95 %.

    None: not measured, in runs of earlier versions or on data without objects of a size.
    """
    pairs = zip(low, high, strict=False)
    differences = [b - a for a, b in pairs if a is not None and b is not None]
    if not differences:
        return "not measured"
    if len(differences) < 2:
        return "one seed is not enough"
    mean, spread = mean_and_spread(differences)
    # half width of the 95 % confidence interval of the mean difference (Student's t)
    half = float(t.ppf(0.975, len(differences) - 1)) * spread / math.sqrt(len(differences))
    interval = f"{100 * mean:+.1f} ± {100 * half:.1f}"
    if abs(mean) <= half:
        return f"spread can't tell ({interval})"
    return f"{'holds' if mean > 0 else 'does not hold'} ({interval})"


def cell_text(results: list[dict[str, float | None]], metric: str) -> str:
    """Format `mean ± spread` in AP points, or the value of a single seed."""
    values = [value for result in results if (value := result.get(metric)) is not None]
    if not values:
        return "-"
    mean, spread = mean_and_spread(values)
    return f"{100 * mean:.1f}" if len(values) == 1 else f"{100 * mean:.1f} ± {100 * spread:.1f}"


def table_lines(ablation: Table, runs: Path, sets: list[str]) -> list[str]:
    """Return the tables of one ablation: the paper's figures and the measured ones, and each step of its order."""
    results = {(cell, name): read_results(runs, name, cell) for cell in ablation.cells for name in sets}
    columns = [TITLES[metric] for metric in ablation.metrics]
    head = [
        "setting",
        f"paper {' / '.join(columns)}",
        *(f"{name} {column}" for name in sets for column in columns),
    ]
    rows = [
        (
            label,
            " / ".join(f"{value:.1f}" for value in PAPER[cell]),
            *(cell_text(results[cell, name], metric) for name in sets for metric in ablation.metrics),
        )
        for cell, label in ablation.cells.items()
    ]
    steps = []
    # settings are in the paper's ascending order: is each one above its predecessor?
    for metric in ("segm/AP", SMALL) if SMALL in ablation.metrics else ("segm/AP",):
        place = BY_SIZE.index(metric)
        of_small = " for small objects" if metric == SMALL else ""
        for low, high in itertools.pairwise(ablation.cells):
            pairs = [
                [[result.get(metric) for result in results[cell, name]] for cell in (low, high)]
                for name in sets
            ]
            gain = PAPER[high][place] - PAPER[low][place]
            step = f"{ablation.cells[high]} above {ablation.cells[low]}{of_small} ({gain:+.1f})"
            steps.append((step, *(verdict(*pair) for pair in pairs)))
    title = f"## ({ablation.letter}) {ablation.question}"
    return [title, "", *table(head, rows), *table(["the paper's order", *sets], steps)]


def report(runs: Path, sets: list[str], out: Path, introduction: str) -> None:
    """Write the page: the introduction, then the tables."""
    lines = [line for ablation in TABLES for line in table_lines(ablation, runs, sets)]
    write_text(out, introduction.rstrip() + "\n\n" + "\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Parse the command line and run the action."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument(
        "--data", "--set", action="append", choices=SETS, dest="sets", help="default: shapes and nuclei"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/table2"))
    parser.add_argument("--nuclei", type=Path, help="folder with nuclei's train.json, val.json and images/")
    parser.add_argument("--coco", type=Path, help="COCO's folder with annotations/, train2017/ and val2017/")
    parser.add_argument("--override", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "ablations.md")
    args = parser.parse_args()
    sets = args.sets or ["shapes", "nuclei"]
    if args.action == "run":
        run(args, sets)
    else:
        report(args.runs, sets, args.out, (HERE / "table2_introduction.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
