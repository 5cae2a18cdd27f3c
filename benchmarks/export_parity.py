"""Compare exported files with the model that they were made from, and print the tables of docs/export.md.

python benchmarks/export_parity.py presets [NAME...]      # PRESETS, DETECTORS: calibrated random weights
python benchmarks/export_parity.py nuclei DATA FILE...    # the released model, on images of the data set

Each row compares all detections down to the threshold of candidates, in float32: `Predictor` with torch, `Predictor`
with the file, and `embedmask.runtime` with the file (batch 1 only, as it takes single images). The yardstick is torch
against itself: with norms folded into convolutions and channels last, as `Predictor` computes, and without. `nuclei`
has a row for each image; a row of `presets` joins those of all sizes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedmask import EmbedMask, ModelConfig, Predictor
from embedmask.benchmark.calibration import calibrate_embedmask, write_test_image
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image, size_of
from embedmask.export import onnx_model, to_openvino, write_openvino
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.inference.engines import Network, copy_network
from embedmask.masks import RunMasks
from embedmask.runtime import Model, Result
from embedmask.structures import Instances
from embedmask.weights import load_checkpoint

PRESETS, DETECTORS = ("paper", "ijcai21", "fused", "fast"), ("retinanet", "tal")
SIZES = ((64, 96), (251, 333), (97, 640), (375, 500), (360, 360))
CROWDED = 700
SAME_BOX = 0.01
"""Largest difference of the boxes of one detection, px."""
Ints = NDArray[np.int64]


@dataclass
class Difference:
    """Comparison of two results of the same images.

    Attributes:
        counts: detections of the model, by image.
        unmatched: detections of either result without a partner, see `partners`.
        boxes, scores: largest difference of partners, px and 1.
        iou: smallest IoU of the masks of partners.
        pixels: mask pixels of partners that differ, and all of the model's.
    """

    counts: list[int]
    unmatched: int = 0
    boxes: float = 0.0
    scores: float = 0.0
    iou: float = 1.0
    pixels: tuple[int, int] = (0, 0)

    def join(self, other: Difference) -> None:
        """Add the comparison of other images."""
        self.counts = [sum(self.counts) + sum(other.counts)]
        self.unmatched += other.unmatched
        self.boxes, self.scores = max(self.boxes, other.boxes), max(self.scores, other.scores)
        self.iou = min(self.iou, other.iou)
        self.pixels = (self.pixels[0] + other.pixels[0], self.pixels[1] + other.pixels[1])

    def row(self) -> str:
        """Return the cells of a table."""
        counts = " + ".join(map(str, self.counts))
        differing = f"{self.pixels[0]:,} of {self.pixels[1]:,}"
        return f"{counts} | {self.unmatched} | {self.boxes:.1e} | {self.scores:.1e} | {self.iou:.5f} | {differing} |"


def partners(one: Instances, other: Instances) -> tuple[Ints, Ints]:
    """Pair the detections of one label whose boxes are nearest to each other and at most `SAME_BOX` px apart.

    Order is ignored: scores that are equal up to rounding may change places. Among equal boxes, such as those that are
    clipped to the image after NMS, the nearest score decides.
    """
    if not len(one) or not len(other):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # largest difference of a side, [R, R']; infinite for other labels
    distance = torch.cdist(one.boxes, other.boxes, p=float("inf"))
    distance[one.labels[:, None] != other.labels] = float("inf")
    cost = distance + (one.scores[:, None] - other.scores).abs()
    # partners are nearest to each other
    nearest, back = cost.argmin(1), cost.argmin(0)
    rows = torch.arange(len(one))
    paired = (back[nearest] == rows) & (distance[rows, nearest] <= SAME_BOX)
    return rows[paired].numpy(), nearest[paired].numpy()


def compare(reference: Sequence[Instances], results: Sequence[Instances]) -> Difference:
    """Compare the results of the same images."""
    difference = Difference([len(one) for one in reference])
    for one, other in zip(reference, results, strict=True):
        index, partner = partners(one, other)
        difference.unmatched += len(one) + len(other) - 2 * len(index)
        if not len(index):
            continue
        # pixels of both masks and of either, by pair
        common = one.masks.overlaps(index, other.masks, partner)
        areas = one.masks.areas()[index]
        union = areas + other.masks.areas()[partner] - common
        difference.boxes = max(difference.boxes, float((one.boxes[index] - other.boxes[partner]).abs().max()))
        difference.scores = max(
            difference.scores, float((one.scores[index] - other.scores[partner]).abs().max())
        )
        difference.iou = min(
            difference.iou, float(np.where(union > 0, common / np.maximum(union, 1), 1.0).min())
        )
        difference.pixels = (
            difference.pixels[0] + int((union - common).sum()),
            difference.pixels[1] + int(areas.sum()),
        )
    return difference


def predict(predictor: Predictor, network: Network, images: Sequence[Tensor]) -> list[Instances]:
    """Return the instances of images as one batch, by a network, down to the threshold of candidates."""
    model = predictor.model
    batch = model.preprocess([predictor.resize.image(image) for image in images])
    return detect(network, make_postprocessor(model.config), batch, [size_of(image) for image in images])


def as_instances(result: Result) -> Instances:
    """Convert a result of the runtime."""
    masks = RunMasks(result.runs, result.size)
    columns = map(torch.from_numpy, (result.boxes, result.scores, result.labels))
    return Instances(*columns, masks)


def comparisons(
    model: EmbedMask, files: Sequence[Path], images: Sequence[Tensor]
) -> Iterator[tuple[str, str, int, str, Difference]]:
    """Yield size, file, batch size, program and difference: of torch without folded norms, then of each file."""
    names = [str(index) for index in range(model.config.num_classes)]
    reference = Predictor(model, names, device="cpu", precision="float32")
    plain = copy_network(model, "torch", torch.float32)
    loaded = [(file.suffix, Predictor.load(file, device="cpu"), Model(file)) for file in files]
    for image in images:
        size = "{}x{}".format(*size_of(image))
        # one image, and two that differ
        batches = [[image], [image, image.flip(2)]]
        expected = [predict(reference, reference.network, batch) for batch in batches]
        difference = compare(expected[0], predict(reference, plain, batches[0]))
        yield size, "torch", 1, "norms not folded", difference
        for suffix, exported, runtime in loaded:
            for batch, detections in zip(batches, expected, strict=True):
                difference = compare(detections, predict(exported, exported.network, batch))
                yield size, suffix, len(batch), "Predictor", difference
            # the runtime filters final scores, which are lower than those of the candidates
            result = runtime(image.permute(1, 2, 0).numpy(), score_threshold=runtime.settings.least_score)
            detections = [one.select(served_rows(one, runtime)) for one in expected[0]]
            yield size, suffix, 1, "runtime", compare(detections, [as_instances(result)])


def served_rows(instances: Instances, runtime: Model) -> list[int]:
    """Return the instances whose final score the runtime does not filter out."""
    return np.flatnonzero(instances.scores.numpy() >= np.float32(runtime.settings.least_score)).tolist()


def preset_model(preset: str, *, crowded: bool) -> EmbedMask:
    """Return a model with random weights, calibrated to about 100 or 700 detections in the last test image.

    The other settings of a detector are those of `ijcai21`.
    """
    torch.manual_seed(0)
    detector = preset if preset in DETECTORS else "fcos"
    config = ModelConfig.preset(
        "ijcai21" if preset in DETECTORS else preset,
        detector=detector,
        num_classes=5,
        backbone="resnet18",
        image_short_side=224,
        image_long_side=373,
        backbone_norm="batch",
        frozen_stages=0,
        max_detections=1000 if crowded else 100,
    )
    model = EmbedMask(config).eval()
    predictor = Predictor(model, list("abcde"), device="cpu", precision="float32")
    batch = model.preprocess([predictor.resize.image(image) for image in test_images()[-1:]])
    calibrate_embedmask(model, batch, CROWDED if crowded else 100, trained=False)
    return model


def test_images() -> list[Tensor]:
    """Return images of blobs with noise, and an image without objects for the released model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        images = []
        for size in SIZES:
            write_test_image(path, size)
            images.append(read_image(path))
    return images


def nuclei_images(data: Path) -> list[Tensor]:
    """Return images of val of some sizes, a part of odd size, and an empty one.

    520 x 696 is crowded; 603 x 1272 has more candidates after NMS than are rescored.
    """
    dataset = CocoInstances.open(data, "val", image_filter="modality=fluorescence")
    by_size: dict[Any, list[Tensor]] = {}
    for index in range(len(dataset)):
        image = dataset.image(index)
        by_size.setdefault(size_of(image), []).append(image)
    odd = by_size[360, 360][0][:, :251, :333]
    empty = torch.zeros(3, 200, 150, dtype=torch.uint8)
    return [
        by_size[256, 256][0],
        by_size[512, 640][0],
        by_size[360, 360][0],
        odd,
        by_size[520, 696][0],
        by_size[603, 1272][0],
        empty,
    ]


def print_presets(names: Sequence[str]) -> None:
    """Print the table of the presets, whose models have random weights: a row joins all sizes."""
    for name in names or (*PRESETS, *DETECTORS):
        model = preset_model(name, crowded=name == "fused")
        joined: dict[tuple[str, int, str], Difference] = {}
        with tempfile.TemporaryDirectory() as folder:
            files = export(model, Path(folder) / name, list("abcde"))
            for _, file, batch, using, difference in comparisons(model, files, test_images()):
                joined.setdefault((file, batch, using), Difference([])).join(difference)
        for (file, batch, using), difference in joined.items():
            print(f"| {name}, {file} | {batch} | {using} | {difference.row()}", flush=True)


def export(model: EmbedMask, path: Path, names: list[str]) -> list[Path]:
    """Write a model as ONNX and as OpenVINO, traced once; return the files."""
    program = onnx_model(model, class_names=names)
    files = [path.with_suffix(".onnx"), path.with_suffix(".xml")]
    files[0].write_bytes(program.SerializeToString())
    write_openvino(to_openvino(program), files[1])
    return files


def main(words: Sequence[str]) -> None:
    """Run one of the comparisons."""
    if words[:1] == ["presets"]:
        print_presets(words[1:])
    elif words[:1] == ["nuclei"] and len(words) > 2:
        checkpoint = load_checkpoint("nuclei")
        assert isinstance(checkpoint.model, EmbedMask)
        files, images = list(map(Path, words[2:])), nuclei_images(Path(words[1]))
        for size, file, batch, using, difference in comparisons(checkpoint.model, files, images):
            print(f"| nuclei, {file} | {size} | {batch} | {using} | {difference.row()}", flush=True)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
