"""The shared vocabulary: what travels between the stages of the road.

Shape shorthand, everywhere in this project: N images, L levels, K locations (all levels, row-major), G ground
truths of an image, M instances matched in a batch, R results, D embedding dims, C classes.

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
    """Normalised images, zero-padded right and below to one frame.

    Attributes:
        tensors: float `[N, 3, Hp, Wp]`, Hp and Wp multiples of 32.
        sizes: `(height, width)` of each image inside the frame, N entries.
    """

    tensors: Tensor
    sizes: list[Size]


@dataclass
class Predictions:
    """Everything the network says about a batch; the same type in training and inference.

    Attributes:
        class_logits: per level `[N, C, Hl, Wl]`.
        box_ltrb: per level `[N, 4, Hl, Wl]`, distances left, top, right, bottom from the location, >= 0, px.
        centerness_logits: per level `[N, 1, Hl, Wl]`.
        proposal_embed: q, per level `[N, D, Hl, Wl]`.
        proposal_margin: s > 0, a precision, per level `[N, 1 or D, Hl, Wl]`.
        pixel_embed: p, `[N, D, H, W]`.
        strides: px per cell of each level, finest first.
        semantic_logits: `[N, C, H, W]` on the finest level's grid, from a network in training mode that has a
            semantic head; else None.
        pixel_stride: px per cell of `pixel_embed`; by default the finest level's.
    """

    class_logits: list[Tensor]
    box_ltrb: list[Tensor]
    centerness_logits: list[Tensor]
    proposal_embed: list[Tensor]
    proposal_margin: list[Tensor]
    pixel_embed: Tensor
    strides: tuple[int, ...]
    semantic_logits: Tensor | None = None
    pixel_stride: int = 0

    def __post_init__(self) -> None:
        self.pixel_stride = self.pixel_stride or self.strides[0]

    @property
    def padded_size(self) -> Size:
        """Frame that the finest level covers, `(height, width)` px."""
        height, width = self.class_logits[0].shape[-2:]
        return height * self.strides[0], width * self.strides[0]


@dataclass
class Target:
    """Ground truth of one image, in the frame of the image that the network sees (before padding).

    Attributes:
        boxes: float32 `[G, 4]` xyxy px.
        labels: int64 `[G]`, 0..C-1.
        masks: bool `[G, H, W]`, or G crops of the same frame (memory then grows with the boxes).
        image_id: the dataset's id, for messages.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | CropMasks
    image_id: int | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def dense_masks(self) -> Tensor:
        """All masks, bool `[G, H, W]`: memory grows with objects x image, ask for it knowingly."""
        dense = self.masks.to_dense() if isinstance(self.masks, CropMasks) else self.masks
        return dense.to(self.boxes.device)

    def crop_masks(self) -> CropMasks:
        """All masks as crops."""
        if isinstance(self.masks, CropMasks):
            return self.masks
        return CropMasks(list(self.masks), [(0, 0)] * len(self), self.mask_size)

    @property
    def mask_size(self) -> Size:
        """`(height, width)` of the masks' frame."""
        height, width = self.masks.shape[-2:]
        return height, width

    def validate(self, num_classes: int) -> None:
        """Raise `BadInput` naming the image, the box and the mend; called once, at the door of the criterion."""
        where = f"target of image {self.image_id}" if self.image_id is not None else "target"
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.labels.shape != (count,) or len(self.masks.shape) != 3:
            raise BadInput(
                f"{where}: expected boxes [G, 4], labels [G] and masks [G, H, W], got {tuple(self.boxes.shape)}, "
                f"{tuple(self.labels.shape)} and {tuple(self.masks.shape)}"
            )
        if len(self.masks) != count:
            raise BadInput(f"{where}: {count} boxes but {len(self.masks)} masks; give one mask a box")
        if count == 0:
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= num_classes:
            raise BadInput(f"{where}: labels {low}..{high}, but the model has classes 0..{num_classes - 1}")
        bad = (self.boxes[:, 2:] <= self.boxes[:, :2]).any(1) | ~torch.isfinite(self.boxes).all(1)
        if bad.any():
            index = int(bad.nonzero()[0, 0])
            raise BadInput(f"{where}: box {index} {self.boxes[index].tolist()} has no area; drop the object")


@dataclass
class Assignment:
    """Which ground truth each location of an image serves (section 3.5).

    Attributes:
        gt_index: int64 `[K]`, -1 where the location is background.
        ltrb: float32 `[K, 4]` px, distances to the sides of its ground-truth box; 0 where background.
    """

    gt_index: Tensor
    ltrb: Tensor


@dataclass
class LossTerms:
    """Named, weighted terms of an objective, scalars that carry a graph."""

    def as_dict(self) -> dict[str, Tensor]:
        """Name -> weighted term."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "num_positives"}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def total(self) -> Tensor:
        """Sum of the terms (eq. 8)."""
        return torch.stack(list(self.as_dict().values())).sum()


@dataclass
class Losses(LossTerms):
    """The terms of eq. 8.

    `smooth` is 0 in versions without it. `semantic` is for a version with an auxiliary term; None elsewhere.
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
    """The terms of Mask R-CNN: of its second stage (class, box, mask), then of its region proposals."""

    classification: Tensor
    box: Tensor
    mask: Tensor
    objectness: Tensor
    rpn_box: Tensor


class RunCrops(Sequence[Tensor]):
    """Crops kept as run lengths: each becomes bool `[h, w]` on the CPU when it is asked for, and is not kept.

    A mask of 12 megapixels takes tens of kilobytes so, where its outline is as smooth as a network's.

    Attributes:
        runs: of each crop, int32 `[T, 2]`: the first pixel of each run of True and the one after its last, ascending.
            Pixels are counted column by column; no run goes on into the next column.
        shapes: `(h, w)` of each crop.
    """

    def __init__(self, runs: Sequence[Runs], shapes: Sequence[Size]) -> None:
        self.runs, self.shapes = runs, shapes

    @classmethod
    def of(cls, crops: Sequence[Tensor]) -> RunCrops:
        """The same crops as run lengths, without making a bool crop that has them already."""
        if isinstance(crops, RunCrops):
            return crops
        shapes = [(crop.shape[0], crop.shape[1]) for crop in crops]
        return cls([_column_runs(crop.cpu().numpy()) for crop in crops], shapes)

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
        ends = np.concatenate([[0], self.runs[index].ravel(), [height * width]])
        flat = np.repeat(np.arange(len(ends) - 1) % 2 == 1, np.diff(ends))
        return torch.from_numpy(np.ascontiguousarray(flat.reshape(width, height).T))


def _column_runs(crop: npt.NDArray[np.bool_]) -> Runs:
    height, width = crop.shape
    fenced = np.zeros((width, height + 2), bool)
    fenced[:, 1:-1] = crop.T
    column, row = np.nonzero(fenced[:, 1:] != fenced[:, :-1])
    ends: Runs = (column * height + row).astype(np.int32)
    return ends.reshape(-1, 2)


@dataclass
class CropMasks:
    """R boolean masks of one image, each kept as its own crop.

    Attributes:
        crops: R bool tensors `[h_r, w_r]`, or `RunCrops`, which reads as such; h_r and w_r may be 0.
        offsets: R pairs `(y, x)`, the crop's first row and column in the image.
        image_size: `(height, width)` of the image.
    """

    crops: Sequence[Tensor]
    offsets: list[tuple[int, int]]
    image_size: Size

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(R, height, width)`, as of the dense masks."""
        return len(self), *self.image_size

    def __reduce__(self) -> tuple[object, ...]:
        if isinstance(self.crops, RunCrops):
            return CropMasks, (self.crops, self.offsets, self.image_size)
        # one tensor, not one a mask: another process is sent a file descriptor for each
        shapes = [tuple(crop.shape) for crop in self.crops]
        return _unpacked, (self.pixels(), shapes, self.offsets, self.image_size)

    def pixels(self) -> Tensor:
        """All crops, row by row, one after the other: bool `[P]` on their device."""
        flat = [crop.reshape(-1).bool() for crop in self.crops]
        return torch.cat(flat) if flat else torch.zeros(0, dtype=torch.bool)

    def select(self, index: Sequence[int]) -> CropMasks:
        """The masks of `index`, in that order; the crops are shared."""
        offsets = [self.offsets[i] for i in index]
        if isinstance(self.crops, RunCrops):
            runs, shapes = self.crops.runs, self.crops.shapes
            crops = RunCrops([runs[i] for i in index], [shapes[i] for i in index])
            return replace(self, crops=crops, offsets=offsets)
        return replace(self, crops=[self.crops[i] for i in index], offsets=offsets)

    def areas(self) -> list[int]:
        """Pixels of each mask."""
        if isinstance(self.crops, RunCrops):
            return [int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.crops.runs]
        return [int(crop.sum()) for crop in self.crops]

    def dense(self, index: int) -> Tensor:
        """Mask `index` in the whole image, bool `[H, W]`."""
        return self.select([index]).to_dense()[0]

    def to_dense(self) -> Tensor:
        """All masks, bool `[R, H, W]` on the CPU: memory grows with instances x image, ask for it knowingly."""
        full = torch.zeros((len(self), *self.image_size), dtype=torch.bool)
        for index, (crop, (y, x)) in enumerate(zip(self.crops, self.offsets, strict=True)):
            full[index, y : y + crop.shape[0], x : x + crop.shape[1]] = crop.cpu()
        return full


def _unpacked(
    flat: Tensor, shapes: list[Size], offsets: list[tuple[int, int]], image_size: Size
) -> CropMasks:
    parts = torch.split(flat, [height * width for height, width in shapes])
    crops = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    return CropMasks(crops, offsets, image_size)


@dataclass
class Instances:
    """Finished results of one image, by descending score, in the image's original frame.

    Attributes:
        boxes: float32 `[R, 4]` xyxy px.
        scores: float32 `[R]`.
        labels: int64 `[R]`, 0..C-1.
        masks: R masks, kept as crops.
        proposal_embed: float32 `[R, D]`, q of the surviving proposals.
        proposal_margin: float32 `[R, 1 or D]`, their s.
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
        """The results of `index`, in that order; the crops are shared."""
        rows = torch.tensor(index, dtype=torch.int64, device=self.scores.device)
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}
        # a model without proposals leaves their columns empty
        chosen = {k: column[rows] if len(column) == len(self) else column for k, column in columns.items()}
        return Instances(masks=self.masks.select(index), **chosen)
