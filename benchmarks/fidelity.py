"""Whether the fast ways find what the slow one finds, on real images with a trained model.

    python benchmarks/fidelity.py --weights F --data DIR [--where KEY=VALUE] [--images 20] [--engine torch compile]

The slow way: the model as it is in float32, one image at a time, then `tests/reference`: location by location, whole
maps, in the authors' mask frame. With --twin plain: the package's own post-processing, in the exact frame. The fast
ways: each engine, in float32 and in bfloat16, in the same frame. Of the slow way's instances above the score threshold:
the share that has a counterpart of its class whose box IoU is above 0.98 (each counterpart is taken once, the best
instance chooses first), and the mean mask IoU of these pairs.
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

import torch
from torch import Tensor
from torchvision.ops import box_iou

from embedmask.config import ModelConfig
from embedmask.data.coco import CocoInstances
from embedmask.data.images import size_of
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput
from embedmask.files import write_json
from embedmask.inference.device import DTYPES
from embedmask.inference.engines import Network, make_network
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.proposals import Proposals
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import CropMasks, Instances, Predictions, Size
from embedmask.weights.checkpoint import load_checkpoint

TESTS = Path(__file__).parents[1] / "tests"
SCORE, BOX_IOU = 0.3, 0.98
AIMS = {"same": 0.97, "mask_iou": 0.97}
CHUNK = 20
"""Instances whose whole maps the slow way holds at once."""
Twin = Literal["reference", "plain"]


@dataclass
class Tally:
    """Counts over images."""

    instances: int = 0
    same: int = 0
    mask_iou: float = 0.0

    def add(self, slow: Instances, fast: Instances) -> None:
        """One image."""
        self.instances += int((slow.scores > SCORE).sum())
        for row, partner in pairs(slow, fast):
            self.same += 1
            self.mask_iou += mask_iou(slow.masks.dense(row), fast.masks.dense(partner))

    def figures(self) -> dict[str, float]:
        """Instances, the share that is found again, and the mean mask IoU of those."""
        return {
            "instances": self.instances,
            "same": self.same / max(self.instances, 1),
            "mask_iou": self.mask_iou / max(self.same, 1),
        }


def pairs(slow: Instances, fast: Instances) -> Iterator[tuple[int, int]]:
    """Rows of the slow way's instances above the score threshold, each with its counterpart's."""
    ious = box_iou(slow.boxes, fast.boxes) * (slow.labels[:, None] == fast.labels)
    for row in (slow.scores > SCORE).nonzero()[:, 0].tolist():
        if ious.shape[1] and ious[row].max() > BOX_IOU:
            partner = int(ious[row].argmax())
            ious[:, partner] = 0
            yield row, partner


def mask_iou(first: Tensor, second: Tensor) -> float:
    """Of two bool masks `[H, W]`; 1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def slow_instances(
    predictions: Predictions, cfg: ModelConfig, image_size: Size, original_size: Size
) -> Instances:
    """`tests/reference` on the predictions of one image."""
    from reference.inference import decode_proposals, mask_values

    found = decode_proposals(
        predictions, 0, image_size, score_threshold=cfg.score_threshold, pre_nms=cfg.pre_nms,
        nms_threshold=cfg.nms_threshold, max_detections=cfg.max_detections, box_offset=cfg.box_offset,
        score=cfg.score, clip_before_nms=cfg.clip_before_nms,
    )  # fmt: skip
    proposals = as_proposals(predictions, found)
    limit = math.log(cfg.mask_threshold) if cfg.mask_interpolation == "log_prob" else cfg.mask_threshold
    masks = [
        mask
        for part in torch.arange(len(proposals)).split(CHUNK)
        for mask in mask_values(
            predictions.pixel_embed[0], proposals[part], stride=predictions.pixel_stride, image_size=image_size,
            original_size=original_size, interpolation=cfg.mask_interpolation,
        ) > limit
    ]  # fmt: skip
    scale = [o / i for o, i in zip(original_size, image_size, strict=True)]
    boxes = proposals.boxes * torch.tensor([scale[1], scale[0]] * 2)
    crops = CropMasks(masks, [(0, 0)] * len(masks), original_size)
    return Instances(boxes, proposals.scores, proposals.labels, crops)


def as_proposals(
    predictions: Predictions, found: Sequence[tuple[float, int, list[float], int, int]]
) -> Proposals:
    """(score, label, box, level, cell) of each -> what the coupling needs."""

    def at(maps: list[Tensor]) -> Tensor:
        rows = [maps[level][0].flatten(1)[:, cell] for *_, level, cell in found]
        return torch.stack(rows) if rows else torch.zeros(0, maps[0].shape[1])

    return Proposals(
        boxes=torch.tensor([box for _, _, box, _, _ in found]).reshape(-1, 4),
        scores=torch.tensor([score for score, *_ in found]),
        labels=torch.tensor([label for _, label, *_ in found], dtype=torch.int64),
        embed=at(predictions.proposal_embed),
        margin=at(predictions.proposal_margin),
    )


def networks(model: EmbedMask, engines: Sequence[Any]) -> dict[str, Network]:
    """Name -> a fast way to run the network."""
    formats = ("float32", "bfloat16")
    return {f"{e} {p}": make_network(model, e, DTYPES[p]) for e in engines for p in formats}


@torch.inference_mode()
def compare(
    model: EmbedMask, dataset: CocoInstances, chosen: Sequence[int], engines: Sequence[Any], twin: Twin
) -> dict[str, dict[str, float]]:
    """Figures of every fast way over the chosen items of a data set."""
    cfg = replace(model.config, mask_frame="exact")
    if twin == "reference":  # has the authors' frame and scores alone
        cfg = replace(cfg, mask_frame="authors", rescore_masks=False)
    resize = EvalTransform(cfg.image_short_side, cfg.image_long_side, cfg.image_rounding)
    fast_ways = networks(model, engines)
    tallies = {name: Tally() for name in fast_ways}
    post = Postprocessor(cfg)
    for index in chosen:
        image = dataset.image(index)
        batch, original = model.preprocess([resize.image(image)]), size_of(image)
        predictions = model(batch)
        if twin == "reference":
            slow = slow_instances(predictions, cfg, batch.sizes[0], original)
        else:
            (slow,) = post(predictions, batch.sizes, [original])
        for name, network in fast_ways.items():
            tallies[name].add(slow, post(network(batch), batch.sizes, [original])[0])
        logging.info("image %d: %d instances", dataset.image_ids[index], int((slow.scores > SCORE).sum()))
    return {name: tally.figures() for name, tally in tallies.items()}


def items(dataset: CocoInstances, count: int | None) -> list[int]:
    """Indices of so many images, spread over the data set."""
    step = max(1, len(dataset) // count) if count else 1
    return list(range(len(dataset)))[::step][:count]


def main() -> None:
    """Read the command line."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--where", help="KEY=VALUE of the image's record")
    parser.add_argument("--images", type=int, help="so many, spread over the set; default: all")
    parser.add_argument("--engine", nargs="+", default=["torch"])
    parser.add_argument("--twin", choices=("reference", "plain"), default="reference")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    model = load_checkpoint(given.weights).model
    if not isinstance(model, EmbedMask):
        raise BadInput(f"{given.weights}: not an EmbedMask; give such a model")
    dataset = CocoInstances.open(given.data, given.split, where=given.where)
    chosen = items(dataset, given.images)
    found = compare(model, dataset, chosen, given.engine, given.twin)
    for name, figures in found.items():
        told = ", ".join(f"{key} {figures[key]:.4f} (aim {aim})" for key, aim in AIMS.items())
        print(f"{name}: {figures['instances']:.0f} instances in {len(chosen)} images, {told}")
    if given.json is not None:
        write_json(given.json, found)


if __name__ == "__main__":
    main()
