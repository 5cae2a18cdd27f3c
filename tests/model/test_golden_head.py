"""Head outputs and gradients against the authors' own numbers, training and evaluation conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import weights_rule
from golden_files import assert_near, fixture, official_state, text

from embedmask import EmbedMask
from embedmask.locations import level_locations
from embedmask.weights.official import _our_name, convert

RELATIVE = 1e-4
LEVELS = ("P3", "P4", "P5", "P6", "P7")


@pytest.fixture(scope="module", params=["v1", "v3"])
def run(request: pytest.FixtureRequest) -> dict[str, object]:
    """Run one forward and backward pass of the head on the fixture's feature maps."""
    version = request.param
    z = fixture(f"head_{version}.npz")
    config, state = convert(official_state(version, "r50"))
    model = EmbedMask(config)
    model.load_state_dict(state)
    maps = []
    for level, (height, width) in zip(LEVELS, z["level_hw"].tolist(), strict=True):
        values = weights_rule.normal(f"head_in.{level}", (2, 256, height, width), 0)
        maps.append(torch.tensor(values).requires_grad_())
    predictions = model.head(maps)
    official = {
        "logits": predictions.class_logits,
        "bbox_reg": [b / s for b, s in zip(predictions.box_ltrb, predictions.strides, strict=True)],
        "centerness": predictions.centerness_logits,
        "proposal_embed": predictions.proposal_embed,
        "proposal_margin": predictions.proposal_margin,
    }
    total = predictions.pixel_embed.new_zeros(())
    for name, outputs in official.items():
        for level, output in zip(LEVELS, outputs, strict=True):
            total = (
                total
                + (
                    output * torch.tensor(weights_rule.normal(f"head_cot.{name}.{level}", output.shape, 0))
                ).sum()
            )
    cotangent = weights_rule.normal("head_cot.pixel_embed", predictions.pixel_embed.shape, 0)
    total = total + (predictions.pixel_embed * torch.tensor(cotangent)).sum()
    total.backward()
    return {
        "z": z,
        "model": model,
        "maps": maps,
        "predictions": predictions,
        "official": official,
        "total": total,
    }


def test_outputs(run: dict) -> None:
    z, predictions = run["z"], run["predictions"]
    levels = [level for level in LEVELS if f"train.logits.{level}" in z.files]
    assert levels[-3:] == ["P5", "P6", "P7"]  # the fixture of the repository lacks the finer levels
    for name, outputs in run["official"].items():
        for level, output in zip(LEVELS, outputs, strict=True):
            if level in levels:
                assert_near(output, z[f"train.{name}.{level}"], RELATIVE, f"{name} {level}")
    for level, output in zip(LEVELS, predictions.box_ltrb, strict=True):
        if level in levels:
            assert_near(output, z[f"eval.bbox_reg.{level}"], RELATIVE, f"box px {level}")
    assert_near(predictions.pixel_embed[:, :, ::2, ::2], z["train.pixel_embed"], RELATIVE, "pixel_embed")
    assert_near(run["total"], z["bwd.total"], RELATIVE, "sum of all outputs, finest levels included")


def test_gradients(run: dict) -> None:
    z = run["z"]
    parameters = dict(run["model"].named_parameters())
    merged = ("spatial_embed", "other_embed")  # two convolutions in the authors' code, one here
    compared = 0
    for name, norm in zip(text(z["bwd.param_names"]), z["bwd.param_grad_norm"], strict=True):
        if any(part in name for part in merged):
            continue
        gradient = parameters[_our_name(name)].grad
        assert_near(gradient.norm(), np.float32(norm), RELATIVE, name)
        if f"bwd.grad.{name}" in z.files:
            assert_near(gradient, z[f"bwd.grad.{name}"], RELATIVE, name)
        compared += 1
    assert compared >= 65
    for level, values in zip(LEVELS, run["maps"], strict=True):
        if f"bwd.in_grad_norm.{level}" in z.files:
            assert_near(values.grad.norm(), z[f"bwd.in_grad_norm.{level}"], RELATIVE, f"input {level}")


def test_joined_convolutions_gradients(run: dict) -> None:
    z = run["z"]
    if "bwd.grad.rpn.head.pixel_spatial_embed_pred.bias" not in z.files:
        pytest.skip("arXiv v1 has one convolution too")
    for name, official in (("head.pixel_branch.embed", "pixel"), ("head.proposal_embed", "proposal")):
        expected = [
            z[f"bwd.grad.rpn.head.{official}_{part}_embed_pred.bias"] for part in ("spatial", "other")
        ]
        gradient = dict(run["model"].named_parameters())[f"{name}.bias"].grad
        assert_near(gradient, np.concatenate(expected), RELATIVE, name)


@pytest.mark.parametrize("level", range(5))
def test_locations(level: int) -> None:
    z = fixture("head_v1.npz")
    stride = 8 << level
    key = f"locations.P{level + 3}"
    if key not in z.files:
        pytest.skip(f"{key} is in the complete set only")
    height, width = z["level_hw"][level].tolist()
    np.testing.assert_array_equal(level_locations((height, width), stride).numpy(), z[key])
