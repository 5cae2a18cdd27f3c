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
from embedmask.locations import all_locations, flatten_levels, ltrb_to_xyxy, resize_aligned
from embedmask.objective.assignment import assign, select_samples
from embedmask.objective.lookup import MaskLookup
from embedmask.objective.losses import (
    centerness_targets,
    dice_loss,
    giou_loss,
    hinge_loss,
    lovasz_hinge,
    pack_rows,
    smooth_loss,
)
from embedmask.objective.mask_targets import box_regions, mask_targets, semantic_targets
from embedmask.structures import Losses, Predictions, Target

MASK_UPSAMPLING = 2
"""The mask loss is computed on a grid this much finer than the pixel embedding's: stride 8 -> 4."""


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
    """Instances of the mask loss, M of them, image by image: ground truths that have a positive location, with the
    means of eq. 5 and 6, or with `embed_samples: each` every positive location. `weight` is that of each in the sum."""

    gt: Tensor
    image: Tensor
    embed: Tensor
    margin: Tensor
    weight: Tensor

    def draw(self, most: int | None) -> Matched:
        """At most `most` at random, each as likely as any other, weighing as much as all of them on average."""
        count = len(self.gt)
        if most is None or count <= most:
            return self
        # drawn on the CPU: its generator is seeded with the training and kept in checkpoints, on any device
        kept = torch.randperm(count)[:most].sort().values.to(self.gt.device)
        weight = self.weight[kept] * (count / most)
        return Matched(self.gt[kept], self.image[kept], self.embed[kept], self.margin[kept], weight)


@dataclass
class ImageTargets:
    """A target on the device of the predictions, its masks ready to be looked up."""

    boxes: Tensor
    labels: Tensor
    masks: MaskLookup

    def __len__(self) -> int:
        return len(self.boxes)


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
        truths = [
            ImageTargets(t.boxes.float().to(device), t.labels.to(device), MaskLookup.of(t.masks, device))
            for t in targets
        ]
        with torch.autocast(device.type, enabled=False):
            positives = self._assign(predictions, truths)
            return self._losses(predictions, truths, positives)

    def _losses(
        self, predictions: Predictions, targets: Sequence[ImageTargets], positives: Positives
    ) -> Losses:
        ltrb = positives.pick(flatten_levels(predictions.box_ltrb)).float()
        centerness = positives.pick(flatten_levels(predictions.centerness_logits))[:, 0].float()
        centerness_target = centerness_targets(positives.ltrb)
        count = len(positives.gt)
        mask, smooth, means = self._mask_losses(predictions, targets, positives, ltrb.detach())
        semantic, cells = self._semantic(predictions, targets)
        num_positives, centerness_sum, num_images, num_means, num_cells = _process_share(
            [float(count), centerness_target.sum(), float(len(targets)), means, cells],
            least=(1, 1e-6, 1, 1, 1),
            like=ltrb,
        )
        stride = positives.stride[:, None]
        box = giou_loss(ltrb / stride, positives.ltrb / stride) * centerness_target
        bce = F.binary_cross_entropy_with_logits(centerness, centerness_target, reduction="sum")
        return Losses(
            classification=self._classification(predictions, targets, positives) / num_positives,
            box=box.sum() / centerness_sum,
            centerness=bce / num_positives,
            mask=mask / num_means + _zero_through(predictions),
            smooth=smooth / num_images,
            semantic=None if semantic is None else semantic / num_cells,
            num_positives=count,
        )

    def _classification(
        self, predictions: Predictions, targets: Sequence[ImageTargets], positives: Positives
    ) -> Tensor:
        """Sum of the focal loss over all locations and classes."""
        logits = flatten_levels(predictions.class_logits).float()
        labels = torch.cat([target.labels for target in targets])
        wanted = torch.zeros_like(logits)
        wanted[positives.image, labels[positives.gt], positives.location] = 1
        return self._focal(logits, wanted)

    def _semantic(
        self, predictions: Predictions, targets: Sequence[ImageTargets]
    ) -> tuple[Tensor | None, Tensor | float]:
        """Weighted sum of the focal loss over the finest level's cells and classes, and the cells with an object."""
        if self.cfg.semantic_weight == 0:
            return None, 0.0
        if predictions.semantic_logits is None:
            raise BadInput("predictions have no semantic_logits: put the network in training mode")
        logits, stride = predictions.semantic_logits.float(), predictions.strides[0]
        grid = (logits.shape[2], logits.shape[3])
        classes = torch.stack([semantic_targets(t.masks, t.labels, grid, stride) for t in targets])
        wanted = torch.zeros_like(logits)
        image, y, x = (classes >= 0).nonzero(as_tuple=True)
        wanted[image, classes[image, y, x], y, x] = 1
        return self.cfg.semantic_weight * self._focal(logits, wanted), wanted.sum()

    def _focal(self, logits: Tensor, wanted: Tensor) -> Tensor:
        loss: Tensor = sigmoid_focal_loss(
            logits, wanted, alpha=self.cfg.focal_alpha, gamma=self.cfg.focal_gamma, reduction="sum"
        )
        return loss

    def _mask_losses(
        self, predictions: Predictions, targets: Sequence[ImageTargets], positives: Positives, ltrb: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """lambda_1 and lambda_2 terms, eq. 4 (or 2) and 7, as sums, and how many means of eq. 4 are in the first."""
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
        counts = torch.tensor([len(target) for target in targets], device=embed.device)
        gt_image = torch.arange(len(targets), device=embed.device).repeat_interleave(counts)
        embed, margin, sample_gt = embed[sampled], margin[sampled], positives.gt[sampled]
        gt, inverse = torch.unique(sample_gt, return_inverse=True)
        if self.cfg.embed_samples == "each":
            gt, inverse = sample_gt, torch.arange(len(sample_gt), device=embed.device)
        matched = Matched(
            gt,
            gt_image[gt],
            _group_means(embed, inverse, len(gt)),
            _group_means(margin, inverse, len(gt)),
            self._weights(gt_image[gt], counts),
        )
        smooth = embed.sum() * 0
        if self.cfg.smooth_weight > 0:
            spread = smooth_loss(embed, matched.embed[inverse]) + smooth_loss(margin, matched.margin[inverse])
            smooth = self.cfg.smooth_weight * (spread / counts[gt_image[sample_gt]]).sum()
        means = len(gt) if self.cfg.mask_normalizer == "batch" else len(targets)
        seen = matched.draw(self.cfg.max_mask_instances)
        mask = self._mask_loss(predictions.pixel_embed.float(), targets, seen, predictions.pixel_stride)
        return self.cfg.mask_weight * mask, smooth, float(means)

    def _weights(self, image: Tensor, counts: Tensor) -> Tensor:
        """1 / K of eq. 4 for each instance; 1 where the mean goes over the whole batch."""
        if self.cfg.mask_normalizer == "batch":
            return torch.ones(len(image), device=image.device)
        if self.cfg.mask_normalizer == "matched":
            counts = torch.bincount(image, minlength=len(counts))
        return 1 / counts[image]

    def _mask_loss(
        self, pixels: Tensor, targets: Sequence[ImageTargets], matched: Matched, stride: int
    ) -> Tensor:
        """Eq. 4 over all instances of the batch in one sort, their weighted sum; `pixels` is p `[N, D, h, w]`."""
        aligned, mask_stride = self.cfg.mask_interpolation == "aligned", stride // MASK_UPSAMPLING
        grid = (pixels.shape[2] * MASK_UPSAMPLING, pixels.shape[3] * MASK_UPSAMPLING)
        if not aligned:
            pixels = F.interpolate(pixels, size=grid, mode="bilinear", align_corners=False)
        first_gt = 0
        rows, wanted, regions = [], [], []
        for index, target in enumerate(targets):
            here = matched.image == index
            local = matched.gt[here] - first_gt
            first_gt += len(target)
            if len(local) == 0:
                continue
            values = weighted_distance(pixels[index].flatten(1), matched.embed[here], matched.margin[here])
            if aligned:
                phi = values.neg().exp().view(len(local), 1, *pixels.shape[2:])
                values = resize_aligned(phi, MASK_UPSAMPLING).flatten(1)
            objects, row = torch.unique(local, return_inverse=True)  # with `each` many rows share an object
            masks = mask_targets(target.masks, grid, mask_stride, index=objects, aligned=aligned)
            masks = masks.flatten(1)[row]
            region = torch.ones_like(masks)
            if self.cfg.box_expansion is not None:
                # what follows costs by the pixels inside boxes, not by instances x image
                region = box_regions(target.boxes[local], grid, mask_stride, self.cfg.box_expansion).flatten(
                    1
                )
                values, masks = pack_rows(values, region), pack_rows(masks, region)
                region = pack_rows(region, region)
            rows.append(values)
            wanted.append(masks)
            regions.append(region)
        if not rows:
            return pixels.sum() * 0
        stacked = _stack_rows(rows), _stack_rows(wanted), _stack_rows(regions)
        return (self._per_instance(*stacked, matched.margin) * matched.weight).sum()

    def _per_instance(self, values: Tensor, wanted: Tensor, region: Tensor, margin: Tensor) -> Tensor:
        """L of eq. 4, or eq. 2: `[M, P]` d = -log phi, or phi itself where that was resized -> `[M]`."""
        cfg, aligned = self.cfg, self.cfg.mask_interpolation == "aligned"
        if cfg.margin == "hinge":
            # every margin is the same constant: taken out again, the distance of eq. 2 remains
            return hinge_loss((values / margin).clamp(min=1e-12).sqrt(), wanted, region)
        if cfg.mask_loss == "dice":
            return dice_loss(values if aligned else values.neg().exp(), wanted, region)
        logits = torch.logit(values, eps=cfg.min_prob) if aligned else logit(values, cfg.min_prob)
        return lovasz_hinge(logits, wanted, region)

    def _assign(self, predictions: Predictions, targets: Sequence[ImageTargets]) -> Positives:
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
                sampling_center=cfg.sampling_center,
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
            own = target.mask_size
            if own[0] > height or own[1] > width:
                name = (
                    f"of image {target.image_id}" if target.image_id is not None else f"{index} of the batch"
                )
                raise BadInput(
                    f"target {name}: masks are {own}, larger than the "
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


def _zero_through(predictions: Predictions) -> Tensor:
    """0 that depends on every map: parameters without a positive still get a (zero) gradient, as DDP demands."""
    maps = [*predictions.box_ltrb, *predictions.centerness_logits, *predictions.proposal_embed]
    maps += [*predictions.proposal_margin, predictions.pixel_embed]
    return torch.stack([m.sum() for m in maps]).sum() * 0


def _process_share(sums: Sequence[Tensor | float], least: Sequence[float], like: Tensor) -> list[Tensor]:
    """What a process divides its own sums by: the sums of all processes, but at least `least`, over their number.

    The mean of the processes' losses, which is what their averaged gradients follow, is then the loss that one
    process would find for all images together, also where a process has no object at all.
    """
    values = torch.stack([like.new_tensor(value) if isinstance(value, float) else value for value in sums])
    world_size = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        world_size = torch.distributed.get_world_size()
    return list((torch.maximum(values, like.new_tensor(least)) / world_size).unbind())
