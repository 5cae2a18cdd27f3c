"""Networks, predictions, targets and images small enough for tests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

from embedmask import ModelConfig, Predictions, Target
from embedmask.config import MaskRCNNConfig, from_dict
from embedmask.model.maskrcnn import MaskRCNN

STRIDES = (8, 16, 32, 64, 128)


def small_config(**changes: Any) -> ModelConfig:
    """Return the config of an EmbedMask with half a million parameters; BatchNorm is trained with random weights."""
    small = {
        "num_classes": 3,
        "backbone": "resnet10t",
        "backbone_norm": "batch",
        "frozen_stages": 0,
        "channels": 32,
        "norm_groups": 8,
        "tower_convs": 1,
        "embed_dim": 8,
        "image_short_side": None,
    }
    return ModelConfig.preset(changes.pop("preset", "paper"), **{**small, **changes})


def small_baseline(**changes: Any) -> MaskRCNNConfig:
    """Return the config of a Mask R-CNN with the same backbone; torchvision's heads are not small."""
    small = {
        "num_classes": 3,
        "backbone": "resnet10t",
        "backbone_norm": "batch",
        "frozen_stages": 0,
        "channels": 16,
        "image_short_side": None,
        "anchor_sizes": (8, 16, 32, 64, 128),
    }
    return from_dict(MaskRCNNConfig, {**small, **changes}, where="small baseline")


def light_baseline(**changes: Any) -> MaskRCNN:
    """Return a small Mask R-CNN with one layer in its mask head and at most 100 proposals."""
    model = MaskRCNN(small_baseline(**changes))
    model.roi_heads.mask_head = MaskRCNNHeads(model.config.channels, (256,), 1)
    model.rpn._post_nms_top_n = {"training": 100, "testing": 100}
    return model


def random_predictions(
    size: tuple[int, int],
    *,
    images: int = 1,
    classes: int = 3,
    dims: int = 4,
    margins: int = 1,
    seed: int = 0,
    strides: tuple[int, ...] = STRIDES,
    requires_grad: bool = False,
) -> Predictions:
    """Generate seeded maps for a frame of `size` px, with boxes of a few cells around each location."""
    rng = torch.Generator().manual_seed(seed)

    def sample(channels: int, stride: int) -> Tensor:
        return torch.randn(images, channels, *(math.ceil(s / stride) for s in size), generator=rng)

    def leaf(value: Tensor) -> Tensor:
        return value.requires_grad_(requires_grad)

    return Predictions(
        class_logits=[leaf(sample(classes, s) - 1) for s in strides],
        box_ltrb=[leaf((sample(4, s).abs() + 0.5) * s * 1.5) for s in strides],
        centerness_logits=[leaf(sample(1, s)) for s in strides],
        proposal_embed=[leaf(sample(dims, s)) for s in strides],
        proposal_margin=[leaf((sample(margins, s) * 0.3 - 1).exp()) for s in strides],
        pixel_embed=leaf(sample(dims, strides[0])),
        strides=strides,
    )


def maps_of(predictions: Predictions) -> list[Tensor]:
    """Return every map, in a fixed order."""
    p = predictions
    centerness = p.centerness_logits or []
    lists = (p.class_logits, p.box_ltrb, centerness, p.proposal_embed, p.proposal_margin)
    return [level for maps in lists for level in maps] + [p.pixel_embed]


def no_objects(size: tuple[int, int], image_id: int | None = None) -> Target:
    """Return the target of an image without objects."""
    return Target(
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, *size, dtype=torch.bool),
        image_id,
    )


def rectangles(boxes: list[list[float]], size: tuple[int, int], classes: int = 3) -> Target:
    """Return objects that fill their boxes, with labels 0, 1, 2, 0, ..."""
    if not boxes:
        return no_objects(size)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[math.floor(y1) : math.ceil(y2), math.floor(x1) : math.ceil(x2)] = True
    return Target(torch.tensor(boxes, dtype=torch.float32), torch.arange(len(boxes)) % classes, masks)


def random_rectangles(count: int, size: tuple[int, int], seed: int = 0) -> Target:
    """Generate seeded objects of any size inside the image."""
    rng = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]])
    low = torch.rand(count, 2, generator=rng) * (limits - 4)
    high = low + 2 + torch.rand(count, 2, generator=rng) * (limits - low - 2)
    return rectangles(torch.cat([low, high], 1).tolist(), size)


def forms_of(image: npt.NDArray[np.uint8], folder: Path) -> list[Any]:
    """Return an image [H, W, 3] in every supported form; one is a file in `folder`."""
    path = folder / "image.png"
    Image.fromarray(image).save(path)
    return [
        path, str(path), path.read_bytes(), Image.open(path), image,
        torch.from_numpy(image.copy()).permute(2, 0, 1),
        np.dstack([image, np.zeros_like(image[..., :1])]), image[::-1][::-1],
    ]  # fmt: skip
