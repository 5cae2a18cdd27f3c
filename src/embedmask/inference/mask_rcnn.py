"""Mask R-CNN's detections -> finished instances in the image's own frame."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from embedmask.model.maskrcnn import Detections
from embedmask.structures import CropMasks, Instances, RunCrops, Runs, Size


def postprocess_mask_rcnn(
    found: Detections, image_size: Size, original_size: Size, *, mask_threshold: float
) -> Instances:
    """Instances of one image.

    Args:
        found: as `MaskRCNN` gives it.
        image_size: `(height, width)` of the image inside the network's frame.
        original_size: `(height, width)` of the image; results are in this frame.
        mask_threshold: probability above which a pixel belongs to the instance.
    """
    boxes = resize_boxes(found["boxes"], list(image_size), list(original_size))
    # scaling rounds, at the border by a last digit out of the image
    boxes = clip_boxes_to_image(boxes, original_size)
    masks = paste(found["masks"], boxes, original_size, mask_threshold)
    return Instances(boxes, found["scores"], found["labels"], masks)


def paste(grids: Tensor, boxes: Tensor, original_size: Size, threshold: float) -> CropMasks:
    """torchvision's `paste_masks_in_image`, each mask into a crop of its own instead of a whole image.

    Args:
        grids: probabilities `[R, 1, S, S]`.
        boxes: `[R, 4]` xyxy px, inside the image.
        threshold: probability above which a pixel belongs to the mask.
    """
    height, width = original_size
    padded, scale = expand_masks(grids, padding=1)
    runs: list[Runs] = []
    shapes: list[Size] = []
    offsets = []
    for grid, (x1, y1, x2, y2) in zip(
        padded, expand_boxes(boxes, scale).to(torch.int64).tolist(), strict=True
    ):
        left, top = max(x1, 0), max(y1, 0)
        inside = (x1 - left, y1 - top, x2 - left, y2 - top)
        crop = paste_mask_in_image(grid[0], inside, min(y2 + 1, height) - top, min(x2 + 1, width) - left)
        kept = RunCrops.of([crop > threshold])
        runs += kept.runs
        shapes += kept.shapes
        offsets.append((top, left))
    return CropMasks(RunCrops(runs, shapes), offsets, original_size)
