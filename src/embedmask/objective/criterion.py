"""Eq. 8: predictions and targets in, weighted losses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from embedmask.config import ModelConfig
from embedmask.coupling import logit, weighted_distance
from embedmask.errors import BadInput
from embedmask.locations import all_locations, flatten_levels, ltrb_to_xyxy
from embedmask.objective.assignment import assign, select_samples
from embedmask.objective.losses import (
    centerness_targets,
    giou_loss,
    hinge_loss,
    lovasz_hinge,
    pack_rows,
    smooth_loss,
)
from embedmask.objective.regions import box_regions, mask_targets
from embedmask.structures import Losses, Predictions, Target

MASK_UPSAMPLING = 2
"""The pixel embedding is resized this much before coupling: stride 8 -> 4."""


@dataclass
class Positives:
    """Positive locations of a batch, image by image, P of them; `gt` counts through all images' ground truths."""

    image: Tensor
    location: Tensor
    gt: Tensor
    ltrb: Tensor
    stride: Tensor
    xy: Tensor

    def pick(self, flat: Tensor) -> Tensor:
        """Values of a map `[N, C, K]` at the positives: `[P, C]`."""
        return flat[self.image, :, self.location]


@dataclass
class Matched:
    """Ground truths of a batch that have a positive location, M of them, with the means of eq. 5 and 6."""

    gt: Tensor
    image: Tensor
    embed: Tensor
    margin: Tensor


class Criterion:
    """The objective of one version of the method. Has no parameters and keeps no state."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.cfg = cfg

    @classmethod
    def from_config(cls, cfg: ModelConfig) -> Self:
        """The objective that belongs to a model's configuration."""
        return cls(cfg)

    def __call__(self, predictions: Predictions, targets: Sequence[Target]) -> Losses:
        """Losses of a batch, averaged as the authors do, over all processes where there are several.

        Args:
            predictions: of N images.
            targets: N, each in its image's own frame before padding; G may be 0.

        Raises:
            BadInput: numbers, shapes or labels of the targets do not fit.
        """
        self._validate(predictions, targets)
        device = predictions.pixel_embed.device
        targets = [
            Target(t.boxes.to(device).float(), t.labels.to(device), t.masks.to(device).bool())
            for t in targets
        ]
        with torch.autocast(device.type, enabled=False):
            positives = self._assign(predictions, targets)
            return self._losses(predictions, targets, positives)

    def _losses(self, predictions: Predictions, targets: Sequence[Target], positives: Positives) -> Losses:
        ltrb = positives.pick(flatten_levels(predictions.box_ltrb)).float()
        centerness = positives.pick(flatten_levels(predictions.centerness_logits))[:, 0].float()
        centerness_target = centerness_targets(positives.ltrb)
        count = len(positives.gt)
        totals = _mean_over_processes(torch.stack([ltrb.new_tensor(float(count)), centerness_target.sum()]))
        num_positives, centerness_sum = totals[0].clamp(min=1), totals[1].clamp(min=1e-6)
        stride = positives.stride[:, None]
        box = giou_loss(ltrb / stride, positives.ltrb / stride) * centerness_target
        bce = F.binary_cross_entropy_with_logits(centerness, centerness_target, reduction="sum")
        mask, smooth = self._mask_losses(predictions, targets, positives, ltrb.detach())
        return Losses(
            classification=self._classification(predictions, targets, positives) / num_positives,
            box=box.sum() / centerness_sum,
            centerness=bce / num_positives,
            mask=mask + _zero_through(predictions),
            smooth=smooth,
            num_positives=count,
        )

    def _classification(
        self, predictions: Predictions, targets: Sequence[Target], positives: Positives
    ) -> Tensor:
        """Sum of the focal loss over all locations and classes."""
        logits = flatten_levels(predictions.class_logits).float()
        labels = torch.cat([target.labels for target in targets])
        wanted = torch.zeros_like(logits)
        wanted[positives.image, labels[positives.gt], positives.location] = 1
        loss: Tensor = sigmoid_focal_loss(
            logits, wanted, alpha=self.cfg.focal_alpha, gamma=self.cfg.focal_gamma, reduction="sum"
        )
        return loss

    def _mask_losses(
        self, predictions: Predictions, targets: Sequence[Target], positives: Positives, ltrb: Tensor
    ) -> tuple[Tensor, Tensor]:
        """lambda_1 and lambda_2 terms: eq. 4 (or 2) and 7."""
        embed = positives.pick(flatten_levels(predictions.proposal_embed)).float()
        margin = positives.pick(flatten_levels(predictions.proposal_margin)).float()
        gt_boxes = torch.cat([target.boxes for target in targets])
        sampled = select_samples(
            ltrb_to_xyxy(positives.xy, ltrb),
            gt_boxes,
            positives.gt,
            mode=self.cfg.embed_samples,
            iou_threshold=self.cfg.sample_iou,
            box_offset=self.cfg.box_offset,
        )
        gt_image = _repeat_index([len(target) for target in targets], embed.device)
        embed, margin, sample_gt = embed[sampled], margin[sampled], positives.gt[sampled]
        gt, inverse = torch.unique(sample_gt, return_inverse=True)
        matched = Matched(
            gt, gt_image[gt], _group_means(embed, inverse, len(gt)), _group_means(margin, inverse, len(gt))
        )
        smooth = embed.sum() * 0
        if self.cfg.smooth_weight > 0:
            spread = smooth_loss(embed, matched.embed[inverse]) + smooth_loss(margin, matched.margin[inverse])
            counts = torch.tensor([len(target) for target in targets], device=embed.device).clamp(min=1)
            smooth = self.cfg.smooth_weight * (spread / counts[gt_image[sample_gt]]).sum() / len(targets)
        return self.cfg.mask_weight * self._mask_loss(
            predictions.pixel_embed, targets, matched, predictions.strides[0]
        ), smooth

    def _mask_loss(
        self, pixel_embed: Tensor, targets: Sequence[Target], matched: Matched, stride: int
    ) -> Tensor:
        """Eq. 4 over all instances of the batch in one sort; the mean over K of each image, then over images."""
        pixels = F.interpolate(
            pixel_embed.float(), scale_factor=MASK_UPSAMPLING, mode="bilinear", align_corners=False
        )
        grid, mask_stride = (pixels.shape[2], pixels.shape[3]), stride // MASK_UPSAMPLING
        first_gt = 0
        distances, wanted, regions, weights = [], [], [], []
        for index, target in enumerate(targets):
            here = matched.image == index
            local = matched.gt[here] - first_gt
            first_gt += len(target)
            if len(local) == 0:
                continue
            distance = weighted_distance(pixels[index].flatten(1), matched.embed[here], matched.margin[here])
            masks = mask_targets(target.masks[local], grid, mask_stride).flatten(1)
            region = torch.ones_like(masks)
            if self.cfg.box_expansion is not None:
                # what follows costs by the pixels inside boxes, not by instances x image
                region = box_regions(target.boxes[local], grid, mask_stride, self.cfg.box_expansion).flatten(
                    1
                )
                distance, masks = pack_rows(distance, region), pack_rows(masks, region)
                region = pack_rows(region, region)
            distances.append(distance)
            wanted.append(masks)
            regions.append(region)
            normalizer = len(target) if self.cfg.mask_normalizer == "all" else len(local)
            weights.append(distance.new_full((len(local),), 1 / (normalizer * len(targets))))
        if not distances:
            return pixels.sum() * 0
        rows = _stack_rows(distances), _stack_rows(wanted), _stack_rows(regions)
        return (self._per_instance(*rows, matched.margin) * torch.cat(weights)).sum()

    def _per_instance(self, distance: Tensor, wanted: Tensor, region: Tensor, margin: Tensor) -> Tensor:
        """L of eq. 4, or eq. 2: `[M, P]` d = -log phi -> `[M]`."""
        if self.cfg.mask_loss == "lovasz":
            return lovasz_hinge(logit(distance, self.cfg.min_prob), wanted, region)
        # every margin is the same constant: taken out again, the distance of eq. 2 remains
        return hinge_loss((distance / margin).clamp(min=1e-12).sqrt(), wanted, region)

    def _assign(self, predictions: Predictions, targets: Sequence[Target]) -> Positives:
        cfg, strides = self.cfg, predictions.strides
        sizes = [(m.shape[2], m.shape[3]) for m in predictions.class_logits]
        device = predictions.pixel_embed.device
        locations, level = all_locations(sizes, strides, device)
        location_strides = torch.tensor(strides, device=device, dtype=torch.float32)[level]
        ranges = torch.tensor(cfg.level_ranges, device=device)[level]
        found = [
            assign(
                locations,
                location_strides,
                ranges,
                target.boxes,
                target.masks,
                center_radius=cfg.center_radius,
                sample_in_mask=cfg.sample_in_mask,
                box_offset=cfg.box_offset,
            )
            for target in targets
        ]
        gt_index = torch.stack([a.gt_index for a in found])
        image, location = (gt_index >= 0).nonzero(as_tuple=True)
        counts = torch.tensor([0] + [len(target) for target in targets[:-1]], device=device)
        return Positives(
            image=image,
            location=location,
            gt=gt_index[image, location] + counts.cumsum(0)[image],
            ltrb=torch.stack([a.ltrb for a in found])[image, location],
            stride=location_strides[location],
            xy=locations[location],
        )

    def _validate(self, predictions: Predictions, targets: Sequence[Target]) -> None:
        count = len(predictions.pixel_embed)
        if len(targets) != count:
            raise BadInput(f"{count} images but {len(targets)} targets; give one target an image")
        height, width = predictions.padded_size
        for index, target in enumerate(targets):
            target.validate(self.cfg.num_classes)
            if target.masks.shape[1] > height or target.masks.shape[2] > width:
                name = (
                    f"of image {target.image_id}" if target.image_id is not None else f"{index} of the batch"
                )
                raise BadInput(
                    f"target {name}: masks are {tuple(target.masks.shape[1:])}, larger than the "
                    f"batch's frame {(height, width)}; resize them with their image"
                )


def _group_means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Mean of each group (eq. 5 and 6): `[P, D]`, int64 `[P]` -> `[count, D]`."""
    sums = values.new_zeros(count, values.shape[1]).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=count)[:, None]


def _stack_rows(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several images, `[m, W]` each, as one `[M, W]`; shorter ones end in 0."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])


def _repeat_index(counts: Sequence[int], device: torch.device) -> Tensor:
    """[2, 0, 1] -> 0, 0, 2."""
    return torch.arange(len(counts), device=device).repeat_interleave(torch.tensor(counts, device=device))


def _zero_through(predictions: Predictions) -> Tensor:
    """0 that depends on every map: parameters without a positive still get a (zero) gradient, as DDP demands."""
    maps = [*predictions.box_ltrb, *predictions.centerness_logits, *predictions.proposal_embed]
    maps += [*predictions.proposal_margin, predictions.pixel_embed]
    return torch.stack([m.sum() for m in maps]).sum() * 0


def _mean_over_processes(values: Tensor) -> Tensor:
    """Average over all training processes; the values themselves where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return values
