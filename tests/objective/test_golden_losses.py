"""Losses, gradients, assignment and sampling against the authors' own numbers (tests/golden)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_files import (
    OFFICIAL,
    assert_near,
    fixture,
    golden_inputs,
    golden_predictions,
    golden_targets,
    location_strides,
    preset,
    split_levels,
    text,
    unpack,
)
from timm.layers.norm_act import FrozenBatchNormAct2d
from torchvision.ops import sigmoid_focal_loss

from embedmask import Criterion
from embedmask.coupling import logit
from embedmask.locations import all_locations, ltrb_to_xyxy
from embedmask.objective.assignment import assign, select_samples
from embedmask.objective.losses import centerness_targets, giou_loss, lovasz_hinge
from embedmask.objective.mask_targets import box_regions, mask_targets

RELATIVE = 1e-4
CASES = [
    ("loss_v1_pad10.npz", "v1", 1.2),
    ("loss_v1_half.npz", "v1", 1.0),
    ("loss_v1_nopos.npz", "v1", 1.0),
    ("loss_v3.npz", "v3", None),
    ("loss_v3_half.npz", "v3", None),
    ("loss_v3_nopos.npz", "v3", None),
]


@pytest.mark.parametrize(("name", "version", "expansion"), CASES)
def test_losses_and_gradients(name: str, version: str, expansion: float | None) -> None:
    z = fixture(name)
    inputs = golden_inputs(z)
    predictions = golden_predictions(z, inputs, location_strides(z["level_hw"]))
    losses = Criterion.from_config(preset(version, box_expansion=expansion))(
        predictions, golden_targets(z)
    ).as_dict()
    if version == "v3":  # the 2021 version has no smooth loss: 0 here
        assert losses.pop("smooth") == 0
    assert {f"loss.{OFFICIAL[key]}" for key in losses} == {key for key in z.files if key.startswith("loss.")}
    zero = set(text(z["grad_zero"]))
    for key, value in losses.items():
        assert_near(value, z[f"loss.{OFFICIAL[key]}"], RELATIVE, key)
        gradients = torch.autograd.grad(value, list(inputs.values()), retain_graph=True, allow_unused=True)
        for output, gradient in zip(inputs, gradients, strict=True):
            pair = f"{OFFICIAL[key]}.{output}"
            if f"grad.{pair}" in z.files:
                assert gradient is not None
                assert_near(gradient, z[f"grad.{pair}"], RELATIVE, pair)
            else:
                assert pair.replace(".", "/") in zero
                assert gradient is None or not gradient.any(), f"{pair} should be zero"


@pytest.mark.parametrize("name", ["loss_v1_pad10.npz", "loss_v3.npz"])
def test_assignment_and_mask_targets(name: str) -> None:
    z = fixture(name)
    sizes = [tuple(hw) for hw in z["level_hw"].tolist()]
    locations, level = all_locations(sizes, (8, 16, 32, 64, 128), "cpu")
    cfg = preset("v1")
    strides = torch.tensor((8.0, 16, 32, 64, 128))[level]
    ranges = torch.tensor(cfg.level_ranges)[level]
    for index, target in enumerate(golden_targets(z)):
        found = assign(locations, strides, ranges, target.boxes, target.masks, box_offset=1)
        matched = z["assign.matched"][index]
        np.testing.assert_array_equal(found.gt_index.numpy(), matched)
        np.testing.assert_allclose(found.ltrb.numpy(), z["assign.reg_targets_px"][index], rtol=1e-6)
        grid = tuple(z["stride4_hw"].tolist())
        expected = unpack(z, f"stride4_target.im{index}_packed", (len(target), *grid))
        assert torch.equal(mask_targets(target.masks, grid, 4), expected)


@pytest.mark.parametrize(("name", "mode"), [("loss_v1_pad10.npz", "iou"), ("loss_v3.npz", "best")])
def test_samples(name: str, mode: str) -> None:
    """Include three proposals of one object that decode to exactly the same box."""
    z = fixture(name)
    inputs = golden_inputs(z)
    locations, _ = all_locations([tuple(hw) for hw in z["level_hw"].tolist()], (8, 16, 32, 64, 128), "cpu")
    ltrb = (inputs["bbox_reg"] * location_strides(z["level_hw"])).detach()
    for index, target in enumerate(golden_targets(z)):
        matched = torch.tensor(z["assign.matched"][index]).long()
        where = (matched >= 0).nonzero()[:, 0]
        boxes = ltrb_to_xyxy(locations[where], ltrb[index].T[where])
        selected = select_samples(
            boxes, target.boxes, matched[where], mode=mode, iou_threshold=0.5, box_offset=1
        )
        for gt in range(len(target)):
            chosen = where[selected & (matched[where] == gt)]
            np.testing.assert_array_equal(chosen.numpy(), z[f"pos.im{index}.gt{gt}"])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("default", {}),
        ("no_sample_in_mask", {"sample_in_mask": False}),
        ("no_center_sampling", {"center_radius": None}),
    ],
)
def test_assignment_on_large_images(case: str, options: dict[str, object]) -> None:
    z = fixture("assign.npz")
    locations, level = all_locations(
        [tuple(hw) for hw in z["level_hw"].tolist()], (8, 16, 32, 64, 128), "cpu"
    )
    strides = torch.tensor((8.0, 16, 32, 64, 128))[level]
    ranges = torch.tensor(preset("v1").level_ranges)[level]
    for index, target in enumerate(golden_targets(z)):
        found = assign(locations, strides, ranges, target.boxes, target.masks, box_offset=1, **options)
        here = z[f"{case}.image"] == index
        positive = (found.gt_index >= 0).nonzero()[:, 0]
        np.testing.assert_array_equal(positive.numpy(), z[f"{case}.location"][here])
        np.testing.assert_array_equal(found.gt_index[positive].numpy(), z[f"{case}.matched"][here])
        np.testing.assert_allclose(found.ltrb[positive].numpy(), z[f"{case}.reg_targets_px"][here], rtol=1e-6)
        centerness = centerness_targets(found.ltrb[positive])
        np.testing.assert_allclose(centerness.numpy(), z[f"{case}.centerness"][here], rtol=1e-5)


LOVASZ = [
    "logits",
    "prob",
    "prob_masked",
    "logits_masked",
    "all_background",
    "all_foreground",
    "single_pixel_fg",
]
LOVASZ += ["single_pixel_bg", "empty_mask", "extreme_easy", "extreme_hard", "one_prob_on_fg"]


@pytest.mark.parametrize("case", LOVASZ)
@pytest.mark.parametrize(("version", "min_prob"), [("v1", 0.0), ("v3", 1e-9)])
def test_lovasz(case: str, version: str, min_prob: float) -> None:
    z = fixture("layers.npz")
    values = torch.tensor(z[f"lovasz.{case}.in"]).flatten(1).requires_grad_()
    targets = torch.tensor(z[f"lovasz.{case}.target"]).flatten(1).bool()
    key = f"lovasz.{case}.mask"
    region = torch.tensor(z[key]).flatten(1).bool() if key in z.files else None
    logits = logit(-values.clamp(min=1e-38).log(), min_prob) if z[f"lovasz.{case}.act"] else values
    loss = lovasz_hinge(logits, targets, region)
    assert_near(loss, z[f"lovasz.{case}.{version}.loss"], RELATIVE, case)
    expected = torch.tensor(z[f"lovasz.{case}.{version}.grad"]).flatten(1)
    if expected.isfinite().all():  # the arXiv version's own gradient is nan where a probability is 0
        loss.sum().backward()
        assert_near(values.grad, expected, RELATIVE, f"{case} gradient")


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_zero_probability_stays_finite(version: str) -> None:
    """Check a documented difference: the arXiv version's loss is infinite and its gradient nan."""
    z = fixture("layers.npz")
    distance = -torch.tensor(z["lovasz.zero_prob_on_fg.in"]).flatten(1).clamp(min=1e-38).log()
    distance.requires_grad_()
    targets = torch.tensor(z["lovasz.zero_prob_on_fg.target"]).flatten(1).bool()
    loss = lovasz_hinge(logit(distance, 1e-9 if version == "v3" else 0.0), targets)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert distance.grad is not None
    assert distance.grad.isfinite().all()
    expected = torch.tensor(z[f"lovasz.zero_prob_on_fg.{version}.loss"])
    finite = expected.isfinite()
    assert_near(loss[finite], expected[finite], RELATIVE, "finite rows")


@pytest.mark.parametrize("weighting", ["noweight", "weight"])
def test_giou(weighting: str) -> None:
    z = fixture("layers.npz")
    pred = torch.tensor(z["iou.pred"]).requires_grad_()
    loss = giou_loss(pred, torch.tensor(z["iou.target"]))
    weight = torch.tensor(z["iou.weight"]) if weighting == "weight" else torch.ones(len(loss))
    total = (loss * weight).sum()
    total.backward()
    assert_near(total, z[f"iou.giou.{weighting}.loss"], RELATIVE, "giou")
    assert_near(pred.grad, z[f"iou.giou.{weighting}.grad"], RELATIVE, "giou gradient")


@pytest.mark.parametrize(("case", "gamma", "alpha"), [("default", 2.0, 0.25), ("g15_a60", 1.5, 0.6)])
def test_focal(case: str, gamma: float, alpha: float) -> None:
    z = fixture("layers.npz")
    labels = torch.tensor(z["focal.targets"]).long()
    known = labels >= 0  # the authors' loss skips negative labels, which do not occur here
    logits = torch.tensor(z["focal.logits"])[known].requires_grad_()
    one_hot = torch.nn.functional.one_hot(labels[known], logits.shape[1] + 1)[:, 1:].float()
    loss = sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=gamma, reduction="sum")
    loss.backward()
    assert_near(loss, z[f"focal.{case}.loss"], RELATIVE, "focal")
    assert_near(logits.grad, z[f"focal.{case}.grad"][known.numpy()], RELATIVE, "focal gradient")


def test_frozen_batch_norm() -> None:
    """Use epsilon 0, as converted files do (`backbone_norm_eps: 0`)."""
    z = fixture("layers.npz")
    layer = FrozenBatchNormAct2d(6, eps=0.0, apply_act=False)
    layer.load_state_dict({k: torch.tensor(z[f"frozen_bn.{k}"]) for k in layer.state_dict()})
    assert_near(layer(torch.tensor(z["frozen_bn.in"])), z["frozen_bn.out"], RELATIVE, "frozen BatchNorm")


def test_centerness() -> None:
    z = fixture("layers.npz")
    assert_near(
        centerness_targets(torch.tensor(z["centerness.reg_targets"])), z["centerness.out"], 1e-6, "centerness"
    )


@pytest.mark.parametrize(("key", "expansion"), [("pad00", 1.0), ("pad01", 1.2), ("pad05", 2.0)])
def test_box_regions(key: str, expansion: float) -> None:
    z = fixture("layers.npz")
    grid = tuple(z["crop.hw"].tolist())
    regions = box_regions(torch.tensor(z["crop.boxes"]), grid, 1, expansion)
    np.testing.assert_array_equal(regions.numpy(), z[f"crop.crop_by_box.{key}"].astype(bool))


def test_mask_target_layer() -> None:
    z = fixture("layers.npz")
    masks = torch.tensor(z["target_mask.in"]).bool()
    out = z["target_mask.out"].astype(bool)
    assert torch.equal(mask_targets(masks, out.shape[1:], 4), torch.tensor(out))


def test_split_levels_keeps_order() -> None:
    hw = np.array([[2, 3], [1, 2]])
    first, second = split_levels(torch.arange(8.0).view(1, 1, 8), hw)
    assert first.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert second.flatten().tolist() == [6, 7]
