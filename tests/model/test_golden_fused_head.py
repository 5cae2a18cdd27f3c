"""The head of preset `fused` against the authors' own numbers: both modes, BatchNorm's buffers, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import weights_rule
from golden_files import assert_near, fixture, gradient_of, official_state, shared_fixture, text
from torch import Tensor

from embedmask import EmbedMask, Predictions
from embedmask.weights.official import _our_name, convert

RELATIVE = 1e-4
HALF = slice(None, None, 2)
SHORTENED = {
    "pixel_embed": (..., HALF, HALF),
    "semantic_logits": (slice(None), slice(None, None, 4), HALF, HALF),
}
"""Slices of these maps that the fixture stores."""
LEVELS = ("P3", "P4", "P5", "P6", "P7")


def build() -> EmbedMask:
    config, state = convert(official_state("fused", "r50"))
    model = EmbedMask(config)
    model.load_state_dict(state)
    return model


def feature_maps(z: Any) -> list[Tensor]:
    sizes = zip(LEVELS, z["level_hw"].tolist(), strict=True)
    drawn = [weights_rule.normal(f"head_in.{level}", (2, 256, h, w), 0) for level, (h, w) in sizes]
    return [torch.tensor(values).requires_grad_() for values in drawn]


def official_maps(predictions: Predictions) -> dict[str, list[Tensor]]:
    """Return the maps by the authors' names, boxes in units of the stride."""
    boxes = zip(predictions.box_ltrb, predictions.strides, strict=True)
    return {
        "logits": predictions.class_logits,
        "bbox_reg": [box / stride for box, stride in boxes],
        "centerness": predictions.centerness_logits,
        "proposal_embed": predictions.proposal_embed,
        "proposal_margin": predictions.proposal_margin,
    }


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """Run one forward and backward pass in training mode."""
    z, model = fixture("head_fused.npz"), build().train()
    maps = feature_maps(z)
    predictions = model.head(maps)
    named = {
        f"{name}.{level}": output
        for name, outputs in official_maps(predictions).items()
        for level, output in zip(LEVELS, outputs, strict=True)
    }
    named |= {"pixel_embed": predictions.pixel_embed, "semantic_logits": predictions.semantic_logits}
    cotangents = {k: torch.tensor(weights_rule.normal(f"head_cot.{k}", v.shape, 0)) for k, v in named.items()}
    total = torch.stack([(named[key] * cotangents[key]).sum() for key in named]).sum()
    total.backward()
    return {"z": z, "model": model, "maps": maps, "named": named, "total": total}


def test_outputs_in_training(run: dict[str, Any]) -> None:
    z, compared = run["z"], 0
    for name, output in run["named"].items():
        part = SHORTENED.get(name, ...)
        if f"train.{name}" in z.files:
            assert_near(output[part], z[f"train.{name}"], RELATIVE, name)
            compared += 1
    assert compared == 17
    assert_near(run["total"], z["bwd.total"], RELATIVE, "sum of all outputs, finest levels included")


def test_outputs_in_evaluation(run: dict[str, Any]) -> None:
    """Check running statistics in the pixel branch and missing semantic logits; the rest is as in training."""
    z, model = run["z"], build().eval()
    with torch.no_grad():
        predictions = model.head(feature_maps(z))
    assert predictions.semantic_logits is None
    assert_near(predictions.pixel_embed[..., ::2, ::2], z["eval.pixel_embed"], RELATIVE, "pixel_embed")
    for name, outputs in official_maps(predictions).items():
        for level, output in zip(LEVELS, outputs, strict=True):
            assert torch.equal(output, run["named"][f"{name}.{level}"])


def test_running_statistics(run: dict[str, Any]) -> None:
    z, buffers = run["z"], dict(run["model"].named_buffers())
    names = [key for key in z.files if key.startswith("bn_after.")]
    assert len(names) == 3 * 9
    for key in names:
        buffer = buffers[_our_name(key.removeprefix("bn_after."))]
        assert_near(buffer.float(), np.float32(z[key]), RELATIVE, key)


def test_gradients(run: dict[str, Any]) -> None:
    z, parameters = run["z"], dict(run["model"].named_parameters())
    compared = 0
    for name, norm in zip(text(z["bwd.param_names"]), z["bwd.param_grad_norm"], strict=True):
        gradient = gradient_of(name, parameters)
        assert_near(gradient.norm(), np.float32(norm), RELATIVE, name)
        if f"bwd.grad.{name}" in z.files:
            assert_near(gradient, z[f"bwd.grad.{name}"], RELATIVE, name)
            compared += 1
    assert compared >= 60
    for level, values in zip(LEVELS, run["maps"], strict=True):
        assert_near(values.grad.norm(), z[f"bwd.in_grad_norm.{level}"], RELATIVE, f"input {level}")


def test_every_value(run: dict[str, Any]) -> None:
    """Check the values that the shortened fixture omits."""
    z = shared_fixture("head_fused.npz")
    for name, output in run["named"].items():
        assert_near(output, z[f"train.{name}"], RELATIVE, name)
    for level, values in zip(LEVELS, run["maps"], strict=True):
        assert_near(values.grad[:, :8], z[f"bwd.in_grad_slice.{level}"], RELATIVE, f"input {level}")
