"""Measure time and memory of box, mask and boundary AP together, and of faster-coco-eval alone.

    python benchmarks/evaluation.py --images 5000 --objects 36000 --results 40

Ground truth and results are generated: 80 classes, wavy ellipses 16 to 280 px wide in images of 480 x 640 px, all as
run lengths. Three fifths of the results lie near an object, the others at random positions. Each measurement runs in a
separate process. Processor time is printed beside wall time, which includes other load on the machine. No files are
left behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from reporting import peak_gb

SIZE, NUM_CLASSES = (480, 640), 80
Shape = tuple[float, float, float, float, float]
"""Center y and x, radii y and x, px; phase of the waves."""


def random_shape(rng: np.random.Generator) -> Shape:
    """Return a random shape; the logarithm of the radii is uniform."""
    y, x = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
    return (y, x, *np.exp(rng.uniform(np.log(8), np.log(140), 2)), rng.uniform(0, 6))


def nudge(shape: Shape, rng: np.random.Generator) -> Shape:
    """Return a shape of similar position and size."""
    y, x, height, width, phase = shape
    moved = (y + rng.normal(0, 0.1 * height), x + rng.normal(0, 0.1 * width))
    return (*moved, height * rng.uniform(0.8, 1.2), width * rng.uniform(0.8, 1.2), phase)


def record(image_id: int, category: int, shape: Shape) -> dict[str, Any] | None:
    """Return a record of a mask in COCO's format; None where the shape lies outside the image."""
    from embedmask.masks import MaskCrop, RunMasks

    y, x, height, width, phase = shape
    # the waves reach 1.2 radii; only this crop of the image is evaluated
    top, left = max(int(y - 1.2 * height), 0), max(int(x - 1.2 * width), 0)
    bottom, right = min(int(y + 1.2 * height) + 2, SIZE[0]), min(int(x + 1.2 * width) + 2, SIZE[1])
    if top >= bottom or left >= right:
        return None
    down = (np.arange(top, bottom)[:, None] - y) / height
    across = (np.arange(left, right) - x) / width
    # normalized polar radius against 1 + 0.2 sin(5 angle + phase), bool [h, w]
    mask = down**2 + across**2 <= (1 + 0.2 * np.sin(5 * np.arctan2(down, across) + phase)) ** 2
    if not mask.any():
        return None
    masks = RunMasks.from_crops([MaskCrop(mask, top, left)], SIZE)
    x1, y1, x2, y2 = masks.boxes()[0].tolist()
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [float(side) for side in (x1, y1, x2 - x1, y2 - y1)],
        "segmentation": masks.to_coco_rle()[0],
    }


def generate(
    num_images: int, num_objects: int, per_image: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a ground truth and its results."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        # spreads the objects evenly: the counts of all images add up to num_objects
        count = (num_objects * image_id) // num_images - (num_objects * (image_id - 1)) // num_images
        shapes = [(int(rng.integers(1, NUM_CLASSES + 1)), random_shape(rng)) for _ in range(count)]
        for category, shape in shapes:
            entry = record(image_id, category, shape)
            if entry is not None:
                annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": int(rng.random() < 0.01)})
        for _ in range(per_image):
            category, shape = int(rng.integers(1, NUM_CLASSES + 1)), random_shape(rng)
            # three fifths of the results are near an object, with its class
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


def evaluate_embedmask(folder: Path, progress: bool) -> None:
    """Compute the three APs as `embedmask eval` does."""
    from embedmask.evaluation.coco import CocoEvaluator

    evaluator = CocoEvaluator(folder / "ground_truth.json")
    evaluator.add(json.loads((folder / "results.json").read_text()))
    evaluator.compute(progress=progress)


def evaluate_library(folder: Path, progress: bool) -> None:
    """Compute the three APs with faster-coco-eval, one after the other."""
    from faster_coco_eval import COCO, COCOeval_faster

    gt = COCO(folder / "ground_truth.json")
    for iou_type in ("bbox", "segm", "boundary"):
        results = json.loads((folder / "results.json").read_text())
        # without a box, loadRes computes the area of a result from its mask
        if iou_type != "bbox":
            for result in results:
                del result["bbox"]
        for annotation in gt.anns.values():
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        evaluation = COCOeval_faster(gt, gt.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()


def measure(work: Callable[[Path, bool], None], folder: Path) -> dict[str, float]:
    """Return time and peak memory of an evaluation in this process, including reading files, excluding imports."""
    import faster_coco_eval  # noqa: F401

    import embedmask.evaluation.coco  # noqa: F401

    clock, processor = time.perf_counter(), time.process_time()
    work(folder, sys.stderr.isatty())
    return {
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "peak_gb": peak_gb(),
    }


def main() -> None:
    """Generate the files, evaluate them in a new process and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--objects", type=int, default=36_000, help="in total")
    parser.add_argument("--results", type=int, default=40, help="per image")
    parser.add_argument("--library", action="store_true", help="measure the library alone as well")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        name, folder = options.measure
        print(
            json.dumps(
                measure({"embedmask": evaluate_embedmask, "library": evaluate_library}[name], Path(folder))
            )
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        ground_truth, results = generate(options.images, options.objects, options.results)
        (Path(folder) / "ground_truth.json").write_text(json.dumps(ground_truth))
        (Path(folder) / "results.json").write_text(json.dumps(results))
        print(f"{options.images} images, {len(ground_truth['annotations'])} objects, {len(results)} results")
        # frees the memory that the measured processes need
        del ground_truth, results
        for name in ("embedmask", "library") if options.library else ("embedmask",):
            words = [sys.executable, __file__, "--measure", name, folder]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(done.stdout)
            print(name, " · ".join(f"{key} {value:.2f}" for key, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
