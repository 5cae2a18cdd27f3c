"""Targets and losses of RetinaNet equal torchvision's; positives lie in their masks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import no_objects, rectangles, small_config
from torch import Tensor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision_retinanet import ANCHORS, STRIDES, level_anchors, losses_of, matches_of, twin_of

from embedmask import Criterion, EmbedMask, Predictions, Target
from embedmask.errors import BadInput
from embedmask.locations import flatten_levels
from embedmask.masks import BitMasks
from embedmask.objective.anchor_matching import anchors_at, assign_image
from embedmask.objective.positives import ImageTargets, Locations
from embedmask.structures import Assignment

SIZE = (128, 256)
CLASSES = 3
OBJECTS = [[20, 12, 60, 60], [100, 30, 240, 120], [30, 20, 70, 66], [3, 3, 8, 9], [180, 90, 190, 121]]


def config(**changes: Any) -> Any:
    return small_config(detector="retinanet", **{"sample_in_mask": False, **changes})


def predictions_of(seed: int = 0, **changes: Any) -> Predictions:
    torch.manual_seed(seed)
    model = EmbedMask(config(**changes)).train()
    torch.nn.init.normal_(model.head.box.weight, std=0.1)
    return model(torch.randn(1, 3, *SIZE))  # type: ignore[no-any-return]


def torchvision_order(flat: Tensor) -> Tensor:
    """Reorder `[K, C]` from level, anchor, cell to torchvision's level, cell, anchor."""
    parts, start = [], 0
    for stride in STRIDES:
        cells = math.ceil(SIZE[0] / stride) * math.ceil(SIZE[1] / stride)
        part = flat[start : start + ANCHORS * cells]
        parts.append(part.view(ANCHORS, cells, *flat.shape[1:]).transpose(0, 1).flatten(0, 1))
        start += ANCHORS * cells
    return torch.cat(parts)


def torchvision_losses(predictions: Predictions, target: Target) -> tuple[dict[str, Tensor], Tensor]:
    """Return torchvision's losses and matches for our predictions."""
    head: Any = RetinaNetHead(16, ANCHORS, CLASSES)  # type: ignore[no-untyped-call]
    xy, ltrb = Locations.of(predictions).xy, flatten_levels(predictions.box_ltrb)[0].T
    boxes = torchvision_order(torch.cat([xy - ltrb[:, :2], xy + ltrb[:, 2:]], 1))
    anchors = torch.cat(level_anchors(SIZE))
    codes = head.regression_head.box_coder.encode_single(boxes, anchors)
    logits = torchvision_order(flatten_levels(predictions.class_logits)[0].T)
    outputs = {"cls_logits": logits[None], "bbox_regression": codes[None]}
    return losses_of(head, outputs, target, anchors), matches_of(target, anchors)


def assign_one(predictions: Predictions, target: Target, **changes: Any) -> Assignment:
    gt = ImageTargets(target.boxes, target.labels, BitMasks.of(target.masks))
    return assign_image(predictions, 0, Locations.of(predictions), gt, config(**changes))


def test_anchors_equal_torchvision() -> None:
    locations = Locations.of(predictions_of())
    ours = anchors_at(locations.xy, locations.level, config())
    assert torch.equal(torchvision_order(ours), torch.cat(level_anchors(SIZE)))


@pytest.mark.parametrize("seed", [0, 1])
def test_targets_and_losses_equal_torchvision(seed: int) -> None:
    predictions, target = predictions_of(seed), rectangles(OBJECTS, SIZE)
    expected, matches = torchvision_losses(predictions, target)
    assignment = assign_one(predictions, target)
    assert assignment.ignored is not None
    ours = torch.where(assignment.ignored, -2, assignment.gt_index)
    assert torch.equal(torchvision_order(ours), matches)
    assert {*matches.tolist()} == {-2, -1, 0, 1, 2, 3, 4}
    losses = Criterion(config())(predictions, [target])
    torch.testing.assert_close(losses.classification, expected["classification"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.box, expected["bbox_regression"], rtol=1e-4, atol=1e-5)
    # gradients, too
    maps = [*predictions.class_logits, *predictions.box_ltrb]
    ours_grad = torch.autograd.grad(losses.classification + losses.box, maps, retain_graph=True)
    theirs = torch.autograd.grad(expected["classification"] + expected["bbox_regression"], maps)
    for one, other in zip(ours_grad, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_training_equals_torchvision() -> None:
    """Ten steps of SGD on class and box losses leave both heads with equal weights, and so with equal boxes."""
    torch.manual_seed(0)
    features = [torch.randn(1, 32, *(math.ceil(side / s) for side in SIZE)) for s in STRIDES]
    target, anchors = rectangles(OBJECTS, SIZE), torch.cat(level_anchors(SIZE))
    ours: Any = EmbedMask(config(tower_convs=4)).head
    for layer in (*ours.class_tower, *ours.box_tower):
        if isinstance(layer, torch.nn.Conv2d):
            layer.bias.requires_grad_(False)  # torchvision has none before a norm
    theirs = twin_of(ours, 32, CLASSES, groups=8)
    criterion = Criterion(config(tower_convs=4))
    before = ours.box.weight.detach().clone()
    optimizers = [torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9) for head in (ours, theirs)]
    for _ in range(10):
        losses = criterion(ours(features), [target])
        others = losses_of(theirs, theirs(features), target, anchors)
        assert losses.box.item() == pytest.approx(others["bbox_regression"].item(), rel=1e-3)
        assert losses.classification.item() == pytest.approx(others["classification"].item(), rel=1e-3)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (losses.classification + losses.box).backward()
        sum(others.values()).backward()  # type: ignore[union-attr]
        for optimizer in optimizers:
            optimizer.step()
    changed = float((ours.box.weight.detach() - before).abs().max())
    for one, other in (
        (ours.box, theirs.regression_head.bbox_reg),
        (ours.class_logits, theirs.classification_head.cls_logits),
        (ours.class_tower[0], theirs.classification_head.conv[0][0]),
    ):
        assert float((one.weight - other.weight).detach().abs().max()) < 0.01 * changed


def test_empty_images() -> None:
    predictions, target = predictions_of(), no_objects(SIZE)
    expected, _ = torchvision_losses(predictions, target)
    losses = Criterion(config(sample_in_mask=True))(predictions, [target])
    torch.testing.assert_close(losses.classification, expected["classification"], rtol=1e-5, atol=1e-6)
    assert losses.box.item() == losses.mask.item() == losses.num_positives == 0
    assert losses.centerness is None


def test_ignored_anchors_have_no_class_loss() -> None:
    predictions, target = predictions_of(), rectangles(OBJECTS, SIZE)
    ignored = assign_one(predictions, target).ignored
    assert ignored is not None
    assert 0 < ignored.sum() < 200
    losses = Criterion(config())(predictions, [target])
    gradients = torch.autograd.grad(losses.classification, predictions.class_logits)
    per_location = flatten_levels(gradients)[0].abs().sum(0)
    assert per_location[ignored].sum() == 0
    assert (per_location[~ignored] > 0).all()


def test_positives_lie_in_their_masks() -> None:
    """A mask of the left half of its box gets anchors of that half; without a pixel at a location, none."""
    predictions, target = predictions_of(), rectangles(OBJECTS, SIZE)
    assert isinstance(target.masks, Tensor)
    target.masks[1, :, 170:] = False
    target.masks[2] = False
    assignment = assign_one(predictions, target, sample_in_mask=True)
    positive = assignment.gt_index >= 0
    xy = Locations.of(predictions).xy[positive].long()
    gts = assignment.gt_index[positive]
    assert target.masks[gts, xy[:, 1], xy[:, 0]].all()
    assert {*gts.tolist()} == {0, 1, 3, 4}
    assert (xy[gts == 1][:, 0] < 170).all()
    free = assign_one(predictions, target)
    assert (Locations.of(predictions).xy[free.gt_index == 1][:, 0] >= 170).any()


def test_one_pixel_objects() -> None:
    """An object of a pixel gets its best anchors, however low their IoU, if its pixel is at a location."""
    predictions = predictions_of()
    target = rectangles([[12, 12, 13, 13], [18, 18, 19, 19]], SIZE)
    assignment = assign_one(predictions, target, sample_in_mask=True)
    assert {*assignment.gt_index.tolist()} == {-1, 0}
    losses = Criterion(config(sample_in_mask=True))(predictions, [target])
    losses.total.backward()
    assert math.isfinite(losses.total.item())


@pytest.mark.parametrize(
    "changes", [{"detector": "retinanet", "assigner": "fcos"}, {"detector": "tal", "assigner": "iou"}]
)
def test_raises_on_assigner_without_its_detector(changes: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="assigner must be iou with detector retinanet"):
        small_config(**changes)
