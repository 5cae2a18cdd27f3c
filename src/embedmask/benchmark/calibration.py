"""Calibration of untrained networks, so that both pipelines produce a realistic, equal number of detections.

With random weights a network detects nothing, or something everywhere. The weights of its last layers are therefore
rescaled, using its outputs for the benchmark image:

- all classes are equally frequent, and the class bias is such that `CANDIDATES` pairs of box and class per requested
  detection pass the score threshold of the configuration, as in a trained network;
- boxes have sides of about `box_cells` cells of their pyramid level, with some variation; those of Mask R-CNN and
  RetinaNet are as large as their anchors. The mean area is reported for both pipelines;
- masks fill about half of their box.

The time of the convolutions does not depend on any of this.
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
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import ImageBatch, Predictions, Size

CANDIDATES = 10
"""Pairs of box and class above the score threshold per requested detection."""
BOX_CELLS = 10.0
"""Box sides in cells of their level. At 800 x 1216 px the mean box area is then close to that of Mask R-CNN."""
MIN_THRESHOLD = 0.01
"""Lower bound on the score threshold above which candidates are counted."""
BLOB = 40
"""Size of the blobs of the benchmark image, px."""


def write_test_image(path: Path, size: Size) -> None:
    """Write a JPEG file of soft colored blobs with some noise, which has about as many bytes per pixel as a photo."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (*(-(-side // BLOB) + 1 for side in size), 3), dtype=np.uint8)
    blobs = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    noisy = np.asarray(blobs) + rng.normal(0, 6, (*size, 1))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


@torch.no_grad()
def calibrate_embedmask(
    model: EmbedMask, batch: ImageBatch, detections: int, *, trained: bool, box_cells: float = BOX_CELLS
) -> None:
    """Calibrate a network in evaluation mode, in place: it produces `detections` in the first image of a batch.

    Args:
        trained: change the class bias only; boxes and embeddings stay as learned.
        box_cells: sides of random boxes, in cells of their level.
    """
    head, config = model.head, model.config
    if not trained:
        box = head.box_outputs(box_cells / 2)
        standardize(lambda: model(batch), {head.class_logits: (0.0, 1.0), head.box: box})
    predictions = model(batch)
    # a root score is thresholded as the product of class score and centerness, and untrained centerness is 0.5
    doubled = config.score == "root" and head.centerness is not None
    threshold = max(config.candidate_threshold, MIN_THRESHOLD) * (2 if doubled else 1)
    # shift the logits so that the last of the requested candidates, at most half of all, reaches the threshold
    logits = torch.cat([level[0].flatten() for level in predictions.class_logits])
    count = min(CANDIDATES * detections, len(logits) // 2)
    shift = math.log(threshold / (1 - threshold)) - float(logits.topk(count + 1).values[-1])
    bias_of(head.class_logits).add_(shift)
    for level in predictions.class_logits:
        level.add_(shift)
    if not trained and hasattr(head.margin, "conv"):
        # phi = exp(-margin * d): scale the margin so that the median phi of the cells inside boxes is 0.5
        median = _median_distance(config, predictions, batch)
        bias_of(head.margin.conv).add_(math.log(math.log(2) / median) if median > 0 else 0.0)


def _median_distance(config: ModelConfig, predictions: Predictions, batch: ImageBatch) -> float:
    """Return the median of d (eq. 3) over the cells inside the boxes of the first image; 0 without boxes."""
    proposals = Postprocessor.from_config(config).propose(predictions, 0, batch.sizes[0])
    pixels = predictions.pixel_embed[0].float()  # [D, H1, W1]
    distances = []
    for row, box in enumerate((proposals.boxes / predictions.pixel_stride).tolist()):
        x1, y1, x2, y2 = map(int, box)
        window = pixels[:, y1 : y2 + 1, x1 : x2 + 1].flatten(1)  # [D, P]
        d = weighted_distance(window, proposals.embed[row, None], proposals.margin[row, None])  # [1, P]
        distances.append(d.flatten())
    return float(torch.cat(distances).median()) if distances else 0.0


@torch.no_grad()
def calibrate_torchvision(model: Any, image: Tensor, detections: int) -> None:
    """Calibrate torchvision's Mask R-CNN in evaluation mode, in place, so that it produces `detections` in an image.

    Args:
        image: float `[3, H, W]`, 0..1.
    """
    rpn, predictor = model.rpn.head, model.roi_heads.box_predictor
    masks = model.roi_heads.mask_predictor.mask_fcn_logits
    standardize(lambda: model([image]), {rpn.cls_logits: (0.0, 1.0), rpn.bbox_pred: (0.0, 0.1)})
    # the box coder divides the four deltas by 10, 10, 5 and 5
    standardize(lambda: model([image]), {predictor.cls_score: (0.0, 2.0), predictor.bbox_pred: (0.0, 0.5)})
    logits = standardize(lambda: model([image]), {masks: (0.0, 1.0)}, watch=predictor.cls_score)  # [P, 1 + C]
    # bisect the background's bias, logit 0, until the requested candidates pass the score threshold
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        shifted = logits.clone()
        shifted[:, 0] += middle
        passing = int((shifted.softmax(1)[:, 1:] > model.roi_heads.score_thresh).sum())
        low, high = (middle, high) if passing > CANDIDATES * detections else (low, middle)
    bias_of(predictor.cls_score)[0] += low


def standardize(
    run: Callable[[], Any], targets: Mapping[nn.Module, tuple[float, float]], watch: nn.Module | None = None
) -> Tensor:
    """Scale and shift layers in place, so that each output channel has the requested mean and standard deviation.

    Args:
        targets: layer -> mean and standard deviation of every channel over all outputs of the call. Layers that `run`
            does not use are not changed.

    Returns:
        The outputs of `watch` before the change, `[P, channels]`; empty without `watch`.
    """
    outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in (*targets, watch) if layer is not None}
    # channels first, all other dimensions flattened: [N, C, ...] -> [C, P]
    hooks = [
        layer.register_forward_hook(
            lambda layer, _, out: outputs[layer].append(out.float().transpose(0, 1).flatten(1))
        )
        for layer in outputs
    ]
    run()
    for hook in hooks:
        hook.remove()
    layer: Any
    for layer, (mean, deviation) in targets.items():
        if outputs[layer]:
            output = torch.cat(outputs[layer], 1)
            # y = W x + b becomes (y - E[y]) * factor + mean; the clamp keeps constant channels finite
            factor = deviation / output.std(1).clamp(min=1e-12)  # [C]
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.copy_((layer.bias - output.mean(1)) * factor + mean)
    return torch.cat(outputs[watch], 1).T if watch is not None else torch.zeros(0)


def bias_of(layer: Any) -> Tensor:
    """Return the bias of a layer, which must have one."""
    assert isinstance(layer.bias, Tensor)
    return layer.bias
