"""Measure how padding changes results: it enters GroupNorm's statistics and nearby convolutions.

    python benchmarks/padding.py --weights model.safetensors --data DIR --count 40

Each image of the split is predicted alone, in its frame of the next multiples of 32 px, then in larger frames, like
those beside larger images in a batch. Then its last rows and columns are blanked, as padding does for images whose
sides are not multiples of 32. For the instances that score above `--score-threshold` alone, the script prints the
fraction with a counterpart (same class, box IoU above 0.98), the mean change of the score, and the mean IoU of box and
mask with the nearest instance. With blanked borders, instances closer than 32 px to the border are left out, since
their surroundings have changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import box_iou

from embedmask.config import ModelConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.inference.detect import detect, make_postprocessor
from embedmask.inference.engines import make_network
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.samples import evenly_spaced
from embedmask.structures import ImageBatch, Instances, Size
from embedmask.weights.checkpoint import load_checkpoint

WIDER = (32, 64, 128, 256)
"""Extension of both sides of the frame, px."""
BLANKS = (1, 6, 16, 31)
"""Number of blanked last rows and columns, px."""
SAME_BOX, NEAR = 0.98, 32


def load_model(weights: Path | None) -> Detector:
    """Return the model of a file, or a random R-50 as published with every proposal a candidate."""
    if weights is not None:
        return load_checkpoint(weights).model.eval()
    torch.manual_seed(0)
    return build_model(ModelConfig.preset("paper", num_classes=1, candidate_threshold=0.0)).eval()


def wider(batch: ImageBatch, by: int) -> ImageBatch:
    """Return the same image in a larger frame."""
    return ImageBatch(pad(batch.tensors, (0, by, 0, by)), batch.sizes)


def blanked(batch: ImageBatch, rows: int) -> ImageBatch:
    """Return the image with its last rows and columns blanked, as padding is."""
    (height, width), tensors = batch.sizes[0], batch.tensors.clone()
    # the value of padding after normalization
    tensors[..., height - rows :, :] = 0
    tensors[..., width - rows :] = 0
    return ImageBatch(tensors, batch.sizes)


def changes(alone: Instances, other: Instances, min_score: float, within: Size) -> list[Tensor]:
    """Return the change of each instance above `min_score` whose box ends inside `within`.

    Returns:
        For each, float `[4]`: has a counterpart, change of the score, box IoU and mask IoU with the nearest instance.
    """
    limit = torch.tensor([within[1], within[0]])
    sure = (alone.scores > min_score) & (alone.boxes[:, 2:] < limit).all(1)
    masks, others = alone.masks.to_dense(), other.masks.to_dense()
    rows = []
    for index in sure.nonzero()[:, 0].tolist():
        # box IoU with the instances of the same class, [R]
        overlap = box_iou(alone.boxes[index, None], other.boxes)[0] * (other.labels == alone.labels[index])
        if not len(overlap):
            rows.append(torch.tensor([0.0, -float(alone.scores[index]), 0.0, 0.0]))
            continue
        near = int(overlap.argmax())
        common = (masks[index] & others[near]).sum() / (masks[index] | others[near]).sum().clamp(min=1)
        change = float(other.scores[near] - alone.scores[index])
        rows.append(
            torch.tensor([float(overlap[near] > SAME_BOX), change, float(overlap[near]), float(common)])
        )
    return rows


def print_table(rows_of: Mapping[str, list[Tensor]]) -> None:
    """Print the mean changes of each case; "again" is the fraction with a counterpart."""
    print(
        f"{'case':>12} {'instances':>10} {'again':>7} {'score':>8} {'|score|':>8} {'box IoU':>8} {'mask IoU':>8}"
    )
    for name, rows in rows_of.items():
        if rows:
            table = torch.stack(rows)  # [instances, 4]
            again, score, box, mask = table.mean(0).tolist()
            size = float(table[:, 1].abs().mean())
            print(
                f"{name:>12} {len(rows):>10} {again:>7.3f} {score:>8.4f} {size:>8.4f} {box:>8.4f} {mask:>8.4f}"
            )


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="default: random weights")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=40, help="images, evenly_spaced over the split")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="0 with random weights")
    return parser.parse_args()


def main() -> None:
    """Predict every image in every case and print a table of the changes."""
    args = parse()
    model, dataset = load_model(args.weights), CocoInstances.open(args.data, args.split)
    resize = EvalTransform.from_config(model.config)
    network, postprocess = make_network(model), make_postprocessor(model.config)

    def predict(batch: ImageBatch) -> Instances:
        return detect(network, postprocess, batch, batch.sizes)[0]

    cases: dict[str, Callable[[ImageBatch], ImageBatch]] = {}
    cases |= {f"{by} px wider": partial(wider, by=by) for by in WIDER}
    cases |= {f"{rows} px blank": partial(blanked, rows=rows) for rows in BLANKS}
    rows_of: dict[str, list[Tensor]] = {name: [] for name in cases}
    with torch.inference_mode():
        for index in evenly_spaced(len(dataset), args.count):
            batch = model.preprocess([resize.image(dataset.image(index))])
            alone, (height, width) = predict(batch), batch.sizes[0]
            for name, change in cases.items():
                if "blank" in name and batch.tensors.shape[-2:] != (height, width):
                    continue  # the border is padding already
                cut = NEAR + max(BLANKS) if "blank" in name else 0
                # boxes must end before the affected border
                within = (height + 1 - cut, width + 1 - cut)
                rows_of[name] += changes(alone, predict(change(batch)), args.score_threshold, within)
    print_table(rows_of)


if __name__ == "__main__":
    main()
