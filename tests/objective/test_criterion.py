"""The whole objective (eq. 8): invariants of any batch, and the errors of invalid targets."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow
from reference.coupling import weighted_distance
from small_models import (
    STRIDES,
    maps_of,
    no_objects,
    random_predictions,
    random_rectangles,
    rectangles,
    small_config,
)
from torch import Tensor
from torch.nn import functional as F

from embedmask import Criterion, EmbedMask, ModelConfig, Predictions, Target
from embedmask.coupling import prior_precision
from embedmask.errors import BadInput
from embedmask.locations import all_locations, flatten_levels, ltrb_to_xyxy
from embedmask.objective.assignment import assign
from embedmask.structures import Losses

SIZE = (64, 96)
TERMS = ("classification", "box", "centerness", "mask", "smooth")


def criterion(**changes: Any) -> Criterion:
    return Criterion.from_config(small_config(**{"embed_dim": 4, **changes}))


def numbers(losses: Losses) -> dict[str, float]:
    return {name: value.item() for name, value in losses.as_dict().items()}


def image_of(predictions: Predictions, index: int) -> Predictions:
    """Return the predictions of one image of a batch."""
    one = slice(index, index + 1)
    return Predictions(
        class_logits=[m[one] for m in predictions.class_logits],
        box_ltrb=[m[one] for m in predictions.box_ltrb],
        centerness_logits=[m[one] for m in predictions.centerness_logits],
        proposal_embed=[m[one] for m in predictions.proposal_embed],
        proposal_margin=[m[one] for m in predictions.proposal_margin],
        pixel_embed=predictions.pixel_embed[one],
        strides=predictions.strides,
    )


def slow_losses(predictions: Predictions, target: Target, cfg: ModelConfig) -> dict[str, float]:
    """Compute eq. 8 for one image, one ground truth at a time, in float64 where precision matters."""
    sizes = [(m.shape[2], m.shape[3]) for m in predictions.class_logits]
    locations, level = all_locations(sizes, predictions.strides, "cpu")
    strides = torch.tensor(predictions.strides)[level].float()
    index, sides = slow.assign(
        locations,
        strides,
        torch.tensor(cfg.level_ranges)[level],
        target.boxes,
        target.masks,
        center_radius=cfg.center_radius,
        sample_in_mask=cfg.sample_in_mask,
        box_offset=cfg.box_offset,
    )
    positives = [k for k, gt in enumerate(index) if gt >= 0]
    count = max(len(positives), 1)
    flat = {
        name: flatten_levels(getattr(predictions, name))[0].double()
        for name in ("class_logits", "box_ltrb", "centerness_logits", "proposal_embed", "proposal_margin")
    }
    one_hot = torch.zeros_like(flat["class_logits"])
    for k in positives:
        one_hot[target.labels[index[k]], k] = 1
    prob = flat["class_logits"].sigmoid()
    right = torch.where(one_hot > 0, prob, 1 - prob)
    alpha = torch.where(one_hot > 0, cfg.focal_alpha, 1 - cfg.focal_alpha)
    focal = (-alpha * (1 - right) ** cfg.focal_gamma * right.log()).sum() / count
    box = center = weight = 0.0
    for k in positives:
        left, top, right_side, bottom = sides[k]
        quality = math.sqrt(
            min(left, right_side) / max(left, right_side) * min(top, bottom) / max(top, bottom)
        )
        pred = flat["box_ltrb"][:, k].tolist()
        stride = strides[k].item()
        box += quality * _giou_loss([s / stride for s in pred], [s / stride for s in sides[k]])
        p = flat["centerness_logits"][0, k].sigmoid().item()
        center -= quality * math.log(p) + (1 - quality) * math.log(1 - p)
        weight += quality
    mask, smooth = _slow_mask_losses(predictions, target, cfg, index, flat)
    return {
        "classification": focal.item(),
        "box": box / max(weight, 1e-6),
        "centerness": center / count,
        "mask": cfg.mask_weight * mask,
        "smooth": cfg.smooth_weight * smooth,
    }


def _giou_loss(pred: list[float], target: list[float]) -> float:
    least, most = ([f(a, b) for a, b in zip(pred, target, strict=True)] for f in (min, max))

    def area(sides: list[float]) -> float:
        return (sides[0] + sides[2]) * (sides[1] + sides[3])

    union = area(pred) + area(target) - area(least)
    return 1 - (area(least) + 1) / (union + 1) + (area(most) - union) / area(most)


def _slow_mask_losses(
    predictions: Predictions,
    target: Target,
    cfg: ModelConfig,
    index: list[int],
    flat: dict[str, Tensor],
) -> tuple[float, float]:
    sizes = [(m.shape[2], m.shape[3]) for m in predictions.class_logits]
    locations, _ = all_locations(sizes, predictions.strides, "cpu")
    pixels = F.interpolate(predictions.pixel_embed, scale_factor=2, mode="bilinear", align_corners=False)[0]
    grid, stride = (pixels.shape[1], pixels.shape[2]), predictions.strides[0] // 2
    mask = smooth = 0.0
    for gt in range(len(target)):
        members = [k for k, chosen in enumerate(index) if chosen == gt]
        if not members:
            continue
        boxes = ltrb_to_xyxy(locations[members], flat["box_ltrb"][:, members].T.float())
        selected = slow.select_samples(
            boxes,
            target.boxes[gt : gt + 1],
            torch.zeros(len(members), dtype=torch.int64),
            mode=cfg.embed_samples,
            iou_threshold=cfg.sample_iou,
            box_offset=cfg.box_offset,
        )
        sampled = [k for k, keep in zip(members, selected, strict=True) if keep]
        q, s = flat["proposal_embed"][:, sampled], flat["proposal_margin"][:, sampled]
        center, margin = q.mean(1, keepdim=True), s.mean(1, keepdim=True)
        smooth += ((q - center).square().sum() + (s - margin).square().sum()).item() / len(target)
        distance = weighted_distance(pixels.flatten(1), center.T, margin.T)
        logits = -distance - torch.log(-torch.expm1(-distance))
        gt_mask = slow.mask_targets(target.masks[gt : gt + 1], grid, stride).flatten(1)
        region = None
        if cfg.box_expansion is not None:
            region = slow.box_regions(target.boxes[gt : gt + 1], grid, stride, cfg.box_expansion).flatten(1)
        if cfg.mask_loss == "bce":
            inside = torch.ones_like(gt_mask) if region is None else region
            right = torch.where(gt_mask, -distance, torch.log(-torch.expm1(-distance)))[inside]
            mask -= right.mean().item() / len(target)
        else:
            mask += slow.lovasz_hinge(logits, gt_mask, region).item() / len(target)
    return mask, smooth


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 5),
    st.sampled_from([None, 1.0, 1.2]),
    st.sampled_from(["iou", "all", "best"]),
    st.sampled_from(["lovasz", "bce"]),
)
def test_matches_formulas(seed: int, count: int, expansion: float | None, samples: str, loss: str) -> None:
    objective = criterion(box_expansion=expansion, embed_samples=samples, mask_loss=loss)
    predictions = random_predictions(SIZE, seed=seed, margins=1 if seed % 2 else 4)
    target = random_rectangles(count, SIZE, seed)
    found = numbers(objective(predictions, [target]))
    assert found == pytest.approx(slow_losses(predictions, target, objective.cfg), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
@pytest.mark.parametrize("kind", ["no objects", "no positives"])
def test_without_positives_all_but_classification_is_zero(preset: str, kind: str) -> None:
    model = EmbedMask(small_config(preset=preset, embed_dim=4))
    # locations are 8 px apart: an object of 2 px contains none
    target = no_objects((32, 40)) if kind == "no objects" else rectangles([[6, 6, 8, 8]], (32, 40))
    losses = Criterion.from_config(model.config)(
        model(torch.randn(2, 3, 32, 64)), [target, no_objects((32, 64))]
    )
    assert losses.num_positives == 0
    found = numbers(losses)
    assert set(found) == set(TERMS)
    assert found.pop("classification") > 0
    assert set(found.values()) == {0.0}
    losses.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_map_has_gradient_without_positives() -> None:
    predictions = random_predictions(SIZE, requires_grad=True)
    criterion()(predictions, [no_objects(SIZE)]).total.backward()
    assert all(m.grad is not None and m.grad.isfinite().all() for m in maps_of(predictions))
    assert all((m.grad == 0).all() for m in maps_of(predictions)[len(STRIDES) :])


def test_object_without_location_counts_in_the_mean_only() -> None:
    predictions = random_predictions(SIZE)
    single = rectangles([[10, 10, 50, 50]], SIZE)
    both = rectangles([[10, 10, 50, 50], [70, 6, 72, 8]], SIZE)
    for normalizer, share in (("all", 0.5), ("matched", 1.0)):
        objective = criterion(mask_normalizer=normalizer)
        one, two = numbers(objective(predictions, [single])), numbers(objective(predictions, [both]))
        assert two["mask"] == pytest.approx(one["mask"] * share, rel=1e-5)
        assert {k: two[k] for k in TERMS[:3]} == pytest.approx({k: one[k] for k in TERMS[:3]})


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
def test_many_objects(preset: str) -> None:
    predictions = random_predictions((64, 64), requires_grad=True)
    objective = criterion(preset=preset)
    losses = objective(predictions, [random_rectangles(300, (64, 64))])
    assert losses.num_positives > 20
    assert losses.total.isfinite()
    losses.total.backward()
    assert all(m.grad is not None and m.grad.isfinite().all() for m in maps_of(predictions))


@pytest.mark.parametrize("preset", ["paper", "ijcai21"])
def test_the_order_of_ground_truths_does_not_matter(preset: str) -> None:
    predictions = random_predictions(SIZE, margins=4)
    target = random_rectangles(9, SIZE, seed=5)
    sides = target.boxes[:, 2:] - target.boxes[:, :2] + 1
    assert len(set(sides.prod(1).tolist())) == 9
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    turned = Target(target.boxes[order], target.labels[order], target.masks[order])
    objective = criterion(preset=preset)
    assert numbers(objective(predictions, [turned])) == pytest.approx(
        numbers(objective(predictions, [target])), rel=1e-5
    )


def test_batch_losses_are_weighted_means() -> None:
    """Average class, box and centerness over the positives of the batch, masks and smooth over images."""
    predictions = random_predictions(SIZE, images=3)
    targets = [random_rectangles(3, SIZE, 1), no_objects(SIZE), random_rectangles(6, SIZE, 2)]
    objective = criterion()
    batch = objective(predictions, targets)
    single = [objective(image_of(predictions, i), [t]) for i, t in enumerate(targets)]
    counts = torch.tensor([float(one.num_positives) for one in single])
    assert batch.num_positives == counts.sum() > 0
    weights = {
        "classification": counts.clamp(min=1) / counts.sum(),
        "centerness": counts.clamp(min=1) / counts.sum(),
        "box": _centerness_sums(targets) / _centerness_sums(targets).sum(),
        "mask": torch.full((3,), 1 / 3),
        "smooth": torch.full((3,), 1 / 3),
    }
    expected = {
        name: (torch.stack([one.as_dict()[name] for one in single]) * weight).sum().item()
        for name, weight in weights.items()
    }
    assert numbers(batch) == pytest.approx(expected, rel=1e-4)


def _centerness_sums(targets: list[Target]) -> Tensor:
    cfg = small_config()
    locations, level = all_locations(
        [(math.ceil(64 / s), math.ceil(96 / s)) for s in STRIDES], STRIDES, "cpu"
    )
    strides, ranges = torch.tensor(STRIDES)[level].float(), torch.tensor(cfg.level_ranges)[level]
    sums = []
    for target in targets:
        found = assign(locations, strides, ranges, target.boxes, target.masks, box_offset=1.0)
        left, top, right, bottom = found.ltrb[found.gt_index >= 0].unbind(1)
        ratio = torch.minimum(left, right) / torch.maximum(left, right)
        sums.append((ratio * torch.minimum(top, bottom) / torch.maximum(top, bottom)).sqrt().sum())
    return torch.stack(sums)


@pytest.mark.parametrize(("box_offset", "winner"), [(0.0, 1), (1.0, 0)])
def test_areas_are_compared_with_the_offset(box_offset: float, winner: int) -> None:
    """Compare areas: 30 x 30 is larger than 14 x 64, but 31 x 31 is smaller than 15 x 65."""
    target = rectangles([[20, 20, 50, 50], [28, 0, 42, 64]], SIZE)
    predictions = random_predictions(SIZE)
    predictions.class_logits = [torch.full_like(m, -20) for m in predictions.class_logits]
    objective = criterion(box_offset=box_offset)
    undecided = objective(predictions, [target]).classification.item()
    gains = []
    for label in (0, 1):
        predictions.class_logits[0][0, label, 4, 4] = 20  # location (36, 36) lies in both
        gains.append(undecided - objective(predictions, [target]).classification.item())
        predictions.class_logits[0][0, label, 4, 4] = -20
    assert gains[winner] > 0 > gains[1 - winner]


def test_targets_smaller_than_the_padded_frame() -> None:
    predictions = random_predictions(SIZE)
    small = rectangles([[3, 3, 30, 36], [20, 10, 50, 37]], (37, 51))
    padded = Target(small.boxes, small.labels, F.pad(small.masks, (0, 96 - 51, 0, 64 - 37)))
    objective = criterion()
    assert numbers(objective(predictions, [small])) == numbers(objective(predictions, [padded]))


def test_targets_are_not_modified() -> None:
    target = random_rectangles(4, SIZE)
    before = Target(target.boxes.clone(), target.labels.clone(), target.masks.clone())
    criterion()(random_predictions(SIZE), [target])
    assert torch.equal(before.boxes, target.boxes)
    assert torch.equal(before.masks, target.masks)


def test_integer_masks_equal_bool_masks() -> None:
    predictions, target = random_predictions(SIZE), random_rectangles(4, SIZE)
    objective = criterion()
    expected = numbers(objective(predictions, [target]))
    for dtype in (torch.uint8, torch.float32):
        other = Target(target.boxes.double(), target.labels, target.masks.to(dtype))
        assert numbers(objective(predictions, [other])) == expected


def test_losses_are_float32_under_autocast() -> None:
    predictions, target = random_predictions(SIZE), random_rectangles(4, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion()(predictions, [target])
    assert {value.dtype for value in losses.as_dict().values()} == {torch.float32}
    assert numbers(losses) == numbers(criterion()(predictions, [target]))


def test_perfect_predictions_have_almost_no_loss() -> None:
    target = rectangles([[8, 8, 40, 40], [48, 16, 88, 56]], SIZE)
    predictions = random_predictions(SIZE, dims=2)
    sizes = [(m.shape[2], m.shape[3]) for m in predictions.class_logits]
    locations, level = all_locations(sizes, STRIDES, "cpu")
    ranges = torch.tensor(small_config().level_ranges)[level]
    found = assign(locations, torch.tensor(STRIDES)[level].float(), ranges, target.boxes, target.masks)
    positive = found.gt_index >= 0
    logits = torch.full((3, len(locations)), -12.0)
    logits[target.labels[found.gt_index[positive]], positive.nonzero()[:, 0]] = 12
    place = torch.zeros(2, len(locations))
    place[0, positive] = found.gt_index[positive].float() * 8 - 4
    pixel = torch.zeros(1, 2, 8, 12)
    pixel[0, 0, 1:5, 1:5], pixel[0, 0, 2:7, 6:11] = -4, 4
    counts = [h * w for h, w in sizes]

    def levels(flat: Tensor) -> list[Tensor]:
        parts = flat.split(counts, 1)
        return [p.reshape(1, -1, *s) for p, s in zip(parts, sizes, strict=True)]

    perfect = replace(
        predictions,
        class_logits=levels(logits),
        box_ltrb=levels(found.ltrb.T.contiguous()),
        proposal_embed=levels(place),
        proposal_margin=levels(torch.full((1, len(locations)), prior_precision(2))),
        pixel_embed=pixel,
    )
    losses = numbers(criterion(embed_dim=2)(perfect, [target]))
    assert losses["classification"] < 1e-4
    assert losses["box"] == pytest.approx(0, abs=1e-6)
    assert losses["smooth"] == pytest.approx(0, abs=1e-6)
    # interpolation blurs the corners of the objects
    assert losses["mask"] < 0.1


BAD = {
    "label": (lambda t: replace(t, labels=t.labels + 2), "labels 2..3"),
    "box": (lambda t: replace(t, boxes=t.boxes[:, [0, 1, 0, 3]]), "has no area"),
    "large masks": (
        lambda t: replace(t, masks=F.pad(t.masks, (0, 1))),
        r"\(64, 97\) are larger than .*\(64, 96\)",
    ),
    "tall masks": (lambda t: replace(t, masks=F.pad(t.masks, (0, 0, 0, 9))), r"\(73, 96\) are larger than"),
    "masks missing": (lambda t: replace(t, masks=t.masks[:1]), "2 boxes but 1 masks"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("image_id", [None, 77])
def test_raises_on_invalid_target(case: str, image_id: int | None) -> None:
    change, message = BAD[case]
    bad = change(replace(random_rectangles(2, SIZE), image_id=image_id))
    with pytest.raises(BadInput, match=message) as error:
        criterion()(random_predictions(SIZE, images=2), [no_objects(SIZE), bad])
    assert "\n" not in str(error.value)
    assert "None" not in str(error.value)
    assert image_id is None or "image 77" in str(error.value)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_raises_unless_one_target_per_image(count: int) -> None:
    with pytest.raises(BadInput, match=f"2 images but {count} targets"):
        criterion()(random_predictions(SIZE, images=2), [no_objects(SIZE)] * count)
