"""Measure int8 against bfloat16 from pixels to masks, with random weights calibrated to a number of detections.

    python benchmarks/int8.py paper/r50_1x --image-size 800 1216
    python benchmarks/int8.py fast/r18_3x --image-size 480 640 --detections 10

The int8 graph is calibrated on crops of the benchmark image. CPU time of one thread, the models in turns. AP needs
trained weights: `embedmask export --int8` measures it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from embedmask import Predictor
from embedmask.benchmark.compare import BenchConfig, PipelineFactory
from embedmask.benchmark.timing import machine
from embedmask.config import ModelConfig
from embedmask.config.bundled import resolve_recipe
from embedmask.data.images import read_image
from embedmask.export import openvino_model, write_openvino
from embedmask.export.measured import cpu_milliseconds
from embedmask.export.quantize import CROP_SIDES, quantize
from embedmask.machine import processor_text

CROPS = 16


def measure(recipe: str, size: tuple[int, int], detections: int, folder: Path) -> dict[str, float]:
    """Return CPU milliseconds per image of the engine torch, and of the float32 and the int8 graph."""
    config = resolve_recipe(recipe, {}).model
    assert isinstance(config, ModelConfig)
    torch.manual_seed(0)
    factory = PipelineFactory(
        BenchConfig(config=config, image_size=size, detections=detections, threads=1), folder
    )
    model, image = factory.embedmask, read_image(factory.image)
    names = [str(label) for label in range(config.num_classes)]
    predictors = {"engine torch": Predictor(model, names, device="cpu")}
    graph = openvino_model(model, class_names=names)
    resized = predictors["engine torch"].resize.image(image).numpy()  # [3, H, W]
    # calibrate on random crops: [1, 3, h, w] each, no larger than the image
    rng = np.random.default_rng(0)
    free = np.maximum(np.array(resized.shape[1:]) - CROP_SIDES[0], 0)
    corners = [rng.integers(0, free + 1) for _ in range(CROPS)]
    crops = [
        np.ascontiguousarray(resized[None, :, y : y + CROP_SIDES[0], x : x + CROP_SIDES[0]])
        for y, x in corners
    ]
    # NNCF needs the float32 graph, so both are made before the first measurement
    for name, one in (("float32 graph", graph), ("int8 graph", quantize(graph, crops))):
        path = folder / f"{name.split()[0]}.xml"
        write_openvino(one, path)
        predictors[name] = Predictor.load(path, device="cpu")
    return cpu_milliseconds(predictors, [image])


def main() -> None:
    """Measure one recipe and print a line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("recipe")
    options.add_argument("--image-size", nargs=2, type=int, default=[800, 1216], metavar=("H", "W"))
    options.add_argument("--detections", type=int, default=100)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(args.recipe, tuple(args.image_size), args.detections, Path(folder))
    about = machine(torch.device("cpu"))
    print(f"{processor_text(about)}; {about['matrix_gflops']}; {about['commit']}")
    ratio = times["engine torch"] / times["int8 graph"]
    listed = ", ".join(f"{name} {value:.0f}" for name, value in times.items())
    print(f"{args.recipe}: CPU ms per image: {listed}; int8 is {ratio:.2f} times as fast as the engine torch")


if __name__ == "__main__":
    main()
