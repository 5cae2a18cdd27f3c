"""Reading the golden fixtures: small ones lie in tests/golden, the complete set beside the checkout."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import weights_rule, weights_rule_fused
from torch import Tensor

from embedmask import ModelConfig, Predictions, Target
from embedmask.weights.official import JOINED, _our_name

HERE = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared" / "golden" / "visible"
STRIDES = (8, 16, 32, 64, 128)
PRESET = {"v1": "paper", "v3": "ijcai21", "fused": "fused"}
OFFICIAL = {
    "classification": "loss_cls",
    "box": "loss_reg",
    "centerness": "loss_centerness",
    "mask": "mask_loss",
    "smooth": "smooth_loss",
}
"""Our loss names and theirs."""
OFFICIAL_FUSED = {
    "classification": "loss_fcos_cls",
    "box": "loss_fcos_loc",
    "centerness": "loss_fcos_ctr",
    "mask": "loss_mask",
    "semantic": "loss_sem",
}
"""The same in the second repository, which has no smooth loss."""
OUTPUTS = ("logits", "bbox_reg", "centerness", "proposal_embed", "proposal_margin", "pixel_embed")


def fixture(name: str) -> np.lib.npyio.NpzFile:
    """A fixture from the repository."""
    return np.load(HERE / name)


def shared_fixture(name: str) -> np.lib.npyio.NpzFile:
    """A fixture of the complete set; skips where it is not at hand."""
    if not (SHARED / name).is_file():
        pytest.skip(f"the complete golden set is not beside the checkout: no {name}")
    return np.load(SHARED / name)


def official_shapes(version: str, depth: str) -> dict[str, list[int]]:
    """Names and shapes of the authors' state dict."""
    entries = json.loads((HERE / f"state_dict_{version}_{depth}.json").read_text())["entries"]
    return {name: shape for name, shape, _ in entries}


def official_state(version: str, depth: str, seed: int = 0) -> dict[str, Tensor]:
    """The authors' state dict with the rule's values; the dict is the caller's own, its tensors are shared."""
    return dict(_official_state(version, depth, seed))


@functools.lru_cache(maxsize=2)
def _official_state(version: str, depth: str, seed: int) -> dict[str, Tensor]:
    shapes = official_shapes(version, depth)
    rule = weights_rule_fused if version == "fused" else weights_rule
    return {name: torch.tensor(rule.make_tensor(name, shape, seed)) for name, shape in shapes.items()}


def official_trainable(version: str, depth: str) -> dict[str, bool]:
    entries = json.loads((HERE / f"state_dict_{version}_{depth}.json").read_text())["entries"]
    return {name: trained for name, _, trained in entries}


def text(array: np.ndarray) -> list[str]:
    """A JSON list kept as bytes."""
    return json.loads(bytes(array).decode())


def unpack(z: np.lib.npyio.NpzFile, key: str, shape: tuple[int, ...]) -> Tensor:
    """Packed masks -> bool `shape`."""
    count, height, width = shape
    bits = np.unpackbits(z[key], axis=1)[:, : height * width]
    return torch.tensor(bits.reshape(count, height, width).astype(bool))


def split_levels(flat: Tensor, level_hw: np.ndarray) -> list[Tensor]:
    """`[N, C, K]` -> L maps."""
    parts = flat.split([int(h * w) for h, w in level_hw], dim=2)
    return [part.unflatten(2, (int(h), int(w))) for part, (h, w) in zip(parts, level_hw, strict=True)]


def location_strides(level_hw: np.ndarray) -> Tensor:
    return torch.cat(
        [torch.full((int(h * w),), float(s)) for (h, w), s in zip(level_hw, STRIDES, strict=True)]
    )


def golden_inputs(z: np.lib.npyio.NpzFile) -> dict[str, Tensor]:
    names = [*OUTPUTS, *(["semantic_logits"] if "in.semantic_logits" in z.files else [])]
    return {name: torch.tensor(z[f"in.{name}"]).requires_grad_() for name in names}


def golden_predictions(
    z: np.lib.npyio.NpzFile, inputs: dict[str, Tensor], box_unit: Tensor | float
) -> Predictions:
    """Flattened official outputs as `Predictions`; `box_unit` brings `bbox_reg` to px."""
    hw = z["level_hw"]
    return Predictions(
        class_logits=split_levels(inputs["logits"], hw),
        box_ltrb=split_levels(inputs["bbox_reg"] * box_unit, hw),
        centerness_logits=split_levels(inputs["centerness"], hw),
        proposal_embed=split_levels(inputs["proposal_embed"], hw),
        proposal_margin=split_levels(inputs["proposal_margin"], hw),
        pixel_embed=inputs["pixel_embed"],
        strides=STRIDES,
        semantic_logits=inputs.get("semantic_logits"),
    )


def golden_targets(z: np.lib.npyio.NpzFile) -> list[Target]:
    targets = []
    for index, (height, width) in enumerate(z["image_sizes_hw"].tolist()):
        boxes = torch.tensor(z[f"gt{index}.boxes"])
        masks = unpack(z, f"gt{index}.masks_packed", (len(boxes), height, width))
        targets.append(Target(boxes, torch.tensor(z[f"gt{index}.labels"]) - 1, masks))
    return targets


def preset(version: str, **overrides: object) -> ModelConfig:
    return ModelConfig.preset(PRESET[version], **overrides)  # type: ignore[arg-type]


def assert_near(actual: Tensor, expected: np.ndarray | Tensor, relative: float, what: str) -> None:
    """Largest difference, relative to the largest expected value."""
    wanted = torch.as_tensor(expected)
    assert actual.shape == wanted.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(wanted.shape)}"
    )
    if wanted.numel() == 0:
        return
    error = (actual.detach() - wanted).abs().max().item()
    scale = max(wanted.abs().max().item(), 1e-12)
    assert error <= relative * scale, f"{what}: off by {error:.3g}, largest value {scale:.3g}"


def gradient_of(official: str, parameters: dict[str, torch.nn.Parameter]) -> Tensor:
    """Of one of their parameters: our own, or the part that holds it of a convolution that theirs splits."""
    name, kind = official.rsplit(".", 1)
    for source, halves, target in JOINED:
        if name in [source.format(half) for half in halves]:
            gradient = parameters[f"{target}.{kind}"].grad
            assert gradient is not None
            return gradient[:2] if name == source.format(halves[0]) else gradient[2:]
    gradient = parameters[_our_name(official)].grad
    assert gradient is not None, official
    return gradient
