"""Make small COCO folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask
from PIL import Image

MakeFolder = Callable[..., Path]
SHARED = Path(__file__).resolve().parents[3] / "shared"


def polygon(x: float, y: float, width: float, height: float) -> list[float]:
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotation(number: int = 1, image_id: int = 5, **changes: Any) -> dict[str, Any]:
    """Return a rectangle of category 7 at (4, 6), 10 wide and 8 high; any key can be changed."""
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": 7,
        "iscrowd": 0,
        "bbox": [4, 6, 10, 8],
        "area": 80,
        "segmentation": [polygon(4, 6, 10, 8)],
    }
    return {**entry, **changes}


def run_lengths(mask: np.ndarray, compressed: bool = True) -> dict[str, Any]:
    """Return a bool mask as JSON run lengths."""
    if compressed:
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": runs["counts"].decode()}
    flat = mask.ravel(order="F")
    stops = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *stops.tolist(), flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Return `make(annotations, sizes, pixels, categories, split)` -> data folder; by default one image, id 5."""

    def make(
        annotations: list[dict[str, Any]],
        sizes: dict[int, tuple[int, int]] | None = None,
        pixels: dict[int, np.ndarray] | None = None,
        categories: list[dict[str, Any]] | None = None,
        split: str = "train",
    ) -> Path:
        sizes = sizes or {5: (40, 30)}
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        images = []
        for image_id, (height, width) in sizes.items():
            array = (pixels or {}).get(image_id, np.full((height, width, 3), 90, dtype=np.uint8))
            Image.fromarray(array).save(folder / f"{image_id}.png")
            images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": categories or [{"id": 90, "name": "star"}, {"id": 7, "name": "disc"}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        return tmp_path

    return make


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED} with real data and reference numbers")
    return SHARED
