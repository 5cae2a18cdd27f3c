"""`embedmask predict` as the tests call it, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faster_coco_eval.core import mask as mask_api

COUNT = 12
RATE = 10


def words(given: Path, weights: Path, out: Path, *more: str) -> list[str]:
    base = ["predict", str(given), "--weights", str(weights), "--out", str(out), "--precision", "float32"]
    return [*base, "--score-threshold", "0.45", "--max-detections", "20", "--device", "cpu", *more]


def files(out: Path) -> dict[str, bytes]:
    """Everything that is left, by name, what is hidden included."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def results_of(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The images, and the results of all of them."""
    images = json.loads((out / "images.json").read_text())["images"]
    return images, json.loads((out / "predictions.json").read_text())


def masks_of(results: list[dict[str, Any]], image_id: int) -> list[Any]:
    mine = [result["segmentation"] for result in results if result["image_id"] == image_id]
    return [mask_api.decode(mask).astype(bool) for mask in mine]
