"""Compare fast inference with a slow, obvious reference, on real images with a trained model.

    python benchmarks/fidelity.py --weights F --data DIR [--where KEY=VALUE] [--images 20] [--engine torch compile]

The reference is the plain model in float32, one image at a time, followed by `tests/reference`: location by location,
with maps of the whole image, in the authors' mask frame. With --twin plain, the package's own post-processing is used
instead, in the exact frame. It is compared with each engine, in float32 and in bfloat16, in the same frame. For the
reference instances above the score threshold, the script prints the fraction with a counterpart of the same class and a
box IoU above 0.98 (each counterpart is matched once, by descending score), and the mean mask IoU of these pairs.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from embedmask.config import ModelConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.images import size_of
from embedmask.data.transforms import EvalTransform
from embedmask.device import DTYPES
from embedmask.errors import BadInput
from embedmask.files import write_json
from embedmask.inference.engines import Network, make_network
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.proposals import Proposals
from embedmask.masks import MaskCrop, RunMasks
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import Instances, Predictions, Size
from embedmask.weights.checkpoint import load_checkpoint

TESTS = Path(__file__).parents[1] / "tests"
SCORE, BOX_IOU = 0.3, 0.98
AIMS = {"same": 0.97, "mask_iou": 0.97}
CHUNK = 20
"""Number of instances whose full-size maps the reference keeps in memory at once."""
Twin = Literal["reference", "plain"]


@dataclass
class MatchCounts:
    """Counts of reference instances and of their counterparts, over images."""

    instances: int = 0
    same: int = 0
    mask_iou: float = 0.0

    def add(self, slow: Instances, fast: Instances) -> None:
        """Add the instances of one image."""
        self.instances += int((slow.scores > SCORE).sum())
        for row, partner in pairs(slow, fast):
            self.same += 1
            self.mask_iou += mask_iou(slow.masks, row, fast.masks, partner)

    def figures(self) -> dict[str, float]:
        """Return the number of instances, the fraction with a counterpart, and the mean mask IoU of those."""
        return {
            "instances": self.instances,
            "same": self.same / max(self.instances, 1),
            "mask_iou": self.mask_iou / max(self.same, 1),
        }


def pairs(slow: Instances, fast: Instances) -> Iterator[tuple[int, int]]:
    """Yield the rows of the slow instances above the score threshold and of their counterparts."""
    # [R slow, R fast], 0 between classes
    ious = box_iou(slow.boxes, fast.boxes) * (slow.labels[:, None] == fast.labels)
    for row in (slow.scores > SCORE).nonzero()[:, 0].tolist():
        if ious.shape[1] and ious[row].max() > BOX_IOU:
            partner = int(ious[row].argmax())
            ious[:, partner] = 0  # matched once only
            yield row, partner


def mask_iou(masks: RunMasks, index: int, others: RunMasks, other: int) -> float:
    """Return the IoU of two masks of one frame; 1 where both are empty."""
    common = int(masks.overlaps(np.array([index]), others, np.array([other]))[0])
    union = int(masks.areas()[index] + others.areas()[other]) - common
    return common / union if union else 1.0


def slow_instances(
    predictions: Predictions, cfg: ModelConfig, image_size: Size, original_size: Size
) -> Instances:
    """Return the instances of one image, decoded by `tests/reference`."""
    from reference.inference import decode_proposals, mask_values

    decoded = decode_proposals(
        predictions, 0, image_size, score_threshold=cfg.candidate_threshold, pre_nms_topk=cfg.pre_nms_topk,
        nms_threshold=cfg.nms_threshold, max_detections=cfg.max_detections, box_offset=cfg.box_offset,
        score=cfg.score, clip_before_nms=cfg.clip_before_nms,
    )  # fmt: skip
    proposals = as_proposals(predictions, decoded)
    # the interpolated values are log-probabilities or probabilities, depending on the version of the method
    limit = math.log(cfg.mask_threshold) if cfg.mask_interpolation == "log_prob" else cfg.mask_threshold
    masks = [
        mask
        for part in torch.arange(len(proposals)).split(CHUNK)
        for mask in mask_values(
            predictions.pixel_embed[0], proposals.select(part), stride=predictions.pixel_stride, image_size=image_size,
            original_size=original_size, interpolation=cfg.mask_interpolation,
        ) > limit
    ]  # fmt: skip
    # boxes: network frame -> original image
    scale = [o / i for o, i in zip(original_size, image_size, strict=True)]
    boxes = proposals.boxes * torch.tensor([scale[1], scale[0]] * 2)
    crops = RunMasks.from_crops((MaskCrop(mask.numpy(), 0, 0) for mask in masks), original_size)
    return Instances(boxes, proposals.scores, proposals.labels, crops)


def as_proposals(
    predictions: Predictions, decoded: Sequence[tuple[float, int, list[float], int, int]]
) -> Proposals:
    """Return proposals with embeddings and margins, from (score, label, box, level, cell) of each."""

    def at(maps: list[Tensor]) -> Tensor:
        # [1, D, Hl, Wl] of each level -> [R, D]
        rows = [maps[level][0].flatten(1)[:, cell] for *_, level, cell in decoded]
        return torch.stack(rows) if rows else torch.zeros(0, maps[0].shape[1])

    return Proposals(
        boxes=torch.tensor([box for _, _, box, _, _ in decoded]).reshape(-1, 4),
        scores=torch.tensor([score for score, *_ in decoded]),
        labels=torch.tensor([label for _, label, *_ in decoded], dtype=torch.int64),
        embed=at(predictions.proposal_embed),
        margin=at(predictions.proposal_margin),
    )


def networks(model: EmbedMask, engines: Sequence[Any]) -> dict[str, Network]:
    """Return name -> network, for each engine and number format."""
    formats = ("float32", "bfloat16")
    return {f"{e} {p}": make_network(model, e, DTYPES[p]) for e in engines for p in formats}


@torch.inference_mode()
def compare(
    model: EmbedMask, dataset: CocoInstances, chosen: Sequence[int], engines: Sequence[Any], twin: Twin
) -> dict[str, dict[str, float]]:
    """Compare every fast network with the reference over the chosen items of a data set."""
    cfg = model.config
    # tests/reference implements only the authors' frame and scores
    if twin == "reference":
        cfg = replace(cfg, mask_frame="authors", rescore_masks=False)
    resize = EvalTransform.from_config(cfg)
    fast = networks(model, engines)
    counts = {name: MatchCounts() for name in fast}
    post = Postprocessor.from_config(cfg, reference_masks=twin == "reference")
    for index in chosen:
        image = dataset.image(index)
        batch, original = model.preprocess([resize.image(image)]), size_of(image)
        predictions = model(batch)
        if twin == "reference":
            slow = slow_instances(predictions, cfg, batch.sizes[0], original)
        else:
            (slow,) = post(predictions, batch.sizes, [original])
        for name, network in fast.items():
            counts[name].add(slow, post(network(batch), batch.sizes, [original])[0])
        logging.info("image %d: %d instances", dataset.image_ids[index], int((slow.scores > SCORE).sum()))
    return {name: of_network.figures() for name, of_network in counts.items()}


def items(dataset: CocoInstances, count: int | None) -> list[int]:
    """Return the indices of `count` images spread over the data set; of all for None."""
    step = max(1, len(dataset) // count) if count else 1
    return list(range(len(dataset)))[::step][:count]


def main() -> None:
    """Parse the command line, compare and print the figures."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--where", help="KEY=VALUE of the image's record")
    parser.add_argument("--images", type=int, help="number of images, spread over the set; default: all")
    parser.add_argument("--engine", nargs="+", default=["torch"])
    parser.add_argument("--twin", choices=("reference", "plain"), default="reference")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    # for the package `reference`
    sys.path.insert(0, str(TESTS))
    model = load_checkpoint(args.weights).model
    if not isinstance(model, EmbedMask):
        raise BadInput(f"{args.weights}: not an EmbedMask model; give one")
    dataset = CocoInstances.open(args.data, args.split, image_filter=args.where)
    chosen = items(dataset, args.images)
    report = compare(model, dataset, chosen, args.engine, args.twin)
    for name, figures in report.items():
        text = ", ".join(f"{key} {figures[key]:.4f} (aim {aim})" for key, aim in AIMS.items())
        print(f"{name}: {figures['instances']:.0f} instances in {len(chosen)} images, {text}")
    if args.json is not None:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
