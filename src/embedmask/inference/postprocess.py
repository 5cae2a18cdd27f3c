"""Post-processing of EmbedMask: predictions of a batch to instances in the frame of each original image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torchvision.ops import clip_boxes_to_image

from embedmask.config import ModelConfig
from embedmask.inference.mask_decoding import decode_masks
from embedmask.inference.proposals import Proposals, decode_proposals
from embedmask.inference.rescoring import MIN_RESCORED, rescore_by_masks
from embedmask.structures import Instances, Predictions, Size


class Postprocessor:
    """Inference of section 3.6: decoding, class-wise NMS, masks inside boxes, resizing, thresholding."""

    def __init__(self, cfg: ModelConfig, max_detections: int | None = None) -> None:
        self.cfg = cfg
        self.max_detections = cfg.max_detections if max_detections is None else max_detections

    @classmethod
    def from_config(cls, cfg: ModelConfig, max_detections: int | None = None) -> Self:
        """Return the post-processing of a model's config; `max_detections` overrides that of the config."""
        return cls(cfg, max_detections)

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        """Return the instances of each image, in its original frame.

        Args:
            predictions: of N images.
            image_sizes: `(height, width)` of each image inside the padded frame.
            original_sizes: `(height, width)` of each original image.
        """
        sizes = enumerate(zip(image_sizes, original_sizes, strict=True))
        return [
            self.finish(predictions, index, self.propose(predictions, index, pair[0]), *pair)
            for index, pair in sizes
        ]

    def propose(self, predictions: Predictions, index: int, image_size: Size) -> Proposals:
        """Decode the proposals of image `index` that NMS keeps: the first half of the post-processing."""
        cfg, limit = self.cfg, self.max_detections
        return decode_proposals(
            predictions,
            index,
            image_size,
            score_threshold=cfg.score_threshold,
            pre_nms=cfg.pre_nms,
            nms_threshold=cfg.nms_threshold,
            max_detections=max(limit, MIN_RESCORED) if cfg.rescore_masks else limit,
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
        """Decode masks and rescale boxes to the frame of the original image: the second half."""
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
        # rounding may move a box on the border out of the image
        boxes = clip_boxes_to_image(boxes, original_size)
        embed, margin = proposals.embed, proposals.margin
        instances = Instances(boxes, proposals.scores, proposals.labels, masks, embed, margin)
        if not cfg.rescore_masks:
            return instances
        rescored = rescore_by_masks(instances)
        return rescored.select(range(min(len(rescored), self.max_detections)))
