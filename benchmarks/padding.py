"""What padding does to results: GroupNorm's statistics count the padding, and a convolution sees it from nearby.

    python benchmarks/padding.py --weights model.safetensors --data DIR --count 40

Each image of the split is seen alone, in its frame of the next multiples of 32 px, then in larger frames as beside
larger neighbours in a batch. Then its last rows and columns are blanked, as padding blanks those of an image whose
sides are no multiples of 32. Told is what becomes of the instances that score above `--score-threshold` alone: how
many are found again, of the same class with a box IoU above 0.98; and the mean change of score and IoU of box and
mask with the nearest. In the last part those nearer than 32 px to the blank are left out, whose surroundings have
really changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import box_iou

from embedmask.config import ModelConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.transforms import EvalTransform
from embedmask.inference.loop import detect
from embedmask.model.build import build_model
from embedmask.model.detector import Detector
from embedmask.structures import ImageBatch, Instances, Size
from embedmask.training.samples import spread
from embedmask.weights.checkpoint import load_checkpoint

WIDER = (32, 64, 128, 256)
"""Both sides of the frame longer, px."""
BLANKS = (1, 6, 16, 31)
"""Last rows and columns, px."""
SAME_BOX, NEAR = 0.98, 32


def load_model(weights: Path | None) -> Detector:
    """Of a file, or random: R-50 as published, every proposal a candidate."""
    if weights is not None:
        return load_checkpoint(weights).model.eval()
    torch.manual_seed(0)
    return build_model(ModelConfig.preset("paper", num_classes=1, score_threshold=0.0)).eval()


def wider(batch: ImageBatch, by: int) -> ImageBatch:
    """The same image in a larger frame."""
    return ImageBatch(pad(batch.tensors, (0, by, 0, by)), batch.sizes)


def blanked(batch: ImageBatch, rows: int) -> ImageBatch:
    """The image with its last rows and columns as padding has them."""
    (height, width), tensors = batch.sizes[0], batch.tensors.clone()
    tensors[..., height - rows :, :] = 0
    tensors[..., width - rows :] = 0
    return ImageBatch(tensors, batch.sizes)


def changes(alone: Instances, other: Instances, least_score: float, within: Size) -> list[Tensor]:
    """Of each sure instance whose box ends `within`: found again, change of score, IoU of box, IoU of mask."""
    limit = torch.tensor([within[1], within[0]])
    sure = (alone.scores > least_score) & (alone.boxes[:, 2:] < limit).all(1)
    masks, others = alone.masks.to_dense(), other.masks.to_dense()
    rows = []
    for index in sure.nonzero()[:, 0].tolist():
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


def main() -> None:
    """Tell what padding changes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, help="none: random weights")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=40, help="images, spread over the split")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="0 with random weights")
    given = parser.parse_args()
    model, dataset = load_model(given.weights), CocoInstances.open(given.data, given.split)
    config = model.config
    resize = EvalTransform(config.image_short_side, config.image_long_side, config.image_rounding)

    def find(batch: ImageBatch) -> Instances:
        return detect(model, config, batch, batch.sizes)[0]

    cases: dict[str, Callable[[ImageBatch], ImageBatch]] = {}
    cases |= {f"{by} px wider": partial(wider, by=by) for by in WIDER}
    cases |= {f"{rows} px blank": partial(blanked, rows=rows) for rows in BLANKS}
    found: dict[str, list[Tensor]] = {name: [] for name in cases}
    with torch.inference_mode():
        for index in spread(len(dataset), given.count):
            batch = model.preprocess([resize.image(dataset.image(index))])
            alone, (height, width) = find(batch), batch.sizes[0]
            for name, change in cases.items():
                if "blank" in name and batch.tensors.shape[-2:] != (height, width):
                    continue  # has padding already
                cut = NEAR + max(BLANKS) if "blank" in name else 0
                within = (height + 1 - cut, width + 1 - cut)
                found[name] += changes(alone, find(change(batch)), given.score_threshold, within)
    print(
        f"{'case':>12} {'instances':>10} {'again':>7} {'score':>8} {'|score|':>8} {'box IoU':>8} {'mask IoU':>8}"
    )
    for name, rows in found.items():
        if not rows:
            continue
        table = torch.stack(rows)
        again, score, box, mask = table.mean(0).tolist()
        size = float(table[:, 1].abs().mean())
        print(f"{name:>12} {len(rows):>10} {again:>7.3f} {score:>8.4f} {size:>8.4f} {box:>8.4f} {mask:>8.4f}")


if __name__ == "__main__":
    main()
