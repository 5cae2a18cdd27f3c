"""Memory and time of a slide of ten gigapixels: generated as sparse OME-Zarr, predicted by windows.

    python benchmarks/slides.py --side 100000 --textured 3000 --format geojson

Most of the slide is background of one color, as on real slides; a square in its middle holds bright discs that the
bundled nuclei model detects. Memory is the peak of the process that predicts.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

CHUNK = 1024
PITCH = 40
"""Distance of neighboring discs, px."""


def discs(side: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return a square of blurred discs on a noisy background, uint8 `[side, side]`."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side), np.float32)
    y, x = np.mgrid[-16:17, -16:17]
    # one disc in each cell of a grid, moved by up to 5 px, so that no two touch
    for top in range(0, side - PITCH, PITCH):
        for left in range(0, side - PITCH, PITCH):
            row, column = top + rng.integers(0, 6), left + rng.integers(0, 6)
            radius, level = rng.uniform(8, 14), rng.uniform(90, 220)
            image[row : row + 33, column : column + 33][y**2 + x**2 < radius**2] = level
    # the camera: blur, then noise
    image = ndimage.gaussian_filter(image, 1.5) + rng.normal(12, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def write_slide(path: Path, side: int, textured: int) -> int:
    """Write the slide with its square of discs; return the number of discs."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=3)
    array = group.create_array("0", shape=(1, side, side), chunks=(1, CHUNK, CHUNK), dtype=np.uint8)
    # chunks without texture are never written, so that the file stays small
    corner = (side - textured) // 2
    array[0, corner : corner + textured, corner : corner + textured] = discs(textured)
    # metadata of OME-Zarr 0.5 with a single level
    axes = [{"name": axis} for axis in "cyx"]
    image = {"axes": axes, "datasets": [{"path": "0"}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    return len(range(0, textured - PITCH, PITCH)) ** 2


def predict(slide: str, out: str, fmt: Any, tile: int) -> None:
    """Predict the slide in this process and print its figures as JSON."""
    from embedmask.predict import run

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    summary = run(slide, "nuclei", out, format=fmt, draw=False, tile=tile, device="cpu")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {"objects": summary.num_objects, "seconds": seconds, "peak_kib": peak, "imported_kib": before}
    print(json.dumps({**figures, "broken": summary.broken}))


def main() -> None:
    """Generate a slide in a temporary folder, predict it in a separate process and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=100_000)
    parser.add_argument("--textured", type=int, default=3000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--format", default="geojson")
    parser.add_argument(
        "--predict", nargs=2, metavar=("SLIDE", "OUT"), help="predict this slide; for the child process"
    )
    options = parser.parse_args()
    if options.predict:
        predict(*options.predict, options.format, options.tile)
        return
    with tempfile.TemporaryDirectory() as folder:
        slide, out = Path(folder) / "slide.zarr", Path(folder) / "out"
        count = write_slide(slide, options.side, options.textured)
        words = ["--predict", slide, out, "--format", options.format, "--tile", options.tile]
        command = [sys.executable, __file__, *map(str, words)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        print(f"{options.side} x {options.side} px, {count} discs; {figures['objects']} objects found")
        print(
            f"{figures['seconds']:.0f} s, peak {figures['peak_kib'] / 2**20:.2f} GiB; results {size / 2**20:.1f} MiB"
        )
        print(*figures["broken"], sep="\n")


if __name__ == "__main__":
    main()
