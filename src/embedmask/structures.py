"""Data structures shared by the model, the objective, inference and the data set.

Shape shorthand, everywhere in this project: N images, L levels, K locations (all levels, row-major), G ground-truth
objects of an image, M instances matched in a batch, R results, D embedding dims, C classes.

Coordinates are continuous absolute pixels, boxes are `xyxy` with 0 <= x1 < x2 <= W (no "+1"), sizes are
`(height, width)` and labels run from 0 to C - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedmask import run_lengths
from embedmask.errors import BadInput
from embedmask.masks import BitMasks, RunMasks

Size = run_lengths.Size


class Columns:
    """Base of dataclasses whose fields are columns with one row per item."""

    def select(self, index: Tensor | NDArray[Any] | Sequence[int]) -> Self:
        """Return the items at `index`, in that order; fields without rows are kept.

        Args:
            index: int64 or bool, tensor or array as the columns; lists and masks need integers.
        """
        rows: Any = list(index) if isinstance(index, Sequence) else index
        itself: Any = self
        selected: Self = replace(itself, **{name: _rows(value, rows) for name, value in vars(self).items()})
        return selected


class ScoredColumns(Columns):
    """Columns with scores, float32 `[R]` in descending order, and labels, int64 `[R]`."""

    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def best(self, thresholds: Sequence[float] = (), limit: int | None = None) -> Self:
        """Return at most `limit` items, the best of those that reach the threshold of their class.

        Args:
            thresholds: minimum score of each class, C values; empty: no thresholds.
            limit: None: no limit.
        """
        rows = self.best_rows(thresholds, limit)
        return self if len(rows) == len(self) else self.select(rows)

    def best_rows(self, thresholds: Sequence[float] = (), limit: int | None = None) -> Tensor:
        """Return the rows of `best`, int64."""
        if not thresholds:
            return torch.arange(len(self), device=self.scores.device)[:limit]
        minimum = self.scores.new_tensor(thresholds)[self.labels]
        return (self.scores >= minimum).nonzero()[:limit, 0]


def _rows(column: Any, index: Any) -> Any:
    """Return rows of a tensor, an array, a list or masks; anything else as it is."""
    if isinstance(column, (Tensor, np.ndarray)):
        return column[index]
    if not isinstance(column, (list, RunMasks)):
        return column
    numbers = index if isinstance(index, list) else index.tolist()
    return column.select(numbers) if isinstance(column, RunMasks) else [column[i] for i in numbers]


@dataclass
class ImageBatch:
    """Normalized images, zero-padded on the right and at the bottom to a common size.

    Attributes:
        tensors: float `[N, 3, Hp, Wp]`, Hp and Wp multiples of 32.
        sizes: `(height, width)` of each image before padding, N entries.
    """

    tensors: Tensor
    sizes: list[Size]


@dataclass
class Predictions:
    """Output of the network for a batch, in training and in inference.

    A head with A anchors per cell returns A maps for each level of its pyramid, in the order of the anchors: for
    everything that reads predictions these are L A levels, whose strides repeat.

    Attributes:
        class_logits: per level `[N, C, Hl, Wl]`.
        box_ltrb: per level `[N, 4, Hl, Wl]`, distances left, top, right, bottom from the location, px; negative where
            an anchor's box does not contain its location.
        centerness_logits: per level `[N, 1, Hl, Wl]`; None: the head has no centerness, and scores are class scores.
        proposal_embed: q, per level `[N, D, Hl, Wl]`.
        proposal_margin: s > 0, a precision, per level `[N, 1 or D, Hl, Wl]`.
        pixel_embed: p, `[N, D, H, W]`.
        strides: px per cell of each level, finest first.
        semantic_logits: `[N, C, H, W]` on the grid of the finest level; None without a semantic head or outside
            training mode.
        embed_stride: px per cell of `pixel_embed`; None: that of the finest level.
    """

    class_logits: list[Tensor]
    box_ltrb: list[Tensor]
    centerness_logits: list[Tensor] | None
    proposal_embed: list[Tensor]
    proposal_margin: list[Tensor]
    pixel_embed: Tensor
    strides: tuple[int, ...]
    semantic_logits: Tensor | None = None
    embed_stride: int | None = None

    @property
    def pixel_stride(self) -> int:
        """Return the stride of `pixel_embed`, px."""
        return self.strides[0] if self.embed_stride is None else self.embed_stride

    @property
    def padded_size(self) -> Size:
        """Return the padded image size that the finest level covers, `(height, width)` px."""
        height, width = self.class_logits[0].shape[-2:]
        return height * self.strides[0], width * self.strides[0]


@dataclass
class PixelMap:
    """Pixel embedding of one image.

    Attributes:
        embed: p, `[D, h, w]`, of the padded frame.
        stride: px of the network's frame per cell.
        image_size: `(height, width)` of the image inside the network's frame.
    """

    embed: Tensor
    stride: int
    image_size: Size


@dataclass
class Target:
    """Ground truth of one image, in the coordinates of the network's input image before padding.

    Attributes:
        boxes: float32 `[G, 4]` xyxy px.
        labels: int64 `[G]`, 0..C-1.
        masks: bool `[G, H, W]`, or `BitMasks`, whose memory grows with the boxes.
        image_id: image id in the data set, for error messages.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | BitMasks
    image_id: int | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def dense_masks(self) -> Tensor:
        """Return all masks as bool `[G, H, W]`. Memory grows with objects x image area."""
        dense = self.masks.to_dense() if isinstance(self.masks, BitMasks) else self.masks
        return dense.to(self.boxes.device)

    @property
    def mask_size(self) -> Size:
        """Return the `(height, width)` of the image that the masks refer to."""
        return BitMasks.of(self.masks).frame

    def validate(self, num_classes: int) -> None:
        """Check the shapes, labels and boxes. The criterion calls this once on its input.

        Args:
            num_classes: C; labels must lie in 0..C-1.

        Raises:
            BadInput: the target is malformed; the message names the image, the object and a fix.
        """
        where = f"target of image {self.image_id}" if self.image_id is not None else "target"
        count = len(self.boxes)
        shape = (len(self.masks), *self.masks.frame) if isinstance(self.masks, BitMasks) else self.masks.shape
        if self.boxes.shape != (count, 4) or self.labels.shape != (count,) or len(shape) != 3:
            raise BadInput(
                f"{where}: expected boxes [G, 4], labels [G] and masks [G, H, W], got {tuple(self.boxes.shape)}, "
                f"{tuple(self.labels.shape)} and {tuple(shape)}"
            )
        if len(self.masks) != count:
            raise BadInput(f"{where}: {count} boxes but {len(self.masks)} masks; give one mask for each box")
        if count == 0:
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= num_classes:
            raise BadInput(
                f"{where}: labels {low}..{high}, but the model has classes 0..{num_classes - 1}; "
                "use a model and a data set with the same classes"
            )
        # a NaN corner passes the first comparison, so finiteness is tested too
        bad = (self.boxes[:, 2:] <= self.boxes[:, :2]).any(1) | ~torch.isfinite(self.boxes).all(1)
        if bad.any():
            index = int(bad.nonzero()[0, 0])
            raise BadInput(
                f"{where}: box {index} {self.boxes[index].tolist()} has no area; remove the object"
            )


@dataclass
class Assignment:
    """Ground-truth object assigned to each location of an image (section 3.5).

    Attributes:
        gt_index: int64 `[K]`, -1 for background.
        ltrb: float32 `[K, 4]` px, distances to the sides of the ground-truth box; 0 for background.
        box_weight: float32 `[K]`, weight of each positive in the box loss; None: 1.
        quality: float32 `[K]`, class target of each positive, 0..1; None: 1.
        ignored: bool `[K]`, locations without a class target; None: none.
    """

    gt_index: Tensor
    ltrb: Tensor
    box_weight: Tensor | None = None
    quality: Tensor | None = None
    ignored: Tensor | None = None


@dataclass
class LossTerms:
    """Named, weighted terms of an objective: differentiable scalars. Fields of other types are not terms."""

    def as_dict(self) -> dict[str, Tensor]:
        """Return the weighted terms by name, without those that the objective lacks."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    @property
    def total(self) -> Tensor:
        """Return the sum of the terms (eq. 8)."""
        return torch.stack(list(self.as_dict().values())).sum()


@dataclass
class Losses(LossTerms):
    """Loss terms of EmbedMask (eq. 8).

    `smooth` is 0 in versions without the smooth loss; `centerness` and `semantic` are None without the output.
    """

    classification: Tensor
    box: Tensor
    centerness: Tensor | None
    mask: Tensor
    smooth: Tensor
    semantic: Tensor | None = None
    num_positives: int = 0


@dataclass
class TwoStageLosses(LossTerms):
    """Loss terms of Mask R-CNN: those of the second stage (class, box, mask), then those of the RPN."""

    classification: Tensor
    box: Tensor
    mask: Tensor
    objectness: Tensor
    rpn_box: Tensor


@dataclass
class Instances(ScoredColumns):
    """Detections of one image, sorted by descending score, in the coordinates of the original image.

    Attributes:
        boxes: float32 `[R, 4]` xyxy px.
        scores: float32 `[R]`.
        labels: int64 `[R]`, 0..C-1.
        masks: R masks, stored as run lengths.
        proposal_embed: float32 `[R, D]`, q of each detection; `[R, 0]` for a model without proposal embeddings.
        proposal_margin: float32 `[R, 1 or D]`, s of each detection; `[R, 0]` for such a model.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: RunMasks
    proposal_embed: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    proposal_margin: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def __post_init__(self) -> None:
        if len(self.proposal_embed) != len(self):
            self.proposal_embed = self.proposal_margin = self.scores.new_zeros(len(self), 0)
