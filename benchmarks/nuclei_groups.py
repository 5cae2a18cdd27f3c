"""Print the matching metrics of a model on quarters of the images, by brightness and by crowding.

    python benchmarks/nuclei_groups.py --weights nuclei --data nuclei --split train --where stardist_dsb2018=train

The brightness of an image is the mean gray value of its objects. Its crowding is the share of objects that have
another one within `NEAR` px in the same row or column.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from nuclei import evaluate
from nuclei_images import Scenes
from reporting import table

from embedmask.data.coco import CocoInstances
from embedmask.evaluation.matching import Labels, matching_metrics

NEAR = 2
"""Number of background pixels between two objects up to which they count as crowded."""
GROUPS = 4
METRICS = {
    "matching/mAP": "matching mean",
    "matching/AP50": ".50",
    "matching/AP90": ".90",
    "matching_pooled/recall50": "recall",
    "matching_pooled/precision50": "precision",
}
"""Metric -> column; recall and precision are those of all objects of the group, at IoU 0.5."""


def crowding(labels: Labels) -> float:
    """Return the share of objects with another one within `NEAR` px in a row or column; 0 without objects."""
    ids = np.unique(labels[labels > 0])
    near = np.zeros(int(labels.max(initial=0)) + 1, dtype=bool)
    for one in (labels, labels.T):
        for step in range(1, NEAR + 2):
            above, below = one[:-step], one[step:]
            pair = (above != below) & (above > 0) & (below > 0)
            near[above[pair]] = near[below[pair]] = True
    return float(near[ids].mean()) if len(ids) else 0.0


def quarters(values: Mapping[int, float]) -> list[list[int]]:
    """Return the image ids in `GROUPS` groups of about equal size, lowest values first."""
    order = sorted(values, key=lambda image_id: values[image_id])
    return [part.tolist() for part in np.array_split(order, GROUPS)]


def group_table(title: str, values: Mapping[int, float], scenes: Scenes) -> list[str]:
    """Return a table with a row for each quarter of the images."""
    rows: list[Sequence[str]] = []
    for ids in quarters(values):
        metrics = matching_metrics(scenes.evaluator, scenes.threshold, ids)
        bounds = f"{values[ids[0]]:.2f} to {values[ids[-1]]:.2f}"
        objects = sum(len(scenes.evaluator.ground_truth.records[image_id]) for image_id in ids)
        rows.append([bounds, str(len(ids)), str(objects), *(f"{metrics[name]:.3f}" for name in METRICS)])
    return table([title, "images", "objects", *METRICS.values()], rows)


def main() -> None:
    """Parse the command line, predict all images and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="model file, or a bundled model")
    parser.add_argument("--data", type=Path, required=True, help="folder of nuclei")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--where", help="KEY=VALUE: only images whose record has it")
    parser.add_argument("--score-threshold", type=float, default=0.35)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = CocoInstances.open(args.data, args.split, image_filter=args.where)
    scenes = Scenes(args.weights.stem, dataset, evaluate(args.weights, dataset), args.score_threshold)
    brightness, crowded = {}, {}
    for image_id in dataset.image_ids:
        labels = scenes.ground_truth(image_id)
        pixels = scenes.pixels(image_id)[labels > 0]
        brightness[image_id] = float(pixels.mean()) if len(pixels) else 0.0
        crowded[image_id] = crowding(labels)
    print("\n".join(group_table("gray value of the objects", brightness, scenes)))
    print("\n".join(group_table("share of crowded objects", crowded, scenes)))


if __name__ == "__main__":
    main()
