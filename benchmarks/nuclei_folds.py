"""Train the recipe `nuclei` on folds of train and val of nuclei; print the figures of each fold and their spread.

    python benchmarks/nuclei_folds.py --data DIR --runs runs/folds --folds 3 --steps 600

Images of train and val that have KEY=VALUE are divided by content, near-duplicates together. Each fold is val once, and
the other folds are train. All runs start from random weights, with crops of 192 px. A run writes one JSON file when it
is finished and is not repeated; an interrupted one continues at its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectors import train_or_resume
from nuclei import evaluate, figures
from reporting import table

from embedmask.config import Recipe, override
from embedmask.data.coco import CocoInstances
from embedmask.data.near_duplicates import groups_by_content
from embedmask.data.subset import filter_images
from embedmask.files import write_json
from embedmask.machine import describe_machine

HERE = Path(__file__).parent
METRICS = {
    "segm/AP": "mask AP",
    "segm/AP50": "AP50",
    "segm/AP75": "AP75",
    "bbox/AP": "box AP",
    "matching/mAP": "matching mean",
    "matching/AP50": "matching .50",
}
CROP_SIDE = 192


def divide(paths: Sequence[Path], count: int) -> list[list[int]]:
    """Divide images into folds of about the same size, near-duplicates together, in an order of their contents."""
    folds: list[list[int]] = [[] for _ in range(count)]
    for group in groups_by_content(paths):
        min(folds, key=len).extend(group)
    return folds


def write_folds(data: Path, where: str, folder: Path, count: int) -> None:
    """Write a data set for each fold to `folder/K`; images are linked."""
    parts = [json.loads((data / f"{split}.json").read_text(encoding="utf-8")) for split in ("train", "val")]
    joined = {name: [one for part in parts for one in part[name]] for name in ("images", "annotations")}
    used = filter_images(joined, where, data)
    images = used["images"]
    folds = divide([data / "images" / image["file_name"] for image in images], count)
    for number, fold in enumerate(folds):
        target = folder / str(number)
        target.mkdir(parents=True, exist_ok=True)
        if not (target / "images").exists():
            os.symlink((data / "images").resolve(), target / "images", target_is_directory=True)
        held_out = {images[index]["id"] for index in fold}
        for split in ("train", "val"):
            chosen = [image for image in images if (image["id"] in held_out) == (split == "val")]
            ids = {image["id"] for image in chosen}
            content = {
                "images": chosen,
                "annotations": [one for one in used["annotations"] if one["image_id"] in ids],
                "categories": parts[0]["categories"],
            }
            write_json(target / f"{split}.json", content)


def run(data: Path, work: Path, steps: int, score_threshold: float) -> dict[str, Any]:
    """Train on a fold; return the figures of its val."""
    recipe = Recipe.from_yaml(HERE.parent / "configs" / "nuclei.yaml")
    recipe = Recipe(
        model=recipe.model,
        data=override(recipe.data, {"crop_size": CROP_SIDE}, where="folds"),
        train=override(recipe.train, {"max_steps": steps, "epochs": None, "workers": 0}, where="folds"),
    )
    _, minutes = train_or_resume(recipe, data, work)
    val = CocoInstances.open(data, "val")
    report = figures(evaluate(work / "model.safetensors", val), score_threshold)
    return {
        "images": report["images"],
        "objects": report["objects"],
        "metrics": {name: report["metrics"][name] for name in METRICS},
        "core_minutes": minutes,
        "machine": describe_machine(torch.device("cpu")),
    }


def fold_table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures of each fold, their mean and their standard deviation."""
    rows = []
    values = [[one["metrics"][name] for name in METRICS] for one in results]
    for number, (one, row) in enumerate(zip(results, values, strict=True)):
        rows.append(
            (str(number), str(one["images"]), str(one["objects"]), *(f"{value:.3f}" for value in row))
        )
    if len(values) > 1:
        for name, summary in (("mean", statistics.mean), ("standard deviation", statistics.stdev)):
            rows.append((name, "", "", *(f"{summary(column):.3f}" for column in zip(*values, strict=True))))
    return table(["fold", "images", "objects", *METRICS.values()], rows)


def main() -> None:
    """Parse the command line, train what is missing and print the table."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of nuclei")
    parser.add_argument("--runs", type=Path, default=Path("runs/folds"))
    parser.add_argument("--where", default="stardist_dsb2018=train", help="images used, by their records")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--score-threshold", type=float, default=0.35, help="of the matching metrics")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_folds(args.data, args.where, args.runs / "data", args.folds)
    results = []
    for number in range(args.folds):
        file = args.runs / f"{number}_of_{args.folds}_{args.steps}_steps.json"
        if not file.exists():
            data, work = args.runs / "data" / str(number), file.with_suffix("")
            write_json(file, run(data, work, args.steps, args.score_threshold))
        results.append(json.loads(file.read_text(encoding="utf-8")))
    print("\n".join(fold_table(results)))


if __name__ == "__main__":
    main()
