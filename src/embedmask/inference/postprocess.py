"""Post-processing of EmbedMask: predictions of a batch to instances in the frame of each original image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torchvision.ops import clip_boxes_to_image

from embedmask.config import ModelConfig
from embedmask.inference.mask_decoding import Frame, decode_masks
from embedmask.inference.proposals import Proposals, decode_proposals
from embedmask.inference.rescoring import MIN_RESCORED, rescore_by_masks
from embedmask.structures import Instances, Predictions, Size


@dataclass
class Postprocessor:
    """Inference of section 3.6: decoding, class-wise NMS, masks inside boxes, resizing, thresholding.

    Attributes:
        cfg: all settings but those below.
        max_detections: maximum number of instances per image.
        score_threshold: threshold of candidates before NMS.
        mask_frame: placement of the masks in the image; see `ModelConfig.mask_frame`.
        final_thresholds: minimum final score of each class, C values, applied before the limit; empty: none.
    """

    cfg: ModelConfig
    max_detections: int
    score_threshold: float
    mask_frame: Frame
    final_thresholds: Sequence[float] = ()
    network_options: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def from_config(
        cls,
        cfg: ModelConfig,
        max_detections: int | None = None,
        score_threshold: float | None = None,
        reference_masks: bool = True,
        final_thresholds: Sequence[float] = (),
    ) -> Self:
        """Return the post-processing of a model's config, which also holds the values that are None.

        Args:
            reference_masks: place masks by the config's `mask_frame`, to reproduce published figures; False:
                exactly, as `Predictor` and `embedmask eval` do.
            final_thresholds: see the class.
        """
        return cls(
            cfg,
            max_detections=cfg.max_detections if max_detections is None else max_detections,
            score_threshold=cfg.candidate_threshold if score_threshold is None else score_threshold,
            mask_frame=cfg.mask_frame if reference_masks else "exact",
            final_thresholds=final_thresholds,
        )

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        """Return the instances of each image, in its original frame; see `PostProcessing`."""
        sizes = enumerate(zip(image_sizes, original_sizes, strict=True))
        return [
            self.decode_instances(predictions, index, self.propose(predictions, index, pair[0]), *pair)
            for index, pair in sizes
        ]

    def propose(self, predictions: Predictions, index: int, image_size: Size) -> Proposals:
        """Decode the proposals of image `index` that NMS keeps: the first half of the post-processing."""
        cfg, limit = self.cfg, self.max_detections
        return decode_proposals(
            predictions,
            index,
            image_size,
            cfg,
            score_threshold=self.score_threshold,
            max_detections=max(limit, MIN_RESCORED) if cfg.rescore_masks else limit,
            final_thresholds=self.final_thresholds,
        )

    def decode_instances(
        self,
        predictions: Predictions,
        index: int,
        proposals: Proposals,
        image_size: Size,
        original_size: Size,
    ) -> Instances:
        """Decode masks and rescale boxes to the frame of the original image: the second half."""
        cfg = self.cfg
        mask_margin, min_margin = cfg.mask_reach
        masks = decode_masks(
            predictions.pixel_embed[index],
            proposals,
            stride=predictions.pixel_stride,
            image_size=image_size,
            original_size=original_size,
            threshold=cfg.mask_threshold,
            interpolation=cfg.mask_interpolation,
            frame=self.mask_frame,
            margin=mask_margin,
            min_margin=min_margin,
        )
        scale_y, scale_x = (o / i for o, i in zip(original_size, image_size, strict=True))
        boxes = proposals.boxes * proposals.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        # rounding may move a box on the border out of the image
        boxes = clip_boxes_to_image(boxes, original_size)
        embed, margin = proposals.embed, proposals.margin
        instances = Instances(boxes, proposals.scores, proposals.labels, masks, embed, margin)
        if not cfg.rescore_masks:
            return instances
        return rescore_by_masks(instances).best(self.final_thresholds, self.max_detections)
