"""Heads of the detectors: maps equal torchvision's RetinaNet; every anchor has its own embedding and margin."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import small_config
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision_retinanet import ANCHORS, STRIDES, level_anchors, twin_of

from embedmask import EmbedMask, Predictions
from embedmask.locations import level_locations, ltrb_to_xyxy
from embedmask.model.aligned_head import INITIAL_SIDE, MAX_SIDE

SIZE = (128, 256)


def features(channels: int = 32, images: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(images, channels, *(math.ceil(side / s) for side in SIZE)) for s in STRIDES]


def head_of(**changes: Any) -> Any:
    torch.manual_seed(0)
    head = EmbedMask(small_config(**changes)).eval().head
    for parameter in head.parameters():
        if parameter.ndim == 4:
            nn.init.normal_(parameter, std=0.05)
    return head


@torch.no_grad()
def test_maps_equal_torchvision_retinanet() -> None:
    """On equal weights the class logits are equal, and the boxes to the rounding of absolute coordinates."""
    head = head_of(detector="retinanet", tower_convs=4)
    maps = features()
    predictions, expected = head(maps), twin_of(head, 32, 3, groups=8)(maps)
    start = 0
    for level, anchor in enumerate(level_anchors(SIZE)):
        rows = slice(start, start + len(anchor))
        start = rows.stop
        own = slice(level * ANCHORS, (level + 1) * ANCHORS)
        # A maps [N, C, Hl, Wl] -> [N, Hl Wl A, C]
        logits, ltrb = (
            torch.stack(parts, -1).permute(0, 2, 3, 4, 1).flatten(1, 3)
            for parts in (predictions.class_logits[own], predictions.box_ltrb[own])
        )
        torch.testing.assert_close(logits, expected["cls_logits"][:, rows], rtol=1e-5, atol=1e-5)
        height, width = maps[level].shape[-2:]
        xy = level_locations((height, width), STRIDES[level]).repeat_interleave(ANCHORS, 0)
        for image in range(2):
            codes = expected["bbox_regression"][image, rows]
            boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(codes, anchor)
            torch.testing.assert_close(ltrb_to_xyxy(xy, ltrb[image]), boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"preset": "ijcai21"},
        {"preset": "fused", "embed_channels": 16},
        {"cluster_center": "pixel"},
        {"margin": "constant"},
    ],
)
@torch.no_grad()
def test_every_anchor_has_all_maps(changes: dict[str, Any]) -> None:
    head = head_of(detector="retinanet", anchor_scales=(4.0,), anchor_ratios=(1.0, 2.0), **changes)
    predictions = head(features())
    assert predictions.strides == tuple(stride for stride in STRIDES for _ in range(2))
    assert predictions.centerness_logits is None
    assert (predictions.padded_size, predictions.pixel_stride) == (SIZE, 8)
    for level, stride in enumerate(predictions.strides):
        grid = tuple(math.ceil(side / stride) for side in SIZE)
        dims = 8 if "preset" in changes else 1
        for maps, channels in (
            (predictions.class_logits, 3),
            (predictions.box_ltrb, 4),
            (predictions.proposal_embed, 8),
            (predictions.proposal_margin, dims),
        ):
            assert maps[level].shape == (2, channels, *grid)
    shares_embedding = "cluster_center" in changes
    assert torch.equal(*predictions.proposal_embed[:2]) == shares_embedding
    assert torch.equal(*predictions.proposal_margin[:2]) == ("margin" in changes)


@torch.no_grad()
def test_images_of_a_batch_are_independent() -> None:
    """The anchors share the batch dimension inside the head; images do not mix."""
    head = head_of(detector="retinanet", preset="ijcai21", anchor_scales=(4.0, 6.0), anchor_ratios=(1.0,))
    maps = features()
    both = head(maps)
    for image in range(2):
        alone = head([level[image : image + 1] for level in maps])
        for name in ("class_logits", "box_ltrb", "proposal_embed", "proposal_margin"):
            for one, other in zip(getattr(alone, name), getattr(both, name), strict=True):
                torch.testing.assert_close(one[0], other[image], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_aligned_boxes_are_never_empty() -> None:
    torch.manual_seed(0)
    head: Any = EmbedMask(small_config(detector="tal")).eval().head
    fresh: Predictions = head(features())
    assert fresh.centerness_logits is None
    for ltrb, stride in zip(fresh.box_ltrb, STRIDES, strict=True):
        assert (ltrb / stride).mean().item() == pytest.approx(INITIAL_SIDE, rel=0.1)
    nn.init.normal_(head.box.weight, std=10.0)
    for ltrb, stride in zip(head(features()).box_ltrb, STRIDES, strict=True):
        assert (ltrb >= 0).all()
        assert (ltrb <= MAX_SIDE * stride * 1.001).all()


def test_names_of_parameters() -> None:
    """Heads without centerness have no parameters for it, and FCOS has those of older model files."""
    names = {
        detector: {
            name.split(".")[0] for name in EmbedMask(small_config(detector=detector)).head.state_dict()
        }
        for detector in ("fcos", "retinanet", "tal")
    }
    shared = {"class_tower", "box_tower", "class_logits", "box", "pixel_branch", "proposal_embed", "margin"}
    assert names["fcos"] == shared | {"centerness", "box_scales"}
    assert names["tal"] == shared | {"box_scales"}
    assert names["retinanet"] == shared
