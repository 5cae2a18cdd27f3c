"""Losses, gradients, assignment and layers of preset `fused` against the authors' own numbers (tests/golden)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_files import (
    OFFICIAL_FUSED,
    STRIDES,
    assert_near,
    fixture,
    golden_inputs,
    golden_predictions,
    golden_targets,
    location_strides,
    preset,
    text,
    unpack,
)
from torch import Tensor

from embedmask import Criterion, Target
from embedmask.locations import all_locations, level_locations, resize_aligned
from embedmask.objective.assignment import assign, mass_centers
from embedmask.objective.losses import centerness_targets, dice_loss, giou_loss, lovasz_hinge
from embedmask.objective.mask_targets import mask_targets, semantic_targets
from embedmask.structures import Losses

RELATIVE = 1e-4


def losses_of(z: Any, **changes: Any) -> tuple[dict[str, Tensor], Losses]:
    """Return the inputs and their losses."""
    inputs = golden_inputs(z)
    predictions = golden_predictions(z, inputs, location_strides(z["level_hw"]))
    return inputs, Criterion.from_config(preset("fused", **changes))(predictions, golden_targets(z))


@pytest.mark.parametrize("mask_loss", ["lovasz", "dice"])
@pytest.mark.parametrize("name", ["loss_fused.npz", "loss_fused_half.npz", "loss_fused_nopos.npz"])
def test_losses_and_gradients(name: str, mask_loss: str) -> None:
    z = fixture(name)
    inputs, losses = losses_of(z, mask_loss=mask_loss)
    named = losses.as_dict()
    assert named.pop("smooth") == 0
    assert losses.num_positives == z["assign.num_pos"]
    official = {**OFFICIAL_FUSED, "mask": "loss_mask_dice" if mask_loss == "dice" else "loss_mask"}
    assert set(named) == set(official)
    zero = set(text(z["grad_zero"]))
    for key, value in named.items():
        assert_near(value, z[f"loss.{official[key]}"], RELATIVE, key)
        gradients = torch.autograd.grad(value, list(inputs.values()), retain_graph=True, allow_unused=True)
        for output, gradient in zip(inputs, gradients, strict=True):
            pair = f"{official[key]}.{output}"
            if f"grad.{pair}" in z.files:
                assert gradient is not None
                assert_near(gradient, z[f"grad.{pair}"], RELATIVE, pair)
            else:
                assert pair.replace(".", "/") in zero
                assert gradient is None or not gradient.any(), f"{pair} should be zero"


def test_sampled_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the 20 of 98 instances that the authors sampled, converted to this package's order."""
    z = fixture("loss_fused.npz")
    official = list(zip(z["mask.pos_image"].tolist(), z["mask.pos_location"].tolist(), strict=True))
    order = {pair: index for index, pair in enumerate(sorted(official))}
    chosen = [order[official[index]] for index in z["clip.pos_index"].tolist()]
    rest = sorted(set(range(len(order))) - set(chosen))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.tensor(chosen + rest)[:count])
    inputs, losses = losses_of(z, max_mask_instances=int(z["clip.max_proposals"]))
    assert_near(losses.mask, z["clip.loss_mask"], RELATIVE, "mask loss")
    losses.mask.backward()
    gradient = inputs["proposal_embed"].grad
    assert gradient is not None
    assert_near(gradient, z["clip.grad_proposal_embed"], RELATIVE, "proposal gradient")
    assert inputs["pixel_embed"].grad is not None
    assert_near(
        inputs["pixel_embed"].grad.norm(), z["clip.grad_pixel_embed_norm"], RELATIVE, "pixel gradient"
    )


@pytest.mark.parametrize("name", ["loss_fused.npz", "loss_fused_half.npz", "loss_fused_nopos.npz"])
def test_assignment_and_targets(name: str) -> None:
    z = fixture(name)
    height, width = (int(side) for side in z["level_hw"][0])
    classes = []
    for index, target in enumerate(golden_targets(z)):
        found = assigned(z, target)
        np.testing.assert_array_equal(found.gt_index.numpy(), z["assign.matched"][index])
        np.testing.assert_allclose(found.ltrb.numpy(), z["assign.reg_targets_px"][index], rtol=1e-6)
        grid = tuple(z["stride4_hw"].tolist())
        expected = unpack(z, f"stride4_target.im{index}_packed", (len(target), *grid))
        assert torch.equal(mask_targets(target.masks, grid, 4, aligned=True), expected)
        classes.append(semantic_targets(target.masks, target.labels, (height, width), 8))
    np.testing.assert_array_equal(torch.stack(classes).numpy() + 1, z["sem.targets"])
    assert (torch.stack(classes) >= 0).sum() == z["sem.num_pos"]


def assigned(z: Any, target: Target, **changes: Any) -> Any:
    locations, level = all_locations([tuple(hw) for hw in z["level_hw"].tolist()], STRIDES, "cpu")
    cfg = preset("fused")
    options = {
        "center_radius": cfg.center_radius,
        "sampling_center": cfg.sampling_center,
        "sample_in_mask": cfg.sample_in_mask,
        "box_offset": cfg.box_offset,
    }
    return assign(
        locations,
        torch.tensor(STRIDES).float()[level],
        torch.tensor(cfg.level_ranges)[level],
        target.boxes,
        target.masks,
        **{**options, **changes},
    )


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("default", {}),
        ("sample_in_mask", {"sample_in_mask": True}),
        ("no_center_sampling", {"center_radius": None}),
        ("box_center", {"sampling_center": "box"}),
        ("empty_mask3", {}),
    ],
)
def test_assignment_on_large_images(case: str, options: dict[str, Any]) -> None:
    z = fixture("assign_fused.npz")
    for index, target in enumerate(golden_targets(z)):
        if case == "empty_mask3" and index == 0:
            target.masks[3] = False
        found = assigned(z, target, **options)
        here = z[f"{case}.image"] == index
        positive = (found.gt_index >= 0).nonzero()[:, 0]
        np.testing.assert_array_equal(positive.numpy(), z[f"{case}.location"][here])
        np.testing.assert_array_equal(found.gt_index[positive].numpy(), z[f"{case}.matched"][here])
        np.testing.assert_array_equal(
            target.labels[found.gt_index[positive]].numpy() + 1, z[f"{case}.labels"][here]
        )
        np.testing.assert_allclose(found.ltrb[positive].numpy(), z[f"{case}.reg_targets_px"][here], rtol=1e-6)
        centerness = centerness_targets(found.ltrb[positive])
        np.testing.assert_allclose(centerness.numpy(), z[f"{case}.centerness"][here], rtol=1e-5)


def test_empty_first_mask_does_not_affect_other_objects() -> None:
    """Check a documented difference: in the authors' code, an empty first mask leaves the image without positives."""
    z = fixture("assign_fused.npz")
    target = golden_targets(z)[0]
    whole = assigned(z, target).gt_index
    target.masks[0] = False
    found = assigned(z, target).gt_index
    assert (whole == 0).any()
    assert not (found == 0).any()
    assert torch.equal(found[whole > 0], whole[whole > 0])
    assert not (z["empty_mask0.image"] == 0).any()


def test_mass_centers() -> None:
    z = fixture("assign_fused.npz")
    for index, target in enumerate(golden_targets(z)):
        assert_near(mass_centers(target.masks), z[f"mass_centers.im{index}"], 1e-6, "centers of mass")


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_resize_aligned(factor: int) -> None:
    z = fixture("layers_fused.npz")
    maps = torch.tensor(z["aligned.in"]).requires_grad_()
    found = resize_aligned(maps, factor)
    assert_near(found, z[f"aligned.f{factor}"], 1e-6, "resized")
    if factor == 2:
        one = torch.tensor(z["aligned.in"])[:1].requires_grad_()
        (resize_aligned(one, 2) * torch.tensor(z["aligned.f2_cot"])).sum().backward()
        assert one.grad is not None
        assert_near(one.grad, z["aligned.f2_grad"], 1e-5, "gradient")


@pytest.mark.parametrize("kind", ["lovasz", "dice"])
def test_mask_losses_of_a_map(kind: str) -> None:
    z = fixture("layers_fused.npz")
    prob = torch.tensor(z["maskloss.prob"]).requires_grad_()
    rows, expected = prob.flatten(1), torch.tensor(z["maskloss.target"]).flatten(1) > 0
    if kind == "lovasz":
        loss = lovasz_hinge(torch.logit(rows, eps=preset("fused").min_prob), expected)
    else:
        loss = dice_loss(rows, expected)
    loss.sum().backward()
    assert_near(loss, z[f"maskloss.{kind}"], RELATIVE, kind)
    assert prob.grad is not None
    assert_near(prob.grad, z[f"maskloss.{kind}_grad"], RELATIVE, f"{kind} gradient")


def test_giou_and_centerness() -> None:
    z = fixture("layers_fused.npz")
    target = torch.tensor(z["iou.target"])
    loss = giou_loss(torch.tensor(z["iou.pred"]), target)
    assert_near(1 - loss, z["iou.giou"], 1e-5, "GIoU")
    assert_near(centerness_targets(target), z["iou.centerness"], 1e-6, "centerness")


@pytest.mark.parametrize("stride", [8, 64])
def test_positions(stride: int) -> None:
    """Check that positions are (x, y), divided by 100."""
    z = fixture("layers_fused.npz")
    expected = torch.tensor(z[f"location_map.{stride}"])
    found = level_locations((expected.shape[-2], expected.shape[-1]), stride).T.reshape(expected.shape)
    assert torch.equal(found, expected)
