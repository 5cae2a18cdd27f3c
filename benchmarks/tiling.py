"""Measure time and memory of 100 megapixels in tiles, and whether every object is returned once and whole.

python benchmarks/tiling.py known                   # a perfect detector: reading, tiles, merging
python benchmarks/tiling.py resnet50 [SHORT_SIDE]   # a network with random weights: time and memory only

The image has about 20,000 objects, from 10 px to more than a tile, many of which touch; its pixels encode their
numbers. It is generated once and stored in the folder for temporary files. Each measurement runs in a separate process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from reporting import peak_gb
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.data.images import read_image
from embedmask.inference.predictor import Predictor
from embedmask.inference.tiling import tiled_instances
from embedmask.masks import MaskCrop, RunMasks
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import Instances

SIDE, CELL, LARGE = 10_000, 62, 40
TILE, OVERLAP = 1024, 128
FILE = Path(tempfile.gettempdir()) / "embedmask-100-megapixels.png"


def draw() -> None:
    """Write the image: ellipses on a jittered grid, and large discs over them."""
    rng = np.random.default_rng(0)
    ids = np.zeros((SIDE, SIDE), np.int32)
    centers = [(y, x) for y in range(CELL // 2, SIDE, CELL) for x in range(CELL // 2, SIDE, CELL)]
    shapes = [(y + rng.uniform(-9, 9), x + rng.uniform(-9, 9), *rng.uniform(5, 34, 2)) for y, x in centers]
    shapes += [(*rng.uniform(0, SIDE, 2), *[rng.uniform(80, 900)] * 2) for _ in range(LARGE)]
    for number, (cy, cx, ry, rx) in enumerate(shapes, 1):
        top, left = max(int(cy - ry), 0), max(int(cx - rx), 0)
        # a view of the box of the shape; y and x are in the frame of the image
        part = ids[top : int(cy + ry) + 2, left : int(cx + rx) + 2]
        y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        part[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = number
    # 24-bit object numbers as RGB, low byte first
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    Image.fromarray(pixels).save(FILE, compress_level=1)


def numbers(image: Tensor) -> npt.NDArray[np.int32]:
    """Return the object number of each pixel, int32 `[H, W]`."""
    low, middle, high = image.numpy().astype(np.int32)
    ids: npt.NDArray[np.int32] = low + (middle << 8) + (high << 16)
    return ids


def perfect(tiles: Sequence[Tensor]) -> list[Instances]:
    """Return the visible part of each object in each tile; its embedding is the number of the object."""
    return [visible_objects(numbers(tile)) for tile in tiles]


def visible_objects(ids: npt.NDArray[np.int32]) -> Instances:
    """Return the objects of a tile, from the object number of each pixel."""
    areas = [(number, part) for number, part in enumerate(ndimage.find_objects(ids), 1) if part is not None]
    crops = [MaskCrop(ids[y, x] == number, y.start, x.start) for number, (y, x) in areas]
    # larger parts score higher, all below 1
    scores = torch.tensor([1 - 1 / (1 + float(crop.pixels.sum())) for crop in crops])
    return Instances(
        torch.tensor([crop.box for crop in crops], dtype=torch.float32).reshape(-1, 4),
        scores,
        torch.zeros(len(crops), dtype=torch.int64),
        RunMasks.from_crops(crops, (ids.shape[0], ids.shape[1])),
        torch.tensor([[number] for number, _ in areas], dtype=torch.float32).reshape(-1, 1),
        torch.ones(len(crops), 1),
    )


def count_whole(image: Tensor, instances: Instances) -> int:
    """Count the instances whose mask is exactly that of their object."""
    count = 0
    for row, number in enumerate(instances.proposal_embed[:, 0].int().tolist()):
        crop, y, x = instances.masks.crop(row)
        height, width = crop.shape
        # one pixel more on each side shows whether the object continues
        top, left = max(y - 1, 0), max(x - 1, 0)
        around = numbers(image[:, top : y + height + 1, left : x + width + 1]) == number
        inside = around[y - top : y - top + height, x - left : x - left + width]
        count += np.array_equal(inside, crop) and around.sum() == crop.sum()
    return count


def measure_known() -> None:
    """Measure reading, detecting and merging with a perfect detector, and check the objects."""
    start = time.monotonic()
    image = read_image(FILE, any_size=True)
    read, read_peak = time.monotonic() - start, peak_gb()
    spent = [0.0]

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        begin = time.monotonic()
        instances = perfect(tiles)
        spent[0] += time.monotonic() - begin
        return instances

    start = time.monotonic()
    instances = tiled_instances(image, detect, tile=TILE, overlap=OVERLAP)
    merged = time.monotonic() - start - spent[0]
    peak = peak_gb()
    # in strips: np.unique of the whole image needs several copies of it
    strips = [np.unique(numbers(image[:, top : top + 500])) for top in range(0, SIDE, 500)]
    known = len(np.unique(np.concatenate(strips))) - 1
    print(
        f"reading {read:.1f} s, peak {read_peak:.2f} GB; detecting {spent[0]:.1f} s; merging {merged:.1f} s"
    )
    print(
        f"{known} objects: {len(instances)} results, {count_whole(image, instances)} whole; peak {peak:.2f} GB"
    )


def measure_model(backbone: str, short_side: str = "1024") -> None:
    """Measure a network with random weights; a threshold of 0 keeps some hundred candidates per tile."""
    torch.manual_seed(0)
    config = ModelConfig.preset(
        "paper", num_classes=1, backbone=backbone, image_short_side=int(short_side), candidate_threshold=0.0
    )
    predictor = Predictor(EmbedMask(config), ["object"])
    start = time.monotonic()
    detections = predictor(FILE, 0.0, tile=TILE, overlap=OVERLAP)
    seconds = time.monotonic() - start
    print(f"{backbone} at {short_side}: {len(detections)} results, {seconds:.0f} s, peak {peak_gb():.2f} GB")


def main() -> None:
    """Generate the image if it is missing, and measure, each in a separate process."""
    steps: dict[str, Callable[..., None]] = {
        "draw": draw,
        "measure-known": measure_known,
        "measure": measure_model,
    }
    name, *arguments = sys.argv[1:]
    if name in steps:
        steps[name](*arguments)
        return
    measure = ["measure-known"] if name == "known" else ["measure", name, *arguments]
    # a child inherits the peak memory of its parent at the fork: this process stays small
    for step in ([] if FILE.exists() else [["draw"]]) + [measure]:
        subprocess.run([sys.executable, __file__, *step], check=True)


if __name__ == "__main__":
    main()
