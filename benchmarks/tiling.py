"""Time and memory of 100 megapixels in tiles, and whether every object comes out once and whole.

python benchmarks/tiling.py known                   # a detector without error: reading, tiles, joining
python benchmarks/tiling.py resnet50 [SHORT_SIDE]   # a network with random weights: time and memory alone

The image holds some 20,000 objects, from 10 px to more than a tile, many of which touch; its pixels are their
numbers. It is made once and kept in the folder for temporary files; each measurement has a process of its own.
"""

from __future__ import annotations

import resource
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
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.data.images import read_image
from embedmask.inference.predictor import Predictor
from embedmask.inference.tiling import tiled_instances
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import CropMasks, Instances

SIDE, CELL, LARGE = 10_000, 62, 40
TILE, OVERLAP = 1024, 128
FILE = Path(tempfile.gettempdir()) / "embedmask-100-megapixels.png"


def draw() -> None:
    """Ellipses on a jittered grid, then large discs over them."""
    rng = np.random.default_rng(0)
    ids = np.zeros((SIDE, SIDE), np.int32)
    places = [(y, x) for y in range(CELL // 2, SIDE, CELL) for x in range(CELL // 2, SIDE, CELL)]
    shapes = [(y + rng.uniform(-9, 9), x + rng.uniform(-9, 9), *rng.uniform(5, 34, 2)) for y, x in places]
    shapes += [(*rng.uniform(0, SIDE, 2), *[rng.uniform(80, 900)] * 2) for _ in range(LARGE)]
    for number, (cy, cx, ry, rx) in enumerate(shapes, 1):
        top, left = max(int(cy - ry), 0), max(int(cx - rx), 0)
        part = ids[top : int(cy + ry) + 2, left : int(cx + rx) + 2]
        y, x = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
        part[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = number
    pixels = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    Image.fromarray(pixels).save(FILE, compress_level=1)


def numbers(image: Tensor) -> npt.NDArray[np.int32]:
    """Of the objects that an image shows, `[H, W]`."""
    low, middle, high = image.numpy().astype(np.int32)
    ids: npt.NDArray[np.int32] = low + (middle << 8) + (high << 16)
    return ids


def perfect(tiles: Sequence[Tensor]) -> list[Instances]:
    """What a tile shows of each object; the number of an object is its embedding."""
    return [_seen(numbers(tile)) for tile in tiles]


def _seen(ids: npt.NDArray[np.int32]) -> Instances:
    areas = [(number, part) for number, part in enumerate(ndimage.find_objects(ids), 1) if part is not None]
    crops = [torch.from_numpy(ids[part] == number) for number, part in areas]
    boxes = [(x.start, y.start, x.stop, y.stop) for _, (y, x) in areas]
    scores = torch.tensor([1 - 1 / (1 + float(crop.sum())) for crop in crops])
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores,
        torch.zeros(len(crops), dtype=torch.int64),
        CropMasks(crops, [(y.start, x.start) for _, (y, x) in areas], (ids.shape[0], ids.shape[1])),
        torch.tensor([[number] for number, _ in areas], dtype=torch.float32).reshape(-1, 1),
        torch.ones(len(crops), 1),
    )


def whole(image: Tensor, found: Instances) -> int:
    """Results whose mask is exactly that of their object."""
    count = 0
    for row, number in enumerate(found.proposal_embed[:, 0].int().tolist()):
        (y, x), crop = found.masks.offsets[row], found.masks.crops[row].numpy()
        height, width = crop.shape
        # a margin shows whether the object goes on
        top, left = max(y - 1, 0), max(x - 1, 0)
        around = numbers(image[:, top : y + height + 1, left : x + width + 1]) == number
        inside = around[y - top : y - top + height, x - left : x - left + width]
        count += np.array_equal(inside, crop) and around.sum() == crop.sum()
    return count


def peak_gb() -> float:
    """The most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure_known() -> None:
    """A detector without error."""
    start = time.monotonic()
    image = read_image(FILE, any_size=True)
    read, read_peak = time.monotonic() - start, peak_gb()
    spent = [0.0]

    def find(tiles: Sequence[Tensor]) -> list[Instances]:
        begin = time.monotonic()
        found = perfect(tiles)
        spent[0] += time.monotonic() - begin
        return found

    start = time.monotonic()
    found = tiled_instances(image, find, tile=TILE, overlap=OVERLAP)
    joined = time.monotonic() - start - spent[0]
    peak = peak_gb()
    strips = [np.unique(numbers(image[:, top : top + 500])) for top in range(0, SIDE, 500)]
    known = len(np.unique(np.concatenate(strips))) - 1
    print(
        f"reading {read:.1f} s, {read_peak:.2f} GB at most; looking {spent[0]:.1f} s; joining {joined:.1f} s"
    )
    print(f"{known} objects: {len(found)} results, {whole(image, found)} whole; {peak:.2f} GB at most")


def measure_model(backbone: str, short_side: str = "1024") -> None:
    """Random weights; the threshold lets some hundred candidates a tile through."""
    torch.manual_seed(0)
    config = ModelConfig.preset(
        "paper", num_classes=1, backbone=backbone, image_short_side=int(short_side), score_threshold=0.0
    )
    predictor = Predictor(EmbedMask(config), ["object"])
    start = time.monotonic()
    found = predictor(FILE, 0.0, tile=TILE, overlap=OVERLAP)
    seconds = time.monotonic() - start
    print(f"{backbone} at {short_side}: {len(found)} results, {seconds:.0f} s, {peak_gb():.2f} GB at most")


def main() -> None:
    """Draw the image if need be and measure, in processes of their own."""
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
    # what a process takes counts for those that it starts: this one stays small
    for step in ([] if FILE.exists() else [["draw"]]) + [measure]:
        subprocess.run([sys.executable, __file__, *step], check=True)


if __name__ == "__main__":
    main()
