"""Data structures shared by the model, the objective, inference and the data set.

Shape shorthand, everywhere in this project: N images, L levels, K locations (all levels, row-major), G ground-truth
objects of an image, M instances matched in a batch, R results, D embedding dims, C classes.

Coordinates are continuous absolute pixels, boxes are `xyxy` with 0 <= x1 < x2 <= W (no "+1"), sizes are
`(height, width)` and labels run from 0 to C - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedmask.errors import BadInput

Size = tuple[int, int]
Runs = npt.NDArray[np.int32]


@dataclass
class ImageBatch:
    """Normalised images, zero-padded on the right and at the bottom to a common size.

    Attributes:
        tensors: float `[N, 3, Hp, Wp]`, Hp and Wp multiples of 32.
        sizes: `(height, width)` of each image before padding, N entries.
    """

    tensors: Tensor
    sizes: list[Size]


@dataclass
class Predictions:
    """Output of the network for a batch, in training and in inference.

    Attributes:
        class_logits: per level `[N, C, Hl, Wl]`.
        box_ltrb: per level `[N, 4, Hl, Wl]`, distances left, top, right, bottom from the location, >= 0, px.
        centerness_logits: per level `[N, 1, Hl, Wl]`.
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
    centerness_logits: list[Tensor]
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
class Target:
    """Ground truth of one image, in the coordinates of the network's input image before padding.

    Attributes:
        boxes: float32 `[G, 4]` xyxy px.
        labels: int64 `[G]`, 0..C-1.
        masks: bool `[G, H, W]`, or G crops in the same frame, whose memory grows with the boxes.
        image_id: image id in the data set, for error messages.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | CropMasks
    image_id: int | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def dense_masks(self) -> Tensor:
        """Return all masks as bool `[G, H, W]`. Memory grows with objects x image area."""
        dense = self.masks.to_dense() if isinstance(self.masks, CropMasks) else self.masks
        return dense.to(self.boxes.device)

    def crop_masks(self) -> CropMasks:
        """Return all masks as crops."""
        if isinstance(self.masks, CropMasks):
            return self.masks
        return CropMasks(list(self.masks), [(0, 0)] * len(self), self.mask_size)

    @property
    def mask_size(self) -> Size:
        """Return the `(height, width)` of the image that the masks refer to."""
        height, width = self.masks.shape[-2:]
        return height, width

    def validate(self, num_classes: int) -> None:
        """Check the shapes, labels and boxes. The criterion calls this once on its input.

        Args:
            num_classes: C; labels must lie in 0..C-1.

        Raises:
            BadInput: the target is malformed; the message names the image, the object and a fix.
        """
        where = f"target of image {self.image_id}" if self.image_id is not None else "target"
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.labels.shape != (count,) or len(self.masks.shape) != 3:
            raise BadInput(
                f"{where}: expected boxes [G, 4], labels [G] and masks [G, H, W], got {tuple(self.boxes.shape)}, "
                f"{tuple(self.labels.shape)} and {tuple(self.masks.shape)}"
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
    """

    gt_index: Tensor
    ltrb: Tensor


@dataclass
class LossTerms:
    """Named, weighted terms of an objective: differentiable scalars. Fields of other types are no terms."""

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

    `smooth` is 0 in versions without the smooth loss; `semantic` is None in versions without a semantic head.
    """

    classification: Tensor
    box: Tensor
    centerness: Tensor
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


class RunCrops(Sequence[Tensor]):
    """Sequence of crops stored as run lengths; indexing decodes a crop to bool `[h, w]` on the CPU.

    A predicted mask of 12 megapixels takes tens of kilobytes in this form.

    Attributes:
        runs: for each crop int32 `[T, 2]`: start (inclusive) and end (exclusive) of each run of True, ascending.
            Pixels are numbered column by column, and no run crosses a column boundary.
        shapes: `(h, w)` of each crop.
    """

    def __init__(self, runs: Sequence[Runs], shapes: Sequence[Size]) -> None:
        self.runs, self.shapes = runs, shapes

    @classmethod
    def of(cls, crops: Sequence[Tensor]) -> RunCrops:
        """Encode crops as run lengths; crops that are already encoded are returned as they are."""
        if isinstance(crops, RunCrops):
            return crops
        runs: list[Runs] = []
        shapes = [(crop.shape[0], crop.shape[1]) for crop in crops]
        for crop, (height, width) in zip(crops, shapes, strict=True):
            # one row a column, with False on both sides so that every run begins and ends inside its row: [w, h + 2]
            padded = np.zeros((width, height + 2), bool)
            padded[:, 1:-1] = crop.cpu().numpy().T
            # each change of value is a start or an end; within a column they alternate
            column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
            runs.append((column * height + row).astype(np.int32).reshape(-1, 2))
        return cls(runs, shapes)

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> RunCrops: ...
    def __getitem__(self, index: int | slice) -> Tensor | RunCrops:
        if isinstance(index, slice):
            return RunCrops(self.runs[index], self.shapes[index])
        height, width = self.shapes[index]
        # lengths of alternating runs, False first: [2 T + 1]; the odd ones are True
        ends = np.concatenate([[0], self.runs[index].ravel(), [height * width]])
        flat = np.repeat(np.arange(len(ends) - 1) % 2 == 1, np.diff(ends))
        return torch.from_numpy(np.ascontiguousarray(flat.reshape(width, height).T))


@dataclass
class CropMasks:
    """R boolean masks of one image, each stored as a crop.

    Attributes:
        crops: R bool tensors `[h_r, w_r]`, or `RunCrops`; h_r and w_r may be 0.
        offsets: R pairs `(y, x)`, first row and column of each crop in the image.
        image_size: `(height, width)` of the image.
    """

    crops: Sequence[Tensor]
    offsets: list[tuple[int, int]]
    image_size: Size

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return `(R, height, width)`, the shape of the dense masks."""
        return len(self), *self.image_size

    def __reduce__(self) -> tuple[object, ...]:
        if isinstance(self.crops, RunCrops):
            return CropMasks, (self.crops, self.offsets, self.image_size)
        # pickle one tensor instead of R: torch sends each tensor to another process as a file descriptor
        shapes = [(crop.shape[0], crop.shape[1]) for crop in self.crops]
        return CropMasks.from_pixels, (self.pixels(), shapes, self.offsets, self.image_size)

    def pixels(self) -> Tensor:
        """Return the pixels of all crops, row by row, concatenated: bool `[P]` on the device of the crops."""
        flat = [crop.reshape(-1).bool() for crop in self.crops]
        return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.bool)

    @classmethod
    def from_pixels(
        cls, pixels: Tensor, shapes: Sequence[Size], offsets: list[tuple[int, int]], image_size: Size
    ) -> CropMasks:
        """Rebuild masks from their `pixels`, bool `[P]`, as views, with the shape `(h, w)` of each crop."""
        parts = torch.split(pixels, [height * width for height, width in shapes])
        crops = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return cls(crops, offsets, image_size)

    def select(self, index: Sequence[int]) -> CropMasks:
        """Return the masks at `index`, in that order. The crops are shared, not copied."""
        offsets = [self.offsets[i] for i in index]
        if isinstance(self.crops, RunCrops):
            runs, shapes = self.crops.runs, self.crops.shapes
            crops = RunCrops([runs[i] for i in index], [shapes[i] for i in index])
            return replace(self, crops=crops, offsets=offsets)
        return replace(self, crops=[self.crops[i] for i in index], offsets=offsets)

    def areas(self) -> list[int]:
        """Return the number of pixels of each mask."""
        if isinstance(self.crops, RunCrops):
            return [int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.crops.runs]
        return [int(crop.sum()) for crop in self.crops]

    def dense(self, index: int) -> Tensor:
        """Return mask `index` in the full image, bool `[H, W]`."""
        return self.select([index]).to_dense()[0]

    def to_dense(self) -> Tensor:
        """Return all masks as bool `[R, H, W]` on the CPU. Memory grows with instances x image area."""
        full = torch.zeros((len(self), *self.image_size), dtype=torch.bool)
        for index, (crop, (y, x)) in enumerate(zip(self.crops, self.offsets, strict=True)):
            full[index, y : y + crop.shape[0], x : x + crop.shape[1]] = crop.cpu()
        return full


@dataclass
class Instances:
    """Detections of one image, sorted by descending score, in the coordinates of the original image.

    Attributes:
        boxes: float32 `[R, 4]` xyxy px.
        scores: float32 `[R]`.
        labels: int64 `[R]`, 0..C-1.
        masks: R masks, stored as crops.
        proposal_embed: float32 `[R, D]`, q of each detection; empty for a model without proposal embeddings.
        proposal_margin: float32 `[R, 1 or D]`, s of each detection; likewise.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: CropMasks
    proposal_embed: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    proposal_margin: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: Sequence[int]) -> Instances:
        """Return the detections at `index`, in that order. The crops are shared, not copied."""
        rows = torch.tensor(index, dtype=torch.int64, device=self.scores.device)
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}
        # without proposal embeddings these columns are [0, 0] and cannot be indexed
        chosen = {k: column[rows] if len(column) == len(self) else column for k, column in columns.items()}
        return Instances(masks=self.masks.select(index), **chosen)
