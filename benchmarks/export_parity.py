"""Compare exported files with the model that they were made from, and print the tables of docs/export.md.

python benchmarks/export_parity.py presets [NAME...]      # paper, ijcai21, fused, fast with calibrated random weights
python benchmarks/export_parity.py nuclei DATA            # the released model on images of the nuclei data set
python benchmarks/export_parity.py ap DATA                # its AP on the fluorescence images of val

Each row compares all detections down to the threshold of candidates, in float32: `Predictor` with torch, `Predictor`
with the file, and `embedmask.runtime` with the file (batch 1 only, as it takes single images).
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
from torch import Tensor

from embedmask import EmbedMask, ModelConfig, Predictor
from embedmask.benchmark.calibration import calibrate_embedmask, write_test_image
from embedmask.data.coco import CocoInstances
from embedmask.data.images import read_image, size_of
from embedmask.evaluation.run import evaluate_weights
from embedmask.export import export_model
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.masks import RunMasks
from embedmask.runtime import Model, Result
from embedmask.structures import Instances

SIZES = ((256, 256), (251, 333), (360, 360), (97, 640), (520, 696))
FORMATS = {"onnx": ".onnx", "openvino": ".xml"}
CROWDED = 700
METRICS = ("segm/AP", "segm/AP50", "segm/AP75", "bbox/AP", "boundary/AP")


@dataclass
class Difference:
    """Comparison of two results of the same images.

    Attributes:
        counts: detections of the model, by image.
        equal: whether numbers and labels are the same.
        boxes, scores: largest difference, px and 1.
        iou: smallest IoU of two masks.
        pixels: mask pixels that differ, and all of the model's.
    """

    counts: list[int]
    equal: bool
    boxes: float = 0.0
    scores: float = 0.0
    iou: float = 1.0
    pixels: tuple[int, int] = (0, 0)

    def row(self) -> str:
        """Return the cells of a table."""
        found = " + ".join(map(str, self.counts))
        if not self.equal:
            return f"{found} | **differ** | | | |"
        differing = f"{self.pixels[0]:,} of {self.pixels[1]:,}"
        return f"{found} | equal | {self.boxes:.1e} | {self.scores:.1e} | {self.iou:.5f} | {differing} |"


def compare(reference: Sequence[Instances], results: Sequence[Instances]) -> Difference:
    """Compare the results of the same images."""
    pairs = list(zip(reference, results, strict=True))
    labels = all(torch.equal(one.labels, other.labels) for one, other in pairs)
    found = Difference([len(one) for one, _ in pairs], labels)
    for one, other in pairs if labels else ():
        if not len(one):
            continue
        index = np.arange(len(one))
        common = one.masks.overlaps(index, other.masks, index)
        union = one.masks.areas() + other.masks.areas() - common
        found.boxes = max(found.boxes, float((one.boxes - other.boxes).abs().max()))
        found.scores = max(found.scores, float((one.scores - other.scores).abs().max()))
        found.iou = min(found.iou, float(np.where(union > 0, common / np.maximum(union, 1), 1.0).min()))
        counts = int((union - common).sum()), int(one.masks.areas().sum())
        found.pixels = (found.pixels[0] + counts[0], found.pixels[1] + counts[1])
    return found


def predict(predictor: Predictor, images: Sequence[Tensor]) -> list[Instances]:
    """Return the instances of images as one batch, down to the threshold of candidates."""
    model = predictor.model
    batch = model.preprocess([predictor.resize.image(image) for image in images])
    return detect(predictor.network, make_postprocessor(model.config), batch, [size_of(i) for i in images])


def as_instances(result: Result) -> Instances:
    """Convert a result of the runtime."""
    masks = RunMasks(result.runs, result.size)
    columns = map(torch.from_numpy, (result.boxes, result.scores, result.labels))
    return Instances(*columns, masks)


def rows_of(name: str, model: EmbedMask, files: Sequence[Path], images: Sequence[Tensor]) -> Iterator[str]:
    """Yield a row of the table for each file, image and batch."""
    names = [str(index) for index in range(model.config.num_classes)]
    reference = Predictor(model, names, device="cpu", precision="float32")
    for file in files:
        exported, runtime = Predictor.load(file, device="cpu"), Model(file)
        for image in images:
            height, width = size_of(image)
            for batch in ([image], [image, image.flip(2)]):
                expected = predict(reference, batch)
                found = compare(expected, predict(exported, batch))
                yield f"| {name}, {file.suffix} | {height}x{width} | {len(batch)} | Predictor | {found.row()}"
            result = runtime(image.permute(1, 2, 0).numpy(), score_threshold=runtime.settings.least_score)
            expected = [one.select(least_rows(one, runtime)) for one in predict(reference, [image])]
            found = compare(expected, [as_instances(result)])
            yield f"| {name}, {file.suffix} | {height}x{width} | 1 | runtime | {found.row()}"


def least_rows(instances: Instances, runtime: Model) -> list[int]:
    """Return the instances whose final score the runtime does not filter out."""
    return np.flatnonzero(instances.scores.numpy() >= np.float32(runtime.settings.least_score)).tolist()


def preset_model(preset: str, *, crowded: bool) -> EmbedMask:
    """Return a model with random weights, calibrated to about 100 or 700 detections in the first test image."""
    torch.manual_seed(0)
    config = ModelConfig.preset(
        preset,
        num_classes=5,
        image_short_side=320,
        image_long_side=533,
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
    """Return an image of val of each size, an empty one, and four crowded images side by side."""
    dataset = CocoInstances.open(data, "val", image_filter="modality=fluorescence")
    by_size: dict[Any, list[Tensor]] = {}
    for index in range(len(dataset)):
        image = dataset.image(index)
        by_size.setdefault(size_of(image), []).append(image)
    largest = by_size[(520, 696)]
    crowded = torch.cat([torch.cat(largest[:2], 2), torch.cat(largest[2:4], 2)], 1)
    odd = by_size[(360, 360)][0][:, :251, :333]
    return [
        *(group[0] for group in by_size.values()),
        odd,
        torch.zeros(3, 200, 150, dtype=torch.uint8),
        crowded,
    ]


def print_presets(names: Sequence[str]) -> None:
    """Print the table of the presets, whose models have random weights."""
    for name in names or ("paper", "ijcai21", "fused", "fast"):
        for crowded in (False, True) if name == "fast" else (False,):
            model = preset_model(name, crowded=crowded)
            with tempfile.TemporaryDirectory() as folder:
                files = [export(model, Path(folder) / name, kind, list("abcde")) for kind in FORMATS]
                for row in rows_of(name, model, files, test_images()):
                    print(row, flush=True)


def export(model: EmbedMask, path: Path, kind: Any, names: list[str]) -> Path:
    """Export a model and return the file."""
    return export_model(model, path.with_suffix(FORMATS[kind]), kind, class_names=names)


def print_ap(data: Path) -> None:
    """Print the AP of the released model and of its exported files."""
    from embedmask.weights import load_checkpoint
    from embedmask.weights.released import find_weights

    weights = find_weights("nuclei")
    checkpoint = load_checkpoint(weights)
    assert isinstance(checkpoint.model, EmbedMask)
    dataset = CocoInstances.open(data, "val", image_filter="modality=fluorescence")
    with tempfile.TemporaryDirectory() as folder:
        files = [
            export(checkpoint.model, Path(folder) / "nuclei", kind, checkpoint.class_names)
            for kind in FORMATS
        ]
        for file in (weights, *files):
            metrics = evaluate_weights(file, dataset, device="cpu", precision="float32")
            print(
                f"| {file.name} | " + " | ".join(f"{metrics[name]:.4f}" for name in METRICS) + " |",
                flush=True,
            )


def main(words: Sequence[str]) -> None:
    """Run one of the three comparisons."""
    if words[:1] == ["presets"]:
        print_presets(words[1:])
    elif words[:1] == ["nuclei"] and len(words) == 2:
        from embedmask.weights import load_checkpoint

        checkpoint = load_checkpoint("nuclei")
        assert isinstance(checkpoint.model, EmbedMask)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "nuclei"
            files = [export(checkpoint.model, path, kind, checkpoint.class_names) for kind in FORMATS]
            for row in rows_of("nuclei", checkpoint.model, files, nuclei_images(Path(words[1]))):
                print(row, flush=True)
    elif words[:1] == ["ap"] and len(words) == 2:
        print_ap(Path(words[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
