"""Predict 100 megapixels of nuclei with EmbedMask in tiles, beside StarDist (`stardist_nuclei.py large`).

    python benchmarks/mosaic.py draw --data DIR --image mosaic.png
    python benchmarks/mosaic.py predict --image mosaic.png --weights nuclei

`draw` writes an image of 10,000 x 10,000 px: the upper left 256 x 256 px of the images of val that have KEY=VALUE, in
turn. `predict` prints CPU seconds without reading, on one thread, objects and peak memory.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reporting import peak_gb

from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image
from embedmask.inference.predictor import Predictor

SIDE, PART = 10_000, 256
TILE, OVERLAP = 1024, 128


def draw(data: Path, where: str, file: Path) -> None:
    """Write the mosaic."""
    dataset = CocoInstances.open(data, "val", image_filter=where)
    parts = itertools.cycle([dataset.image(index)[:, :PART, :PART].numpy() for index in range(len(dataset))])
    mosaic = np.zeros((3, SIDE, SIDE), np.uint8)
    for top, left in itertools.product(range(0, SIDE, PART), repeat=2):
        window = mosaic[:, top : top + PART, left : left + PART]
        window[:] = next(parts)[:, : window.shape[1], : window.shape[2]]
    Image.fromarray(mosaic.transpose(1, 2, 0)).save(file)


def predict(file: Path, weights: str) -> None:
    """Print the figures of a model."""
    torch.set_num_threads(1)
    predictor, image = Predictor.load(weights, device="cpu"), read_image(file, any_size=True)
    begin = time.process_time()
    detections = predictor(image, tile=TILE, overlap=OVERLAP)
    seconds = time.process_time() - begin
    print(f"{len(detections)} objects, {seconds:.0f} CPU s, peak {peak_gb():.2f} GB, {predictor}")


def main() -> None:
    """Parse the command line and run the action."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("draw", "predict"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--where", default="stardist_dsb2018=train")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--weights", default="nuclei")
    args = parser.parse_args()
    if args.action == "draw":
        draw(args.data, args.where, args.image)
    else:
        predict(args.image, args.weights)


if __name__ == "__main__":
    main()
