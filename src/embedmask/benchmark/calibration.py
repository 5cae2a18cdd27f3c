"""Work of an everyday amount for networks that nobody has trained, the same on both sides.

Random weights find nothing, or everything everywhere. Their last layers are therefore scaled, by what they give for
the image that is measured:

- every class is as frequent as any other, and the bias is such that `CANDIDATES` pairs of box and class for each
  wanted detection pass the score threshold that the configuration has, as after a training;
- boxes have sides of about `box_cells` cells of their pyramid level, and some variation; those of Mask R-CNN are as
  large as its anchors. The mean area that comes out is measured on both sides;
- masks fill about half of their box.

How long the convolutions take does not depend on any of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from embedmask.config import ModelConfig
from embedmask.coupling import weighted_distance
from embedmask.inference.postprocess import Postprocessor
from embedmask.inference.proposals import Proposals
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import ImageBatch, Predictions, Size

CANDIDATES = 10
"""Pairs of box and class above the score threshold for each detection that is wanted."""
BOX_CELLS = 10.0
"""Sides of boxes in cells of their level. On 800 x 1216 px their mean area is then near that of Mask R-CNN's."""
LEAST_THRESHOLD = 0.01
"""Where the configuration has a lower score threshold, or none, candidates are counted from here on."""
BLOB = 40
"""px across the blobs of the image."""


def write_test_image(path: Path, size: Size) -> None:
    """A JPEG file of soft coloured blobs under some noise: about as many bytes a pixel as a photo has.

    Args:
        size: `(height, width)` px.
    """
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (*(-(-side // BLOB) + 1 for side in size), 3), dtype=np.uint8)
    blobs = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    noisy = np.asarray(blobs) + rng.normal(0, 6, (*size, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@torch.no_grad()
def calibrate_embedmask(
    model: EmbedMask, batch: ImageBatch, detections: int, *, trained: bool, box_cells: float = BOX_CELLS
) -> None:
    """Give a network, in place, a load of `detections` in the first image of a batch.

    Args:
        trained: move the class bias alone; boxes and embeddings stay as learned.
        box_cells: sides of random boxes, in cells of their level.
    """
    head, config = model.head, model.config
    if not trained:
        half = box_cells / 2
        standardize(lambda: model(batch), {head.class_logits: (0.0, 1.0), head.box: (half, half / 4)})
    predictions = model(batch)
    # a root is compared as the product of class score and centerness, and an untrained centerness is a half
    needed = max(config.score_threshold, LEAST_THRESHOLD) * (2 if config.score == "root" else 1)
    logits = torch.cat([level[0].flatten() for level in predictions.class_logits])
    shift = math.log(needed / (1 - needed)) - _edge(logits, detections)
    bias_of(head.class_logits).add_(shift)
    for level in predictions.class_logits:
        level.add_(shift)
    if not trained and hasattr(head.margin, "conv"):
        bias_of(head.margin.conv).add_(_margin_shift(config, predictions, batch))


@torch.no_grad()
def calibrate_torchvision(model: Any, image: Tensor, detections: int) -> None:
    """Give torchvision's Mask R-CNN, in place, a load of `detections` in an image float `[3, H, W]`, 0..1."""
    rpn, predictor = model.rpn.head, model.roi_heads.box_predictor
    masks = model.roi_heads.mask_predictor.mask_fcn_logits
    standardize(lambda: model([image]), {rpn.cls_logits: (0.0, 1.0), rpn.bbox_pred: (0.0, 0.1)})
    # box heads divide their four numbers by 10, 10, 5 and 5
    standardize(lambda: model([image]), {predictor.cls_score: (0.0, 2.0), predictor.bbox_pred: (0.0, 0.5)})
    logits = standardize(lambda: model([image]), {masks: (0.0, 1.0)}, watch=predictor.cls_score)
    bias_of(predictor.cls_score)[0] += _background_bias(
        logits, CANDIDATES * detections, model.roi_heads.score_thresh
    )


def standardize(
    run: Callable[[], Any], wanted: Mapping[nn.Module, tuple[float, float]], watch: nn.Module | None = None
) -> Tensor:
    """Scale and shift layers, in place, so that each channel of their output has a given mean and deviation.

    Args:
        run: calls the network.
        wanted: mean and standard deviation of every channel, over all outputs of one call; layers of which `run`
            makes no use stay as they are.
        watch: a further layer.

    Returns:
        What `watch` gave out, `[P, channels]`.
    """
    given: dict[nn.Module, list[Tensor]] = {module: [] for module in (*wanted, watch) if module is not None}
    hooks = [
        module.register_forward_hook(
            lambda m, _, out: given[m].append(out.float().transpose(0, 1).flatten(1))
        )
        for module in given
    ]
    run()
    for hook in hooks:
        hook.remove()
    for module, (mean, deviation) in wanted.items():
        if given[module]:
            _rescale(module, torch.cat(given[module], 1), mean, deviation)
    return torch.cat(given[watch], 1).T if watch is not None else torch.zeros(0)


def _rescale(module: Any, output: Tensor, mean: float, deviation: float) -> None:
    factor = deviation / output.std(1).clamp(min=1e-12)
    module.weight.mul_(factor.view(-1, *[1] * (module.weight.ndim - 1)))
    module.bias.copy_((module.bias - output.mean(1)) * factor + mean)


def bias_of(layer: Any) -> Tensor:
    """The bias of a layer that has one."""
    assert isinstance(layer.bias, Tensor)
    return layer.bias


def _edge(logits: Tensor, detections: int) -> float:
    """The value that as many logits pass as candidates are wanted, or half of them all."""
    count = min(CANDIDATES * detections, len(logits) // 2)
    return float(logits.topk(count + 1).values[-1])


def _background_bias(logits: Tensor, count: int, threshold: float) -> float:
    """What to add to the background's logits `[P, 1 + C]` so that `count` others pass the threshold, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        shifted = logits.clone()
        shifted[:, 0] += middle
        passing = int((shifted.softmax(1)[:, 1:] > threshold).sum())
        low, high = (middle, high) if passing > count else (low, middle)
    return low


def _margin_shift(config: ModelConfig, predictions: Predictions, batch: ImageBatch) -> float:
    """What to add to the logarithm of the margin so that half of the cells inside boxes have phi above 0.5."""
    proposals = Postprocessor(config).propose(predictions, 0, batch.sizes[0])
    pixels, stride = predictions.pixel_embed[0].float(), predictions.pixel_stride
    inside = [_distances(pixels, proposals, row, stride) for row in range(len(proposals))]
    median = torch.cat(inside).median() if inside else torch.tensor(0.0)
    return math.log(math.log(2) / float(median)) if median > 0 else 0.0


def _distances(pixels: Tensor, proposals: Proposals, row: int, stride: int) -> Tensor:
    """d of eq. 3 of one proposal at every cell of its box."""
    x1, y1, x2, y2 = (int(side) for side in (proposals.boxes[row] / stride).tolist())
    window = pixels[:, y1 : y2 + 1, x1 : x2 + 1].flatten(1)
    return weighted_distance(window, proposals.embed[row, None], proposals.margin[row, None]).flatten()
