"""Memory of tiled detection."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from embedmask.data.images import open_slide
from embedmask.inference.tiling import tile_windows, tiled_instances
from embedmask.masks import MaskCrop, RunMasks
from embedmask.structures import Instances


def many(count: int) -> tuple[Tensor, Callable[[Sequence[Tensor]], list[Instances]]]:
    """Return an image without memory and a detector of `count` squares of 24 px, 48 px apart."""
    columns = int(count**0.5)
    side = 48 * columns
    image = torch.zeros(1, dtype=torch.uint8).expand(3, side, side)
    windows = iter(tile_windows((side, side), 1024, 128))

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        results = []
        for _ in tiles:
            y1, x1, y2, x2 = next(windows)
            rows = [[(max(48 * i, low) - low, min(48 * i + 24, high) - low) for i in range(low // 48, high // 48 + 1)]
                    for low, high in ((y1, y2), (x1, x2))]  # fmt: skip
            cells = [(a, c, b, d) for a, b in rows[0] for c, d in rows[1] if a < b and c < d]
            crops = [MaskCrop(np.ones((b - a, d - c), bool), a, c) for a, c, b, d in cells]
            boxes = torch.tensor([[c, a, d, b] for a, c, b, d in cells], dtype=torch.float32)
            scores = torch.tensor([crop.pixels.size / 600 for crop in crops])
            masks = RunMasks.from_crops(crops, (y2 - y1, x2 - x1))
            results.append(Instances(boxes, scores, torch.zeros(len(cells), dtype=torch.int64), masks))
        return results

    return image, detect


@pytest.mark.slow
def test_memory_grows_with_objects() -> None:
    """Check 10,000 objects in 23 megapixels, whose dense masks would take 230 GB."""
    image, detect = many(10_000)
    tracemalloc.start()
    actual = tiled_instances(image, detect, tile=1024, overlap=128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(actual) == 10_000
    assert set(actual.masks.areas()) == {24 * 24}
    assert peak < 100e6


@pytest.mark.slow
def test_memory_of_diagonal_lines() -> None:
    """Check 40 diagonals of 9 megapixels, whose crops would take 360 MB."""
    side, tile, count, width = 3000, 250, 40, 20
    windows = iter(tile_windows((side, side), tile, 50))

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        (y1, x1, *_), crops = next(windows), []
        y, x = torch.arange(y1, y1 + tile)[:, None], torch.arange(x1, x1 + tile)
        for line in range(count):
            at = (line - count // 2) * width
            if at - tile <= x1 - y1 <= at + tile and (mask := (x - y - at >= 0) & (x - y - at < width)).any():
                crops.append(MaskCrop(mask.numpy(), 0, 0))
        boxes = torch.tensor([[0.0, 0, tile, tile]]).expand(len(crops), 4)
        masks = RunMasks.from_crops(crops, (tile, tile))
        return [Instances(boxes, torch.ones(len(crops)), torch.zeros(len(crops), dtype=torch.int64), masks)]

    image = torch.zeros(1, dtype=torch.uint8).expand(3, side, side)
    tracemalloc.start()
    actual = tiled_instances(image, detect, tile=tile, overlap=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(actual) == count
    lengths = [side - abs(at + step) for at in range(-400, 400, width) for step in range(width)]
    assert sum(actual.masks.areas()) == sum(lengths)
    assert peak < 150e6


def test_slide_is_read_by_windows_in_bounded_memory(tmp_path: Path) -> None:
    """Tiles of a slide are read one at a time, and those of a single color are left out."""
    zarr = pytest.importorskip("zarr")
    side = 6000
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    array = group.create_array("0", shape=(1, side, side), chunks=(1, 500, 500), dtype=np.uint8)
    array[0, 2900:3100, 2950:3050] = 9  # across several tiles
    axes = [{"name": axis} for axis in "cyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    slide = open_slide(tmp_path / "a.zarr")
    assert slide is not None
    calls = []

    def detect(tiles: Sequence[Tensor]) -> list[Instances]:
        calls.append(len(tiles))
        masks = [RunMasks.from_dense(tile[:1] == 9) for tile in tiles]
        return [
            Instances(torch.from_numpy(mask.boxes()).float(), torch.ones(1), torch.zeros(1).long(), mask)
            for mask in masks
        ]

    tracemalloc.start()
    try:
        instances = tiled_instances(slide, detect, tile=512, overlap=128, batch_size=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert instances.masks.boxes().tolist() == [[2950, 2900, 3050, 3100]]
    assert instances.masks.areas().tolist() == [20_000]
    assert sum(calls) < 8
    assert peak < side * side / 2, "less than the image in 8-bit gray"
