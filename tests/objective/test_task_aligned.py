"""The task-aligned assigner equals its slow twin, and its losses have the values of their equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import objective as reference
from small_models import no_objects, random_predictions, random_rectangles, rectangles, small_config
from torch.nn import functional as F

from embedmask import Criterion, Predictions, Target
from embedmask.locations import flatten_levels, ltrb_to_xyxy
from embedmask.masks import BitMasks
from embedmask.objective.losses import varifocal_loss
from embedmask.objective.positives import ImageTargets, Locations
from embedmask.objective.task_aligned import align, assign_image
from embedmask.structures import Assignment

SIZE = (96, 128)
CONFIG = small_config(detector="tal")


def test_constants_are_those_of_tood() -> None:
    assert (CONFIG.align_alpha, CONFIG.align_beta, CONFIG.align_topk) == (1, 6, 13)


def assign_one(predictions: Predictions, target: Target, **changes: object) -> Assignment:
    gt = ImageTargets(target.boxes, target.labels, BitMasks.of(target.masks))
    config = small_config(detector="tal", **changes)
    return assign_image(predictions, 0, Locations.of(predictions), gt, config)


@given(
    count=st.integers(0, 5),
    places=st.integers(1, 40),
    topk=st.integers(1, 15),
    beta=st.sampled_from([0.5, 6.0]),
    seed=st.integers(0, 10**6),
)
def test_align_equals_slow_twin(count: int, places: int, topk: int, beta: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores, iou = torch.rand(2, count, places, generator=rng).clamp(min=1e-3)
    candidate = torch.rand(count, places, generator=rng) < 0.6
    settings = {"alpha": 1.0, "beta": beta, "topk": topk}
    gt_index, quality = align(scores.log(), iou, candidate, **settings)  # type: ignore[arg-type]
    expected, values = reference.align(scores, iou, candidate, **settings)  # type: ignore[arg-type]
    assert gt_index.tolist() == expected
    torch.testing.assert_close(quality.double(), torch.tensor(values).double(), rtol=1e-4, atol=1e-7)


def test_small_alignments_are_told_apart() -> None:
    """t is below the smallest float32 here: 1e-12 * (1e-9)^6."""
    log_score = torch.tensor([[-27.6, -27.5, -27.7]])
    gt_index, quality = align(
        log_score, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), alpha=1, beta=6, topk=1
    )
    assert gt_index.tolist() == [-1, 0, -1]
    assert quality.tolist() == [0, 0, 0]


@pytest.mark.parametrize("in_mask", [True, False])
def test_positives_lie_in_box_and_mask(in_mask: bool) -> None:
    predictions = random_predictions(SIZE)
    target = rectangles([[10, 10, 80, 70], [40, 30, 120, 90]], SIZE)
    assert isinstance(target.masks, torch.Tensor)
    target.masks[:, :, ::2] = False  # locations have even coordinates: none lies in a mask
    target.masks[:, 40:60] = True
    assignment = assign_one(predictions, target, sample_in_mask=in_mask)
    positive = assignment.gt_index >= 0
    assert 0 < positive.sum() <= 26
    assert (assignment.ltrb[positive] > 0).all()
    xy = Locations.of(predictions).xy[positive].long()
    inside = target.masks[assignment.gt_index[positive], xy[:, 1], xy[:, 0]]
    assert inside.all() if in_mask else not inside.all()


def test_targets_are_the_sides_of_the_object_and_the_quality_of_the_best_is_its_iou() -> None:
    predictions, target = random_predictions(SIZE), random_rectangles(4, SIZE, seed=3)
    assignment = assign_one(predictions, target)
    locations = Locations.of(predictions)
    positive = assignment.gt_index >= 0
    gts = assignment.gt_index[positive]
    torch.testing.assert_close(
        ltrb_to_xyxy(locations.xy[positive], assignment.ltrb[positive]), target.boxes[gts]
    )
    boxes = ltrb_to_xyxy(locations.xy, flatten_levels(predictions.box_ltrb)[0].T)[positive]
    assert assignment.quality is not None
    for gt in gts.unique().tolist():
        own = gts == gt
        overlaps = [reference.iou(box, target.boxes[gt].tolist(), 0.0) for box in boxes[own].tolist()]
        assert assignment.quality[positive][own].max().item() == pytest.approx(max(overlaps), rel=1e-4)
    assert assignment.quality[~positive].sum() == 0


def test_one_pixel_objects() -> None:
    """An object around a location gets it alone; one between locations gets none; neither breaks the losses."""
    predictions = random_predictions(SIZE, requires_grad=True)
    target = rectangles([[11.5, 11.5, 12.5, 12.5], [17, 17, 18, 18]], SIZE)
    assignment = assign_one(predictions, target)
    assert (assignment.gt_index >= 0).sum() == 1
    location = int((assignment.gt_index == 0).nonzero()[0, 0])
    assert Locations.of(predictions).xy[location].tolist() == [12, 12]
    losses = Criterion(CONFIG)(predictions, [target])
    losses.total.backward()
    assert math.isfinite(losses.total.item())


def test_empty_images() -> None:
    predictions = random_predictions(SIZE, images=2, requires_grad=True)
    predictions.centerness_logits = None
    losses = Criterion(CONFIG)(predictions, [no_objects(SIZE), no_objects(SIZE)])
    losses.total.backward()
    assert losses.num_positives == 0
    assert set(losses.as_dict()) == {"classification", "box", "mask", "smooth"}
    logits = flatten_levels(predictions.class_logits)
    expected = (0.75 * logits.sigmoid() ** 2 * F.softplus(logits)).sum()
    assert losses.classification.item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.box.item() == losses.mask.item() == 0


def test_losses_follow_the_quality() -> None:
    """Class and box losses, computed location by location."""
    predictions, target = random_predictions(SIZE), random_rectangles(5, SIZE, seed=1)
    assignment = assign_one(predictions, target)
    losses = Criterion(small_config(detector="tal", box_weight=2.0))(predictions, [target])
    logits, ltrb = (flatten_levels(maps)[0].T for maps in (predictions.class_logits, predictions.box_ltrb))
    xy = Locations.of(predictions).xy
    classification, box, total = 0.0, 0.0, 0.0
    assert assignment.quality is not None
    for k, (gt, quality) in enumerate(
        zip(assignment.gt_index.tolist(), assignment.quality.tolist(), strict=True)
    ):
        for label, logit in enumerate(logits[k].tolist()):
            p = 1 / (1 + math.exp(-logit))
            if gt >= 0 and quality > 0 and target.labels[gt] == label:
                classification -= quality * (quality * math.log(p) + (1 - quality) * math.log(1 - p))
            else:
                classification -= 0.75 * p**2 * math.log(1 - p)
        if gt >= 0:
            one, other = ltrb_to_xyxy(xy[k], ltrb[k]).tolist(), target.boxes[gt].tolist()
            hull = [
                min(one[0], other[0]),
                min(one[1], other[1]),
                max(one[2], other[2]),
                max(one[3], other[3]),
            ]
            area, iou = (hull[2] - hull[0]) * (hull[3] - hull[1]), reference.iou(one, other, 0.0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
            union = sum(areas) / (1 + iou)
            box += quality * (1 - iou + (area - union) / area)
            total += quality
    assert losses.classification.item() == pytest.approx(classification / max(total, 1), rel=1e-4)
    assert losses.box.item() == pytest.approx(2 * box / total, rel=1e-4)


def test_varifocal_loss_has_no_gradient_at_its_target() -> None:
    logits = torch.tensor([0.3, -1.0], requires_grad=True)
    varifocal_loss(logits, logits.detach().sigmoid(), 0.75, 2.0).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7


def test_fcos_head_with_task_aligned_assigner() -> None:
    """A head with centerness keeps it under another assigner, and `tal` can be assigned as FCOS."""
    predictions, target = random_predictions(SIZE), random_rectangles(5, SIZE, seed=1)
    config = small_config(assigner="task_aligned")
    assert Criterion(config)(predictions, [target]).centerness is not None
    predictions.centerness_logits = None
    fcos = Criterion(small_config(detector="tal", assigner="fcos"))(predictions, [target])
    assert fcos.centerness is None
    with_centerness = Criterion(small_config())(random_predictions(SIZE), [target])
    for name in ("classification", "box", "mask"):
        assert torch.equal(getattr(fcos, name), getattr(with_centerness, name))
