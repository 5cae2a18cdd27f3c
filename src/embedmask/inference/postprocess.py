"""Predictions of a batch -> finished instances in each image's own frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torchvision.ops import clip_boxes_to_image

from embedmask.config import ModelConfig
from embedmask.inference.masks import decode_masks
from embedmask.inference.proposals import Proposals, decode_proposals
from embedmask.inference.rescoring import MIN_RESCORED, rescore_by_masks
from embedmask.structures import Instances, Predictions, Size


class Postprocessor:
    """Section 3.6: decode, class-wise NMS, masks inside boxes, restored to the original size, thresholded last."""

    def __init__(self, cfg: ModelConfig, max_detections: int | None = None) -> None:
        self.cfg = cfg
        self.max_detections = cfg.max_detections if max_detections is None else max_detections

    @classmethod
    def from_config(cls, cfg: ModelConfig, max_detections: int | None = None) -> Self:
        """The post-processing of a model's configuration; `max_detections` overrides the configuration's."""
        return cls(cfg, max_detections)

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        """Instances of each image.

        Args:
            predictions: of N images.
            image_sizes: `(height, width)` of each inside the padded frame.
            original_sizes: `(height, width)` of each image; results are in this frame.
        """
        sizes = enumerate(zip(image_sizes, original_sizes, strict=True))
        return [
            self.finish(predictions, index, self.propose(predictions, index, pair[0]), *pair)
            for index, pair in sizes
        ]

    def propose(self, predictions: Predictions, index: int, image_size: Size) -> Proposals:
        """First half, for image `index`: what survives the NMS."""
        cfg = self.cfg
        most = self.max_detections
        return decode_proposals(
            predictions,
            index,
            image_size,
            score_threshold=cfg.score_threshold,
            pre_nms=cfg.pre_nms,
            nms_threshold=cfg.nms_threshold,
            max_detections=max(most, MIN_RESCORED) if cfg.rescore_masks else most,
            box_offset=cfg.box_offset,
            score=cfg.score,
            clip_before_nms=cfg.clip_before_nms,
        )

    def finish(
        self,
        predictions: Predictions,
        index: int,
        proposals: Proposals,
        image_size: Size,
        original_size: Size,
    ) -> Instances:
        """Second half: masks of its proposals, and boxes, in the image's frame."""
        cfg = self.cfg
        masks = decode_masks(
            predictions.pixel_embed[index],
            proposals,
            stride=predictions.pixel_stride,
            image_size=image_size,
            original_size=original_size,
            threshold=cfg.mask_threshold,
            interpolation=cfg.mask_interpolation,
            frame=cfg.mask_frame,
            margin=cfg.mask_margin,
        )
        scale_y, scale_x = (o / i for o, i in zip(original_size, image_size, strict=True))
        boxes = proposals.boxes * proposals.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        # scaling rounds, at the border by a last digit out of the image
        boxes = clip_boxes_to_image(boxes, original_size)
        embed, margin = proposals.embed, proposals.margin
        instances = Instances(boxes, proposals.scores, proposals.labels, masks, embed, margin)
        if not cfg.rescore_masks:
            return instances
        rescored = rescore_by_masks(instances)
        return rescored.select(range(min(len(rescored), self.max_detections)))
