"""Criterion with preset `fused`, and the limit on the instances of the mask loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import objective as slow
from reference.coupling import weighted_distance
from reference.locations import resize_aligned
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

from embedmask import Criterion, EmbedMask, ModelConfig, Predictions, Target
from embedmask.errors import BadInput
from embedmask.locations import all_locations, flatten_levels
from embedmask.objective.criterion import Matched
from embedmask.objective.losses import dice_loss

SIZE = (64, 96)


def criterion_of(**changes: Any) -> Criterion:
    return Criterion.from_config(small_config(**{"preset": "fused", "embed_dim": 4, **changes}))


def predictions_of(seed: int = 0, size: tuple[int, int] = SIZE, images: int = 1) -> Predictions:
    predictions = random_predictions(size, images=images, seed=seed, margins=4, requires_grad=True)
    shape = (images, 3, *predictions.pixel_embed.shape[2:])
    semantic = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return replace(predictions, semantic_logits=semantic)


def slow_terms(predictions: Predictions, target: Target, cfg: ModelConfig) -> tuple[float, float]:
    """Compute mask and semantic loss of one image in float64, one positive and one cell at a time."""
    sizes = [(m.shape[2], m.shape[3]) for m in predictions.class_logits]
    locations, level = all_locations(sizes, predictions.strides, "cpu")
    index, _ = slow.assign(
        locations,
        torch.tensor(predictions.strides)[level].float(),
        torch.tensor(cfg.level_ranges)[level],
        target.boxes,
        target.masks,
        center_radius=cfg.center_radius,
        sampling_center="mass",
        sample_in_mask=False,
        box_offset=0.0,
    )
    pixels = predictions.pixel_embed[0].double()
    q, s = (flatten_levels(m)[0].T for m in (predictions.proposal_embed, predictions.proposal_margin))
    losses = []
    for location, gt in enumerate(index):
        if gt < 0:
            continue
        one = slice(location, location + 1)
        phi = (-weighted_distance(pixels.flatten(1), q[one], s[one])).exp().view(pixels.shape[1:])
        prob = resize_aligned(phi, 2)
        gt_mask = torch.zeros_like(prob, dtype=torch.bool)
        samples = target.masks[gt, 2::4, 2::4]
        gt_mask[: samples.shape[0], : samples.shape[1]] = samples
        if cfg.mask_loss == "dice":
            union = prob.square().sum() + gt_mask.sum() + 1e-5
            losses.append((1 - 2 * (prob * gt_mask).sum() / union).item())
        elif cfg.mask_loss == "bce":
            right = torch.where(gt_mask, prob, 1 - prob).clamp(1e-6, 1 - 1e-6)
            losses.append(-right.log().mean().item())
        else:
            logits = torch.logit(prob.clamp(1e-6, 1 - 1e-6)).flatten()[None]
            losses.append(slow.lovasz_hinge(logits, gt_mask.flatten()[None]).item())
    return sum(losses) / max(len(losses), 1), _slow_semantic(predictions, target, cfg)


def _slow_semantic(predictions: Predictions, target: Target, cfg: ModelConfig) -> float:
    assert predictions.semantic_logits is not None
    logits = predictions.semantic_logits[0].double()
    classes = slow.semantic_targets(target.masks, target.labels, tuple(logits.shape[1:]), 8)
    total = 0.0
    for label in range(len(logits)):
        prob, positive = logits[label].sigmoid(), classes == label
        right = torch.where(positive, prob, 1 - prob)
        alpha = torch.where(positive, cfg.focal_alpha, 1 - cfg.focal_alpha)
        total += (-alpha * (1 - right) ** cfg.focal_gamma * right.log()).sum().item()
    return total / max((classes >= 0).sum().item(), 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.sampled_from(["lovasz", "dice", "bce"]))
def test_matches_formulas(seed: int, count: int, mask_loss: str) -> None:
    criterion = criterion_of(mask_loss=mask_loss)
    predictions, target = predictions_of(seed), random_rectangles(count, SIZE, seed)
    losses = criterion(predictions, [target])
    assert losses.semantic is not None
    mask, semantic = slow_terms(predictions, target, criterion.cfg)
    assert losses.mask.item() == pytest.approx(mask, rel=1e-3, abs=1e-5)
    assert losses.semantic.item() == pytest.approx(semantic, rel=1e-4)
    assert losses.smooth == 0


def test_mask_loss_is_the_mean_over_positives() -> None:
    predictions = predictions_of(images=2)
    targets = [random_rectangles(2, SIZE, 3), random_rectangles(7, SIZE, 4)]
    criterion = criterion_of()
    both = criterion(predictions, targets)
    alone = [
        criterion(predictions, [t if i == k else no_objects(SIZE) for k, t in enumerate(targets)])
        for i in (0, 1)
    ]
    counts = [one.num_positives for one in alone]
    assert min(counts) > 0
    expected = sum(one.mask.item() * n for one, n in zip(alone, counts, strict=True)) / sum(counts)
    assert both.mask.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["no objects", "no positives"])
def test_without_positives(kind: str) -> None:
    """Check that every parameter has a gradient; the semantic head still learns the background."""
    model = EmbedMask(small_config(preset="fused", embed_dim=4)).train()
    target = no_objects((32, 40)) if kind == "no objects" else rectangles([[6, 6, 8, 8]], (32, 40))
    losses = Criterion.from_config(model.config)(
        model(torch.randn(2, 3, 32, 64)), [target, no_objects((32, 64))]
    )
    assert losses.num_positives == 0
    found = {name: value.item() for name, value in losses.as_dict().items()}
    assert found.pop("classification") > 0
    assert found.pop("semantic") > 0
    assert set(found.values()) == {0.0}
    losses.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("counts", [(5, 2), (4, 0)])
def test_two_processes_equal_one_on_the_joined_batch(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]
) -> None:
    """Compare the mean of both losses, each divided by the counts of both processes."""
    predictions = predictions_of(images=2)
    targets = [random_rectangles(n, SIZE, n) if n else no_objects(SIZE) for n in counts]
    criterion = criterion_of()
    joined = criterion(predictions, targets)
    sums: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: sums.append(values.clone()))
    for index in (0, 1):
        criterion(image_of(predictions, index), targets[index : index + 1])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.copy_(sums[0] + sums[1]))
    parts = [criterion(image_of(predictions, i), targets[i : i + 1]).as_dict() for i in (0, 1)]
    for name, value in joined.as_dict().items():
        assert (parts[0][name] + parts[1][name]).item() / 2 == pytest.approx(value.item(), rel=1e-5), name


def image_of(predictions: Predictions, index: int) -> Predictions:
    """Return the predictions of one image of a batch."""
    one = slice(index, index + 1)
    assert predictions.semantic_logits is not None
    return Predictions(
        *([level[one] for level in maps] for maps in (
            predictions.class_logits, predictions.box_ltrb, predictions.centerness_logits,
            predictions.proposal_embed, predictions.proposal_margin,
        )),
        pixel_embed=predictions.pixel_embed[one],
        strides=predictions.strides,
        semantic_logits=predictions.semantic_logits[one],
    )  # fmt: skip


def test_the_order_of_ground_truths_does_not_matter() -> None:
    """Include an empty first mask, for which the authors' code has no positive at all."""
    predictions, target = predictions_of(), random_rectangles(9, SIZE, seed=5)
    target.masks[0] = False
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    turned = Target(target.boxes[order], target.labels[order], target.masks[order])
    one, two = (criterion_of()(predictions, [t]) for t in (target, turned))
    assert one.num_positives == two.num_positives > 0
    for name, value in one.as_dict().items():
        assert value.item() == pytest.approx(two.as_dict()[name].item(), rel=1e-5), name


def test_raises_on_predictions_in_evaluation_mode() -> None:
    with pytest.raises(BadInput, match="training mode"):
        criterion_of()(random_predictions(SIZE, margins=4), [random_rectangles(2, SIZE)])


def test_dice_by_hand() -> None:
    probs = torch.tensor([[1.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    gt_mask = torch.tensor([[True, False, True], [True, False, False]])
    found = dice_loss(probs, gt_mask)
    assert found.tolist() == pytest.approx([0, 1 - 1 / 1.5], abs=1e-4)
    first = torch.tensor([[True, False, False], [True, False, False]])
    assert dice_loss(probs, gt_mask, first).tolist() == pytest.approx([0, 1 - 1 / 1.25], abs=1e-4)


# --- max_mask_instances -------------------------------------------------------


def matched_of(count: int) -> Matched:
    index = torch.arange(count)
    return Matched(index, index, torch.zeros(count, 4), torch.ones(count, 1), torch.rand(count))


def test_few_instances_are_all_used() -> None:
    matched = matched_of(5)
    state = torch.get_rng_state()
    assert matched.sample(5) is matched
    assert matched.sample(None) is matched
    assert torch.equal(state, torch.get_rng_state())


def test_sampling_is_unbiased() -> None:
    torch.manual_seed(0)
    matched, rounds = matched_of(6), 4000
    sums = torch.zeros(6)
    for _ in range(rounds):
        sampled = matched.sample(2)
        assert sampled.gt.diff() > 0  # two different instances, ordered by image
        sums[sampled.gt] += sampled.weight
    assert torch.allclose(sums / rounds, matched.weight, rtol=0.1)


@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
def test_sampled_loss_has_the_full_mean(preset: str) -> None:
    predictions, target = predictions_of(), random_rectangles(8, SIZE, 1)
    whole = criterion_of(preset=preset)(predictions, [target])
    criterion = criterion_of(preset=preset, max_mask_instances=4)
    torch.manual_seed(0)
    sampled = [criterion(predictions, [target]) for _ in range(50)]
    values = torch.stack([one.mask.detach() for one in sampled])
    assert values.std() > 0
    assert (values.mean() - whole.mask).abs() < 4 * values.std() / len(sampled) ** 0.5
    for name, value in sampled[0].as_dict().items():
        assert name == "mask" or torch.equal(value, whole.as_dict()[name])
    torch.manual_seed(0)
    assert torch.equal(criterion(predictions, [target]).mask, sampled[0].mask)


@pytest.mark.parametrize("preset", ["paper", "ijcai21", "fused"])
def test_memory_is_bounded_by_max_mask_instances(preset: str) -> None:
    """Use 1,964 small objects, the largest number per image in a well-known data set."""
    side, cells = 192, 48 * 48
    rng = torch.Generator().manual_seed(0)
    low = torch.rand(1964, 2, generator=rng) * (side - 24)
    high = low + 12 + 10 * torch.rand(1964, 2, generator=rng)
    target = rectangles(torch.cat([low, high], 1).tolist(), (side, side))
    used = {
        cap: bytes_for_backward(criterion_of(preset=preset, max_mask_instances=cap), (side, side), target)
        for cap in (20, 40, 120)
    }
    # the memory per instance is constant, and the rest is small
    each = (used[120] - used[40]) / 80
    assert 0 < each < 40 * cells * 4
    assert (used[40] - used[20]) / 20 == pytest.approx(each, rel=0.5)
    assert used[20] < 20 * each + 20e6


def bytes_for_backward(criterion: Criterion, size: tuple[int, int], target: Target) -> int:
    """Return the bytes that autograd saves for the backward pass."""
    predictions = predictions_of(size=size)
    saved: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        losses = criterion(predictions, [target])
    losses.total.backward()
    assert all(m.grad is not None and m.grad.isfinite().all() for m in maps_of(predictions))
    return sum(saved.values())


def test_strides_that_begin_at_four() -> None:
    strides = tuple(stride // 2 for stride in STRIDES)
    cfg = small_config(preset="fused", embed_dim=4, strides=strides, size_ranges=(32, 64, 128, 256))
    model = EmbedMask(cfg).train()
    predictions = model(torch.randn(1, 3, 64, 96))
    assert predictions.pixel_embed.shape == (1, 4, 16, 24)
    losses = Criterion.from_config(cfg)(predictions, [random_rectangles(4, SIZE, 2)])
    assert losses.num_positives > 0
    assert losses.total.isfinite()
