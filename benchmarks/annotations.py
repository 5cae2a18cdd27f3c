"""Measure time and memory of reading a large annotation file, in a separate process.

    python benchmarks/annotations.py --images 100000 --objects 8

The file is generated: polygons of 8 to 43 points, 80 classes, as many objects per image as COCO. Processor time is
printed beside wall time, which includes other load on the machine. No files are left behind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from reporting import peak_gb

HEIGHT, WIDTH, NUM_CLASSES = 480, 640, 80


def annotations(num_images: int, per_image: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield annotations: circles as polygons with two decimals, as annotation tools export them."""
    for number in range(num_images * per_image):
        # points (x, y) on a circle inside the image, [P, 2]
        angles = np.linspace(0, 2 * np.pi, int(rng.integers(8, 44)), endpoint=False)
        x, y, radius = rng.uniform((60, 60, 5), (580, 420, 50)).round(2)
        corners = np.stack((x + radius * np.cos(angles), y + radius * np.sin(angles)), axis=1)
        yield {
            "id": number,
            "image_id": number // per_image,
            "category_id": int(rng.integers(1, NUM_CLASSES + 1)),
            "iscrowd": 0,
            "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
            "area": float(np.pi * radius**2),
            "segmentation": [corners.round(2).ravel().tolist()],
        }


def write_file(path: Path, num_images: int, per_image: int) -> None:
    """Write a COCO annotation file, one annotation at a time."""
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for number in range(num_images)
    ]
    categories = [{"id": number, "name": str(number)} for number in range(1, NUM_CLASSES + 1)]
    # streamed, so that memory does not grow with the file
    with path.open("w", encoding="utf-8") as file:
        file.write(
            f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}, "annotations": ['
        )
        for index, entry in enumerate(annotations(num_images, per_image, np.random.default_rng(0))):
            file.write((", " if index else "") + json.dumps(entry))
        file.write("]}")


def load(path: Path) -> dict[str, float]:
    """Read and check a file; return time, without imports, and peak memory of this process."""
    from embedmask.data.annotations import check_annotations, read_coco

    # imports are done: only reading and checking are timed
    clock, processor = time.perf_counter(), time.process_time()
    content = check_annotations(read_coco(path), path)
    return {
        "images": len(content.image_ids),
        "seconds": time.perf_counter() - clock,
        "processor_seconds": time.process_time() - processor,
        "peak_gb": peak_gb(),
    }


def main() -> None:
    """Generate the file, read it in a new process and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--objects", type=int, default=8, help="per image")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        print(json.dumps(load(options.load)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.json"
        write_file(file, options.images, options.objects)
        print(
            f"{options.images} images with {options.objects} objects each, {file.stat().st_size / 1e6:.0f} MB"
        )
        # a new process: the generator's memory does not count
        done = subprocess.run(
            [sys.executable, __file__, "--load", str(file)], capture_output=True, text=True, check=True
        )
        result = json.loads(done.stdout)
        print(
            f"read in {result['seconds']:.1f} s ({result['processor_seconds']:.1f} s of the processor), "
            f"peak {result['peak_gb']:.2f} GB"
        )


if __name__ == "__main__":
    main()
