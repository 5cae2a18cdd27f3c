"""Time and memory of box, mask and boundary AP together, in a process of its own, beside the library alone.

    python benchmarks/evaluation.py --images 5000 --objects 36000 --results 40

Ground truth and results are generated: 80 classes, wavy ellipses 16 to 280 px wide in 480 x 640 px, all of
them run lengths. Of an image's results three in five lie about an object, the others anywhere. Seconds of the
processor are given beside those of the clock, which also count other work on the machine. Nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZE, NUM_CLASSES = (480, 640), 80
Shape = tuple[float, float, float, float, float]
"""Centre y and x, radii y and x, px; phase of the waves."""


def random_shape(rng: np.random.Generator) -> Shape:
    """As many small as large ones."""
    y, x = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
    return (y, x, *np.exp(rng.uniform(np.log(8), np.log(140), 2)), rng.uniform(0, 6))


def nudge(shape: Shape, rng: np.random.Generator) -> Shape:
    """About the same place and size."""
    y, x, height, width, phase = shape
    moved = (y + rng.normal(0, 0.1 * height), x + rng.normal(0, 0.1 * width))
    return (*moved, height * rng.uniform(0.8, 1.2), width * rng.uniform(0.8, 1.2), phase)


def record(image_id: int, category: int, shape: Shape) -> dict[str, Any] | None:
    """One mask in COCO's format; None where it lies outside."""
    from embedmask.inference.results import coco_rles
    from embedmask.structures import CropMasks

    y, x, height, width, phase = shape
    top, left = max(int(y - 1.2 * height), 0), max(int(x - 1.2 * width), 0)
    bottom, right = min(int(y + 1.2 * height) + 2, SIZE[0]), min(int(x + 1.2 * width) + 2, SIZE[1])
    if top >= bottom or left >= right:
        return None
    down = (np.arange(top, bottom)[:, None] - y) / height
    across = (np.arange(left, right) - x) / width
    mask = down**2 + across**2 <= (1 + 0.2 * np.sin(5 * np.arctan2(down, across) + phase)) ** 2
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    crops = CropMasks([torch.from_numpy(mask)], [(top, left)], SIZE)
    box = [left + columns[0], top + rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [float(side) for side in box],
        "segmentation": coco_rles(crops)[0],
    }


def generate(
    num_images: int, num_objects: int, per_image: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A ground truth and its results."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        count = (num_objects * image_id) // num_images - (num_objects * (image_id - 1)) // num_images
        shapes = [(int(rng.integers(1, NUM_CLASSES + 1)), random_shape(rng)) for _ in range(count)]
        for category, shape in shapes:
            entry = record(image_id, category, shape)
            if entry is not None:
                annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": int(rng.random() < 0.01)})
        for _ in range(per_image):
            category, shape = int(rng.integers(1, NUM_CLASSES + 1)), random_shape(rng)
            if shapes and rng.random() < 0.6:
                category, shape = shapes[rng.integers(len(shapes))]
                shape = nudge(shape, rng)
            entry = record(image_id, category, shape)
            if entry is not None:
                results.append({**entry, "score": float(rng.random())})
    images = [
        {"id": key, "file_name": f"{key}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for key in range(1, num_images + 1)
    ]
    categories = [{"id": key, "name": str(key)} for key in range(1, NUM_CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def ours(folder: Path, progress: bool) -> None:
    """As `embedmask eval` does it."""
    from embedmask.evaluation.coco import CocoEvaluator

    evaluator = CocoEvaluator(folder / "truth.json")
    evaluator.add(json.loads((folder / "results.json").read_text()))
    evaluator.compute(progress=progress)


def library(folder: Path, progress: bool) -> None:
    """The three evaluations of faster-coco-eval, one after the other."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(folder / "truth.json")
    for kind in ("bbox", "segm", "boundary"):
        results = json.loads((folder / "results.json").read_text())
        if kind != "bbox":
            for result in results:
                del result["bbox"]
        for annotation in truth.anns.values():
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        evaluation = COCOeval_faster(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()


def measure(work: Callable[[Path, bool], None], folder: Path) -> dict[str, float]:
    """What the work cost this process, files read included, imports not."""
    import faster_coco_eval  # noqa: F401

    import embedmask.evaluation.coco  # noqa: F401

    clock, processor = time.perf_counter(), time.process_time()
    work(folder, sys.stderr.isatty())
    return {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    """Generate, evaluate in a fresh process, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000, help="in all")
    parser.add_argument("--results", type=int, default=40, help="an image")
    parser.add_argument("--library", action="store_true", help="measure the library alone as well")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        name, folder = options.measure
        print(json.dumps(measure({"ours": ours, "library": library}[name], Path(folder))))
        return
    with tempfile.TemporaryDirectory() as folder:
        truth, results = generate(options.images, options.objects, options.results)
        (Path(folder) / "truth.json").write_text(json.dumps(truth))
        (Path(folder) / "results.json").write_text(json.dumps(results))
        print(f"{options.images} images, {len(truth['annotations'])} objects, {len(results)} results")
        del truth, results
        for name in ("ours", "library") if options.library else ("ours",):
            words = [sys.executable, __file__, "--measure", name, folder]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout)
            print(name, " · ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
