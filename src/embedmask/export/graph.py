"""The exported graph: preprocessing, network, candidates and NMS of fixed shape (section 3.6), masks left out.

It computes as `Detector.preprocess`, the network of inference and `decode_proposals` do, with two differences that a
graph needs: candidates are padded with the score -1 instead of being dropped, and NMS marks boxes instead of returning
their indices. So every tensor has a shape that the sizes of the input determine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedmask.config import ModelConfig
from embedmask.export.embeddings import Embeddings, at, gather
from embedmask.export.nms import nms_mask
from embedmask.inference.fused import Trunk
from embedmask.inference.proposals import candidate_scores
from embedmask.inference.rescoring import MIN_RESCORED
from embedmask.locations import MASK_UPSAMPLING, ltrb_to_xyxy
from embedmask.model.detector import FRAME_MULTIPLE
from embedmask.model.embedmask import EmbedMask
from embedmask.structures import Predictions

OUTPUTS = ("boxes", "scores", "labels", "q", "s", "p")
DENSE_OUTPUT = "log_phi"


class Graph(nn.Module):
    """An EmbedMask with its preprocessing and selection; see `forward`."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: EmbedMask, *, dense_masks: bool) -> None:
        """Copy and fuse `model`, which is not changed.

        Args:
            dense_masks: also compute log phi of every detection on the grid of the coupling.
        """
        super().__init__()
        self.config: ModelConfig = model.config
        self.trunk = Trunk(model, torch.float32, portable=True)
        self.register_buffer("mean", model.mean.detach().clone())
        self.register_buffer("std", model.std.detach().clone())
        self.dense_masks = dense_masks
        head = self.trunk.head
        self.embeddings = Embeddings(head) if Embeddings.serves(head, output_limit(self.config)) else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in N images of one size.

        Args:
            images: uint8 RGB `[N, 3, H, W]`, at the network's resolution and not padded.

        Returns:
            K detections per image by descending score, in the frame of `images`: boxes float32 `[N, K, 4]` xyxy px,
            scores float32 `[N, K]`, labels int64 `[N, K]` (-1: no detection, anywhere in the list), q `[N, K, D]`,
            s `[N, K, 1 or D]`; then p `[N, D, h, w]`; with `dense_masks`, log phi `[N, K, 2 h, 2 w]`, or `[N, K, h, w]`
            with `mask_interpolation: aligned`.
        """
        height, width = images.shape[2], images.shape[3]
        maps = self.trunk(self.preprocess(images))
        predictions = self.trunk.head.predict(*maps)
        boxes, scores, labels, cells = self.select(predictions, height, width)
        if self.embeddings is None:
            q, s = (at(of, cells).mT for of in (predictions.proposal_embed, predictions.proposal_margin))
        else:  # the exporter leaves out those of all cells
            q, s = self.embeddings(maps[2], predictions.box_ltrb, cells)
        is_detection = (labels >= 0)[..., None]
        q, s = torch.where(is_detection, q, 0.0), torch.where(is_detection, s, 0.0)
        results = (boxes, scores, labels, q, s, predictions.pixel_embed)
        return (*results, self.log_phi(predictions.pixel_embed, q, s)) if self.dense_masks else results

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalize images and pad them with zeros on the right and at the bottom, like `Detector.preprocess`."""
        pixels = images.float()
        if self.config.channel_order == "bgr":
            pixels = pixels.flip(1)
        if self.config.image_norm == "image":
            # onnxruntime sums all squares of an image with an error of 3e-4, row by row of 1e-7; [N, 1, 1, 1]
            pixels = pixels - mean_of(pixels)
            count = images.shape[1] * images.shape[2] * images.shape[3]
            variance = mean_of(pixels.square()) * (count / (count - 1))
            pixels = pixels / (variance.sqrt() + 1.0)
        else:
            pixels = (pixels - self.mean) / self.std
        height, width = images.shape[2], images.shape[3]
        below, right = (
            (side + FRAME_MULTIPLE - 1) // FRAME_MULTIPLE * FRAME_MULTIPLE - side for side in (height, width)
        )
        return F.pad(pixels, (0, right, 0, below))

    def select(
        self, predictions: Predictions, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Select the candidates, apply class-wise NMS and keep the K best.

        Args:
            height, width: of the image before padding, px.

        Returns:
            Boxes `[N, K, 4]`, scores `[N, K]`, labels `[N, K]`, -1 without a detection, and the place of each among the
            cells of all levels, int64 `[N, K]`.
        """
        cfg = self.config
        boxes, scores, labels, cells = self.all_candidates(predictions)
        if cfg.clip_before_nms:
            boxes, scores = clip(boxes, scores, height, width, cfg.box_offset)
        ends = boxes.new_tensor([0, 0, cfg.box_offset, cfg.box_offset])
        limit = output_limit(cfg)
        keep = nms_mask(
            boxes + ends,
            scores,
            labels,
            num_classes=cfg.num_classes,
            threshold=cfg.nms_threshold,
            limit=limit,
        )
        scores, best = torch.where(keep, scores, -1.0).topk(limit, 1)  # [N, P] -> [N, K]
        boxes, labels, cells = (gather_rows(boxes, best), labels.gather(1, best), cells.gather(1, best))
        if not cfg.clip_before_nms:
            boxes, scores = clip(boxes, scores, height, width, cfg.box_offset)
        is_detection = scores >= 0
        boxes = torch.where(is_detection[..., None], boxes, 0.0)
        return boxes, torch.where(is_detection, scores, 0.0), torch.where(is_detection, labels, -1), cells

    def all_candidates(self, predictions: Predictions) -> list[Tensor]:
        """Return the results of `candidates` for all maps, `[N, P]` and `[N, P, 4]`; cells count through all maps."""
        parts, first, count = [], 0, self.trunk.head.num_anchors
        for level in range(0, len(predictions.strides), count):
            height, width = predictions.class_logits[level].shape[2:]
            # [N A, T] -> [N, A T]
            *columns, cells = (
                torch.unflatten(column, 0, (-1, count)).flatten(1, 2) if count > 1 else column
                for column in self.candidates(predictions, level)
            )
            anchors = torch.arange(count).repeat_interleave(self.config.pre_nms_topk)
            parts.append([*columns, cells + (anchors * (height * width) + first)])
            first += count * height * width
        return [torch.cat(part, 1) for part in zip(*parts, strict=True)]

    def candidates(self, predictions: Predictions, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Select the best T = `pre_nms_topk` candidates of each of the A maps of a level, like `decode_proposals`.

        The A anchors are part of the batch, so that the graph is as small as that of one map.

        Returns:
            Boxes `[N A, T, 4]` not clipped, final scores `[N A, T]` (-1: no candidate), labels and cells of a map,
            int64 `[N A, T]`.
        """
        cfg, topk = self.config, self.config.pre_nms_topk
        maps = slice(level, level + self.trunk.head.num_anchors)
        logits = fold(predictions.class_logits[maps])  # [N A, C, K]
        centerness = torch.ones_like(logits[:, :1])  # [N A, 1, K]
        if predictions.centerness_logits is not None:
            centerness = fold(predictions.centerness_logits[maps]).sigmoid()
        # cells first: the best T pairs of class and cell lie in the best T cells. Padding makes T of any map
        best = F.pad(self.score(logits.amax(1, keepdim=True), centerness)[:, 0], (0, topk), value=-1.0)
        cells = best.topk(topk, 1).indices  # [N A, T]
        # the places of the padding read cell 0; their score stays -1
        exists = cells < logits.shape[2]
        cells = torch.where(exists, cells, 0)
        scores = self.score(gather(logits, cells), gather(centerness, cells))  # [N A, C, T]
        scores = torch.where(exists[:, None], scores, -1.0)
        scores, pairs = scores.flatten(1).topk(topk, 1)  # [N A, T]
        labels = pairs // topk
        cells = cells.gather(1, pairs - labels * topk)
        across, stride = predictions.class_logits[level].shape[3], predictions.strides[level]
        # `%` of a tensor by a symbolic size is not exported
        rows = cells // across
        xy = torch.stack([cells - rows * across, rows], 2) * stride + stride // 2  # [N A, T, 2]
        boxes = ltrb_to_xyxy(xy, gather(fold(predictions.box_ltrb[maps]), cells).mT)
        final = scores.clamp(min=0).sqrt() if cfg.score == "root" else scores
        return boxes, torch.where(scores > -1, final, -1.0), labels, cells

    def score(self, logits: Tensor, centerness: Tensor) -> Tensor:
        """Return the product of class score and centerness, -1 below the threshold of candidates: `[N A, C, T]`."""
        tested, products = candidate_scores(logits, centerness, self.config.score)
        return torch.where(tested > self.config.candidate_threshold, products, -1.0)

    def log_phi(self, pixel_embed: Tensor, q: Tensor, s: Tensor) -> Tensor:
        """Return log phi of every detection and cell of the coupling's grid, not limited to boxes."""
        if self.config.mask_interpolation != "aligned":
            pixel_embed = F.interpolate(
                pixel_embed, scale_factor=MASK_UPSAMPLING, mode="bilinear", align_corners=False
            )
        origin = q.mean(1, keepdim=True)  # see `weighted_distance`; [N, 1, D]
        pixels, centers = pixel_embed.flatten(2) - origin.mT, q - origin
        margins = s.expand_as(centers)  # [N, K, D]
        weighted = margins * centers
        constant = (weighted * centers).sum(2, keepdim=True)  # [N, K, 1]
        distance = margins @ pixels.square() - 2 * (weighted @ pixels) + constant
        return -distance.clamp(min=0).reshape(*q.shape[:2], *pixel_embed.shape[2:])


def output_limit(cfg: ModelConfig) -> int:
    """Return K, the number of detections per image before rescoring."""
    limit = max(cfg.max_detections, MIN_RESCORED) if cfg.rescore_masks else cfg.max_detections
    anchors = len(cfg.anchor_scales) * len(cfg.anchor_ratios) if cfg.detector == "retinanet" else 1
    return min(limit, cfg.pre_nms_topk * len(cfg.strides) * anchors)


def mean_of(images: Tensor) -> Tensor:
    """Return the mean of each image `[N, C, H, W]`: of rows, then of columns, then of channels; `[N, 1, 1, 1]`."""
    return images.mean(3, keepdim=True).mean(2, keepdim=True).mean(1, keepdim=True)


def fold(maps: Sequence[Tensor]) -> Tensor:
    """Put the maps `[N, C, H, W]` of the A anchors of a level into the batch: `[N A, C, K]`."""
    return (maps[0] if len(maps) == 1 else torch.stack(list(maps), 1).flatten(0, 1)).flatten(2)


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return rows `[N, T]` of values `[N, P, 4]`: `[N, T, 4]`."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))


def clip(boxes: Tensor, scores: Tensor, height: int, width: int, offset: float) -> tuple[Tensor, Tensor]:
    """Clip boxes to the image; those without area get the score -1."""
    # `clamp` takes no symbolic sizes
    ends = (boxes.new_full((), side) - offset for side in (width, height))
    x, y = (torch.minimum(boxes[..., i::2].clamp(min=0), end) for i, end in enumerate(ends))
    boxes = torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return boxes, torch.where(has_area, scores, -1.0)
