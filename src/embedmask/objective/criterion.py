"""The training objective (eq. 8): predictions and targets in, weighted losses out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from embedmask.config import ModelConfig
from embedmask.coupling import logit, weighted_distance
from embedmask.errors import BadInput
from embedmask.locations import (
    MASK_UPSAMPLING,
    flatten_levels,
    ltrb_to_xyxy,
    resize_aligned,
)
from embedmask.masks import BitMasks
from embedmask.objective.assigners import ASSIGNERS, assign_batch
from embedmask.objective.assignment import select_samples
from embedmask.objective.losses import (
    bce_loss,
    centerness_targets,
    dice_loss,
    hinge_loss,
    lovasz_hinge,
    pack_rows,
    smooth_loss,
    varifocal_loss,
)
from embedmask.objective.mask_targets import box_regions, mask_targets, semantic_targets
from embedmask.objective.positives import ImageTargets, Positives
from embedmask.structures import Columns, ImageBatch, Losses, Predictions, Size, Target

IGNORED_LOGIT = -100.0
"""Class logit of ignored locations: its focal loss as background is 0 in float32."""


@dataclass
class Matched(Columns):
    """Instances of the mask loss, M of them, ordered by image.

    An instance is a ground truth that has a positive location; with `embed_samples: each`, every positive location is.

    Attributes:
        gt: int64 `[M]`, index into the concatenated ground truths of all images.
        image: int64 `[M]`, index of the image in the batch.
        embed: Q of eq. 5, `[M, D]`.
        margin: S of eq. 6, `[M, 1 or D]`.
        weight: float32 `[M]`, factor of each instance in the sum of the mask loss.
    """

    gt: Tensor
    image: Tensor
    embed: Tensor
    margin: Tensor
    weight: Tensor

    def sample(self, max_count: int | None) -> Matched:
        """Return at most `max_count` instances, sampled uniformly and reweighted to keep the expected sum."""
        count = len(self.gt)
        if max_count is None or count <= max_count:
            return self
        # on the CPU: its generator is seeded with the training and saved in checkpoints, on any device
        chosen = self.select(torch.randperm(count)[:max_count].sort().values.to(self.gt.device))
        return replace(chosen, weight=chosen.weight * (count / max_count))


class Criterion:
    """Training objective of one version of the method, without parameters or state."""

    def __init__(self, cfg: ModelConfig) -> None:
        self.cfg = cfg

    @classmethod
    def from_config(cls, cfg: ModelConfig) -> Self:
        """Return the objective of a model's configuration."""
        return cls(cfg)

    def __call__(self, predictions: Predictions, targets: Sequence[Target]) -> Losses:
        """Compute the losses of a batch, normalized over all processes.

        Args:
            predictions: of N images.
            targets: N, each in the frame of its image before padding; G may be 0.

        Raises:
            BadInput: the number, the shapes or the labels of the targets do not fit the predictions.
        """
        check_targets(targets, predictions, self.cfg.num_classes)
        device = predictions.pixel_embed.device
        gts = [
            ImageTargets(t.boxes.float().to(device), t.labels.to(device), BitMasks.of(t.masks).to(device))
            for t in targets
        ]
        with torch.autocast(device.type, enabled=False):
            return self._losses(predictions, gts, assign_batch(predictions, gts, self.cfg))

    def _losses(self, predictions: Predictions, gts: Sequence[ImageTargets], positives: Positives) -> Losses:
        ltrb = positives.gather(predictions.box_ltrb).float()  # [P, 4] px
        count = float(len(positives.gt))
        mask, smooth, mask_count = self._mask_and_smooth(predictions, gts, positives, ltrb.detach())
        semantic, cell_count = self._semantic(predictions, gts)
        num_positives, class_sum, weight_sum, num_images, num_masks, num_cells = loss_normalizers(
            [
                count,
                count if positives.quality is None else positives.quality.sum(),
                positives.box_weight.sum(),
                float(len(gts)),
                mask_count,
                cell_count,
            ],
            minimum=(1, 1, 1e-6, 1, 1, 1),
            like=ltrb,
        )
        box = ASSIGNERS[self.cfg.assigner_name].box_loss(ltrb, positives, self.cfg) * positives.box_weight
        centerness = self._centerness(predictions, positives)
        return Losses(
            classification=self._classification(predictions, gts, positives) / class_sum,
            box=self.cfg.box_weight * box.sum() / weight_sum,
            centerness=None if centerness is None else centerness / num_positives,
            mask=mask / num_masks + zero_of(predictions),
            smooth=smooth / num_images,
            semantic=None if semantic is None else semantic / num_cells,
            num_positives=len(positives.gt),
        )

    def _classification(
        self, predictions: Predictions, gts: Sequence[ImageTargets], positives: Positives
    ) -> Tensor:
        """Return the sum of the focal loss, or of the varifocal loss if positives have a quality."""
        labels = torch.cat([gt.labels for gt in gts])[positives.gt]  # [P]
        logits = flatten_levels(predictions.class_logits).float()  # [N, C, K]
        if positives.ignored is not None:
            # a background of probability 0 has neither loss nor gradient
            logits = logits.masked_fill(positives.ignored[:, None], IGNORED_LOGIT)
        objects = (positives.image, labels, positives.location)
        if positives.quality is None:
            return self._focal(logits, objects)
        targets = torch.zeros_like(logits)
        targets[objects] = positives.quality
        return varifocal_loss(logits, targets, 1 - self.cfg.focal_alpha, self.cfg.focal_gamma)

    def _centerness(self, predictions: Predictions, positives: Positives) -> Tensor | None:
        """Return the sum of the centerness loss; None for a head without centerness."""
        if predictions.centerness_logits is None:
            return None
        centerness = positives.gather(predictions.centerness_logits)[:, 0].float()  # [P]
        targets = centerness_targets(positives.ltrb)
        return F.binary_cross_entropy_with_logits(centerness, targets, reduction="sum")

    def _semantic(self, predictions: Predictions, gts: Sequence[ImageTargets]) -> tuple[Tensor | None, float]:
        """Return the weighted sum of the semantic focal loss over the finest level, and the number of object cells."""
        if self.cfg.semantic_weight == 0:
            return None, 0.0
        if predictions.semantic_logits is None:
            raise BadInput("predictions have no semantic_logits; put the network in training mode")
        logits, stride = predictions.semantic_logits.float(), predictions.strides[0]  # [N, C, H, W]
        grid = (logits.shape[2], logits.shape[3])
        # [N, H, W], -1 where there is no object
        classes = torch.stack([semantic_targets(gt.masks, gt.labels, grid, stride) for gt in gts])
        image, y, x = (classes >= 0).nonzero(as_tuple=True)
        loss = self._focal(logits, (image, classes[image, y, x], y, x))
        return self.cfg.semantic_weight * loss, float(len(image))

    def _focal(self, logits: Tensor, objects: tuple[Tensor, ...]) -> Tensor:
        """Return the sum of the focal loss; `objects` are the indices of the logits whose target is 1."""
        one_hot = torch.zeros_like(logits)
        one_hot[objects] = 1
        loss: Tensor = sigmoid_focal_loss(
            logits, one_hot, alpha=self.cfg.focal_alpha, gamma=self.cfg.focal_gamma, reduction="sum"
        )
        return loss

    def _mask_and_smooth(
        self, predictions: Predictions, gts: Sequence[ImageTargets], positives: Positives, ltrb: Tensor
    ) -> tuple[Tensor, Tensor, float]:
        """Return the mask term (eq. 4 or 2) and the smooth term (eq. 7), weighted sums, and the mask term's divisor."""
        cfg, device = self.cfg, ltrb.device
        counts = torch.tensor([len(gt) for gt in gts], device=device)  # [N], K of eq. 4 and 7
        gt_image = torch.arange(len(gts), device=device).repeat_interleave(counts)  # [G]
        sampled = select_samples(
            ltrb_to_xyxy(positives.xy, ltrb),
            torch.cat([gt.boxes for gt in gts]),
            positives.gt,
            mode=cfg.embed_samples,
            iou_threshold=cfg.sample_iou,
            box_offset=cfg.box_offset,
        )
        # q [S, D], s [S, 1 or D] and ground truth [S] of the samples
        embed = positives.gather(predictions.proposal_embed).float()[sampled]
        margin = positives.gather(predictions.proposal_margin).float()[sampled]
        sample_gt = positives.gt[sampled]
        matched, row = match_samples(sample_gt, embed, margin, gt_image=gt_image, counts=counts, cfg=cfg)
        smooth = embed.sum() * 0
        if cfg.smooth_weight > 0:
            # each sample to the mean of its instance, which carries gradient too; 1 / K of its image
            spread = smooth_loss(embed, matched.embed[row]) + smooth_loss(margin, matched.margin[row])
            smooth = cfg.smooth_weight * (spread / counts[gt_image[sample_gt]]).sum()
        divisor = len(matched.gt) if cfg.mask_normalizer == "batch" else len(gts)
        matched = matched.sample(cfg.max_mask_instances)
        mask = self._mask_loss(predictions.pixel_embed.float(), gts, matched, predictions.pixel_stride)
        return cfg.mask_weight * mask, smooth, float(divisor)

    def _mask_loss(
        self, pixels: Tensor, gts: Sequence[ImageTargets], matched: Matched, pixel_stride: int
    ) -> Tensor:
        """Return the weighted sum of eq. 4 (or 2) over all instances; `pixels` is p `[N, D, h, w]`."""
        cfg, stride = self.cfg, pixel_stride // MASK_UPSAMPLING
        aligned = cfg.mask_interpolation == "aligned"
        grid = (pixels.shape[2] * MASK_UPSAMPLING, pixels.shape[3] * MASK_UPSAMPLING)
        if not aligned:
            pixels = F.interpolate(pixels, size=grid, mode="bilinear", align_corners=False)
        rows, first_gt = [], 0
        for index, gt in enumerate(gts):
            here = matched.select(matched.image == index)
            if len(here.gt):
                here.gt -= first_gt  # index into the image's own ground truths
                rows.append(self._image_rows(pixels[index], here, gt, grid, stride))
            first_gt += len(gt)
        if not rows:
            return pixels.sum() * 0
        # images differ in width: pad to [M, W], to sort the whole batch at once
        width = max(values.shape[1] for values, _, _ in rows)
        values, masks, region = (
            torch.cat([F.pad(part, (0, width - part.shape[1])) for part in parts])
            for parts in zip(*rows, strict=True)
        )
        if cfg.margin == "hinge":
            # d = S ||p - Q||^2 with one constant S: divided by it, the distance of eq. 2 remains
            loss = hinge_loss((values / matched.margin).clamp(min=1e-12).sqrt(), masks, region)
        elif cfg.mask_loss == "dice":
            loss = dice_loss(values if aligned else values.neg().exp(), masks, region)
        else:
            logits = torch.logit(values, eps=cfg.min_prob) if aligned else logit(values, cfg.min_prob)
            loss = (bce_loss if cfg.mask_loss == "bce" else lovasz_hinge)(logits, masks, region)
        return (loss * matched.weight).sum()

    def _image_rows(
        self, pixels: Tensor, matched: Matched, gt: ImageTargets, grid: Size, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values (d, or phi with `aligned`), mask targets and B_k of the instances of one image.

        Args:
            pixels: p of the image, `[D, h, w]`.
            matched: its m instances; `matched.gt` is an index into `gt`.
            gt: its ground truths.
            grid: `(h, w)` cells of the mask targets.
            stride: px per cell.

        Returns:
            float32, bool and bool `[m, W]`; W is the number of cells, or the largest B_k.
        """
        aligned = self.cfg.mask_interpolation == "aligned"
        # [D, P] x [m, D] -> [m, P]
        values = weighted_distance(pixels.flatten(1), matched.embed, matched.margin)
        if aligned:
            # upsample phi rather than p: [m, 1, h, w] -> [m, 1, 2 h, 2 w] -> [m, 4 h w]
            phi = values.neg().exp().view(len(values), 1, *pixels.shape[1:])
            values = resize_aligned(phi, MASK_UPSAMPLING).flatten(1)
        # look up each object once: with `each`, many instances share one
        objects, row = torch.unique(matched.gt, return_inverse=True)
        masks = mask_targets(gt.masks, grid, stride, index=objects, aligned=aligned).flatten(1)[row]
        if self.cfg.box_expansion is None:
            return values, masks, torch.ones_like(masks)
        region = box_regions(gt.boxes[matched.gt], grid, stride, self.cfg.box_expansion).flatten(1)
        # [m, P] -> [m, W]: from here on the cost follows the pixels inside boxes, not instances x image
        values, masks, region = pack_rows(region, values, masks, region)
        return values, masks, region


def zero_of(predictions: Predictions) -> Tensor:
    """Return 0 as a function of every map: DDP needs a gradient for each parameter, also without a positive."""
    maps = [*predictions.box_ltrb, *(predictions.centerness_logits or []), *predictions.proposal_embed]
    maps += [*predictions.proposal_margin, predictions.pixel_embed]
    return torch.stack([m.sum() for m in maps]).sum() * 0


def make_objective(
    cfg: ModelConfig,
) -> Callable[[Callable[[ImageBatch], Predictions], ImageBatch, Sequence[Target]], Losses]:
    """Return the function `(model, batch, targets)` that computes the losses of a preprocessed batch."""
    criterion = Criterion(cfg)
    return lambda model, batch, targets: criterion(model(batch), targets)


def check_targets(targets: Sequence[Target], predictions: Predictions, num_classes: int) -> None:
    """Raise `BadInput` unless there is one valid target per image that fits the padded frame."""
    count = len(predictions.pixel_embed)
    if len(targets) != count:
        raise BadInput(f"{count} images but {len(targets)} targets; pass one target per image")
    height, width = predictions.padded_size
    for index, target in enumerate(targets):
        target.validate(num_classes)
        size = target.mask_size
        if size[0] > height or size[1] > width:
            name = f"of image {target.image_id}" if target.image_id is not None else f"{index} of the batch"
            raise BadInput(
                f"target {name}: masks of size {size} are larger than the batch's frame {(height, width)}; "
                "resize masks together with their image"
            )


def match_samples(
    sample_gt: Tensor, embed: Tensor, margin: Tensor, *, gt_image: Tensor, counts: Tensor, cfg: ModelConfig
) -> tuple[Matched, Tensor]:
    """Average the samples of each instance (eq. 5 and 6).

    Args:
        sample_gt: int64 `[S]`, ground truth of each sample, index into the G of the batch.
        embed: q, `[S, D]`.
        margin: s, `[S, 1 or D]`.
        gt_image: int64 `[G]`, image of each ground truth.
        counts: int64 `[N]`, ground truths of each image.
        cfg: reads `embed_samples` and `mask_normalizer`.

    Returns:
        M instances, and int64 `[S]`, the instance of each sample.
    """
    if cfg.embed_samples == "each":
        gt, row = sample_gt, torch.arange(len(sample_gt), device=embed.device)
    else:
        gt, row = torch.unique(sample_gt, return_inverse=True)
    image = gt_image[gt]  # [M]
    # 1 / K of eq. 4; K counts all ground truths of an image, or with `matched` those that have a sample
    if cfg.mask_normalizer == "batch":
        weight = torch.ones(len(gt), device=embed.device)
    elif cfg.mask_normalizer == "matched":
        weight = 1 / torch.bincount(image, minlength=len(counts))[image]
    else:
        weight = 1 / counts[image]
    count = len(gt)
    return Matched(gt, image, _group_means(embed, row, count), _group_means(margin, row, count), weight), row


def _group_means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the mean of each group: `[S, D]`, int64 `[S]` -> `[count, D]`."""
    sums = values.new_zeros(count, values.shape[1]).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=count)[:, None]


def loss_normalizers(sums: Sequence[Tensor | float], minimum: Sequence[float], like: Tensor) -> list[Tensor]:
    """Return the loss normalizers: the all-reduced sums, clamped to `minimum`, divided by the world size.

    Averaging gradients over processes then gives the loss of one process on the joined batch, also where a process
    has no object.

    Args:
        sums: float or scalar tensor per normalizer, of this process.
        minimum: lower bound per normalizer.
        like: tensor whose device and dtype are used.
    """
    values = torch.stack([like.new_tensor(value) if isinstance(value, float) else value for value in sums])
    world_size = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        world_size = torch.distributed.get_world_size()
    return list((torch.maximum(values, like.new_tensor(minimum)) / world_size).unbind())
