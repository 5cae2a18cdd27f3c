"""Ground truth and results in COCO's formats, made up for the tests of evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from embedmask.evaluation.coco import CocoEvaluator

Mask = NDArray[np.bool_]
Record = dict[str, Any]


def rle(mask: Mask) -> Record:
    code = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = code["counts"]
    return {"size": list(mask.shape), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def ellipse(size: tuple[int, int], center: tuple[float, float], radii: tuple[float, float]) -> Mask:
    y, x = np.mgrid[: size[0], : size[1]]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1


def as_result(image_id: int, category_id: int, mask: Mask, score: float) -> Record:
    code = rle(mask)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [float(v) for v in mask_api.toBbox(code)],
        "score": score,
        "segmentation": code,
    }


def as_annotation(number: int, image_id: int, category_id: int, mask: Mask, crowd: bool = False) -> Record:
    result = as_result(image_id, category_id, mask, 1.0)
    del result["score"]
    return {**result, "id": number, "area": float(mask.sum()), "iscrowd": int(crowd)}


def make_truth(annotations: list[Record], sizes: dict[int, tuple[int, int]], categories: list[int]) -> Record:
    return {
        "images": [
            {"id": key, "height": h, "width": w, "file_name": f"{key}.png"} for key, (h, w) in sizes.items()
        ],
        "annotations": annotations,
        "categories": [{"id": key, "name": f"kind {key}"} for key in categories],
    }


def scene(seed: int, images: int = 12, objects: int = 8) -> tuple[Record, list[Record]]:
    """Random objects of all sizes, crowds among them, and shifted, doubled, missed, invented detections.

    Image 1 has no object, category 90 none at all, and image 3 no detection.
    """
    rng = np.random.default_rng(seed)
    sizes = {3 * i + 1: (int(rng.integers(120, 300)), int(rng.integers(120, 300))) for i in range(images)}
    annotations: list[Record] = []
    results: list[Record] = []
    for image_id, size in sizes.items():
        for _ in range(objects):
            category = int(rng.choice([2, 7, 17]))
            radii = tuple(np.exp(rng.uniform(np.log(2), np.log(120), 2)))
            center = (rng.uniform(0, size[0]), rng.uniform(0, size[1]))
            mask = ellipse(size, center, radii)
            if image_id != 1 and mask.any():
                crowd = bool(rng.random() < 0.15)
                annotations.append(as_annotation(len(annotations) + 1, image_id, category, mask, crowd))
            for _ in range(int(rng.integers(0, 3)) if image_id != 7 else 0):
                moved = tuple(c + rng.normal(0, 0.1 * min(radii)) for c in center)
                found = ellipse(size, moved, tuple(r * rng.uniform(0.85, 1.15) for r in radii))
                if found.any():
                    guess = int(rng.choice([category, category, 2, 90]))
                    # few distinct scores, so that ties occur
                    results.append(as_result(image_id, guess, found, float(rng.integers(1, 20)) / 20))
    return make_truth(annotations, sizes, [17, 2, 90, 7]), results


def one_object() -> tuple[Record, Record]:
    """A ground truth of one object, and the result that finds it."""
    mask = ellipse((40, 50), (20, 20), (10, 12))
    return make_truth([as_annotation(7, 1, 2, mask)], {1: (40, 50)}, [2]), as_result(1, 2, mask, 0.5)


def measured(truth: Record, results: list[Record], max_detections: int = 100) -> dict[str, float]:
    """The figures of `results`."""
    evaluator = CocoEvaluator(truth, max_detections)
    evaluator.add(results)
    return evaluator.compute()
