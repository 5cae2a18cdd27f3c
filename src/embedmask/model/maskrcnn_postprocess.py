"""Post-processing of Mask R-CNN: detections to instances in the frame of the original image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import clip_boxes_to_image

from embedmask.config import MaskRCNNConfig
from embedmask.masks import MaskCrop, RunMasks
from embedmask.model.maskrcnn import Detections
from embedmask.structures import Instances, Size


@dataclass
class MaskRCNNPostprocessor:
    """Post-processing of Mask R-CNN for a batch.

    Attributes:
        mask_threshold: probability above which a pixel belongs to the instance.
        network_options: limits, which the network applies to its boxes before it computes their masks.
        final_thresholds: minimum score of each class, C values; empty: none.
        max_detections: maximum number of instances per image.
    """

    mask_threshold: float
    network_options: dict[str, Any]
    final_thresholds: Sequence[float]
    max_detections: int

    @classmethod
    def from_config(
        cls,
        cfg: MaskRCNNConfig,
        max_detections: int | None = None,
        score_threshold: float | None = None,
        reference_masks: bool = True,
        final_thresholds: Sequence[float] = (),
    ) -> Self:
        """Return the post-processing of a model's config, which also holds the values that are None.

        `reference_masks` is not used, since masks have one placement.
        """
        limit = cfg.max_detections if max_detections is None else max_detections
        # the network applies its limit before thresholds that differ by class: it keeps as many boxes as by default
        is_uniform = len(set(final_thresholds)) < 2
        options = {
            "score_threshold": cfg.candidate_threshold if score_threshold is None else score_threshold,
            "nms_threshold": cfg.nms_threshold,
            "max_detections": limit if is_uniform else max(limit, cfg.max_detections),
        }
        return cls(cfg.mask_threshold, options, final_thresholds, limit)

    def __call__(
        self, detections: Sequence[Detections], image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        """Return the instances of each image, in its original frame; see `PostProcessing`."""
        return [
            postprocess_mask_rcnn(one, *sizes, mask_threshold=self.mask_threshold).best(
                self.final_thresholds, self.max_detections
            )
            for one, *sizes in zip(detections, image_sizes, original_sizes, strict=True)
        ]


def postprocess_mask_rcnn(
    detections: Detections, image_size: Size, original_size: Size, *, mask_threshold: float
) -> Instances:
    """Convert the detections of one image to instances in the frame of the original image.

    Args:
        detections: output of `MaskRCNN` for one image.
        image_size: `(height, width)` of the image inside the network's frame.
        original_size: `(height, width)` of the original image.
        mask_threshold: probability above which a pixel belongs to the instance.
    """
    boxes = resize_boxes(detections["boxes"], list(image_size), list(original_size))
    # rounding may move a box on the border out of the image
    boxes = clip_boxes_to_image(boxes, original_size)
    masks = paste(detections["masks"], boxes, original_size, mask_threshold)
    return Instances(boxes, detections["scores"], detections["labels"], masks)


def paste(grids: Tensor, boxes: Tensor, original_size: Size, threshold: float) -> RunMasks:
    """Paste masks as torchvision's `paste_masks_in_image` does, each into its own crop instead of a whole image.

    Args:
        grids: probabilities `[R, 1, S, S]`.
        boxes: `[R, 4]` xyxy px, inside the image.
        original_size: `(height, width)` of the image.
        threshold: probability above which a pixel belongs to the mask.
    """
    height, width = original_size
    padded, scale = expand_masks(grids, padding=1)

    def crops() -> Iterator[MaskCrop]:
        corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
        for grid, (x1, y1, x2, y2) in zip(padded, corners, strict=True):
            left, top = max(x1, 0), max(y1, 0)
            # the box in the frame of its crop; it may begin before the crop, which the image limits
            inside = (x1 - left, y1 - top, x2 - left, y2 - top)
            crop = paste_mask_in_image(grid[0], inside, min(y2 + 1, height) - top, min(x2 + 1, width) - left)
            yield MaskCrop((crop > threshold).cpu().numpy(), top, left)

    return RunMasks.from_crops(crops(), original_size)
