"""Conversion of the authors' weights files to EmbedMask's configuration and state dict.

The keys identify the version: arXiv v1 (`paper`) predicts the margin from the box, the 2021 version (`ijcai21`)
predicts spatial and other embedding dims separately, and the second repository (`fused`) uses other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedmask.config import ModelConfig
from embedmask.errors import BadInput
from embedmask.model.embedmask import EmbedMask
from embedmask.weights.checkpoint import read_torch_file, save, without_prefix

CAFFE_MEAN_BGR = (102.9801, 115.9465, 122.7717)
"""Mean of the first repository, for BGR pixels 0..255; the standard deviation is 1."""
DETECTRON_MEAN_BGR = (103.53, 116.28, 123.675)
"""Mean of the second repository, for BGR pixels 0..255; the standard deviation is 1."""

# names of the first repository, of both, and of the second; FPN and ResNet blocks are in `_our_name`
PATTERNS: tuple[tuple[str, str], ...] = (
    (r"backbone\.body\.stem\.(conv1|bn1)\.(.+)", r"backbone.body.\1.\2"),
    (r"backbone\.body\.(layer\d\.\d+\..+)", r"backbone.body.\1"),
    (r"(?:rpn\.head|proposal_generator\.fcos_head)\.cls_tower\.(.+)", r"head.class_tower.\1"),
    (r"(?:rpn\.head|proposal_generator\.fcos_head)\.bbox_tower\.(.+)", r"head.box_tower.\1"),
    (r"rpn\.head\.mask_tower\.(.+)", r"head.pixel_branch.tower.\1"),
    (r"(?:rpn\.head|proposal_generator\.fcos_head)\.cls_logits\.(.+)", r"head.class_logits.\1"),
    (r"(?:rpn\.head|proposal_generator\.fcos_head)\.bbox_pred\.(.+)", r"head.box.\1"),
    (r"(?:rpn\.head\.centerness|proposal_generator\.fcos_head\.ctrness)\.(.+)", r"head.centerness.\1"),
    (r"(?:rpn\.head|proposal_generator\.fcos_head)\.scales\.(\d)\.scale", r"head.box_scales.\1.scale"),
    (r"rpn\.head\.proposal_embed_pred\.(.+)", r"head.proposal_embed.\1"),
    (r"rpn\.head\.pixel_embed_pred\.(.+)", r"head.pixel_branch.embed.\1"),
    (r"rpn\.head\.proposal_margin_pred\.(.+)", r"head.margin.conv.\1"),
    (r"rpn\.head\.margin_scales\.(\d)\.scale", r"head.margin.level_scales.\1.scale"),
    (r"rpn\.head\.position_scale\.scale", r"head.position_scale.scale"),
    (r"backbone\.bottom_up\.stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(.+)", r"backbone.body.bn1.\1"),
    (r"proposal_head\.embed_conv\.(.+)", r"head.proposal_reduce.\1"),
    (r"proposal_head\.margin_conv\.(.+)", r"head.margin.reduce.\1"),
    (r"proposal_head\.margin_scales\.(\d)\.scale", r"head.margin.level_scales.\1.scale"),
    (r"mask_branch\.(refine|tower)\.(.+)", r"head.pixel_branch.\1.\2"),
    (r"mask_branch\.seg_head\.(.+)", r"head.semantic.\1"),
    (r"mask_branch\.logits\.(.+)", r"head.semantic.2.\1"),
)
JOINED = (
    ("rpn.head.proposal_{}_embed_pred", ("spatial", "other"), "head.proposal_embed"),
    ("rpn.head.pixel_{}_embed_pred", ("spatial", "other"), "head.pixel_branch.embed"),
    ("proposal_head.embed_head.{}_embed_head", ("spatial", "free"), "head.proposal_embed"),
    ("proposal_head.{}_margin_head", ("spatial", "free"), "head.margin.conv"),
    ("pixel_head.{}_embed_head", ("spatial", "free"), "head.pixel_branch.embed"),
)
"""Convolutions that the authors' code splits since 2021: two spatial dims, then the others; here each pair is one."""
REDUCTIONS = ("proposal_head.embed_conv.", "proposal_head.margin_conv.")
"""1x1 convolutions of the second repository's proposal head `Conv1_Conv3`, which `Conv3` lacks."""
COCO_CLASSES = 80
UNUSED = ("mask_pred._iter", "mask_pred.sizes_of_interest")
"""Buffers of the second repository that are dropped: a step counter, and unused constants."""


def convert(state_dict: Mapping[str, Tensor]) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Convert a state dict of the authors' code to the configuration and state dict of `EmbedMask`.

    The backbone is configured as in their code: stride in the 1x1 convolutions, BGR pixels minus the mean, frozen
    BatchNorm (in the first repository without epsilon). All tensors are used, except two buffers of the second
    repository.

    Args:
        state_dict: name -> tensor as saved by the authors' code, with or without the prefix `module.`.

    Raises:
        BadInput: the state dict is not one of the authors'; the message names the first mismatch.
    """
    official = without_prefix(state_dict)
    config = infer_config(official)
    converted: dict[str, Tensor] = {}
    rest = {name: value for name, value in official.items() if name not in UNUSED}
    for source, halves, target in JOINED:
        for kind in ("weight", "bias"):
            parts = [f"{source.format(half)}.{kind}" for half in halves]
            if all(part in rest for part in parts):
                # the output dims are stacked: [2, I, k, k] + [D - 2, I, k, k] -> [D, I, k, k]
                converted[f"{target}.{kind}"] = torch.cat([rest.pop(part) for part in parts])
    for name, value in rest.items():
        converted[_our_name(name)] = value
    with torch.device("meta"):  # shapes only
        expected = {name: tensor.shape for name, tensor in EmbedMask(config).state_dict().items()}
    for name, shape in expected.items():
        if name not in converted:
            raise BadInput(f"the file has no tensor for {name!r}; is it complete?")
        if converted[name].shape != shape:
            raise BadInput(f"{name!r} has shape {tuple(converted[name].shape)}, expected {tuple(shape)}")
    extra = sorted(set(converted) - set(expected))
    if extra:
        raise BadInput(f"the file has an unexpected tensor for {extra[0]!r}")
    return config, converted


def convert_file(official: Path, out: Path) -> ModelConfig:
    """Convert a checkpoint of the authors' code to a model file and return its config.

    Raises:
        BadInput: The file is not a checkpoint of the authors' code, is damaged, or would execute code.
    """
    if out.suffix != ".safetensors":
        raise BadInput(f"--out {out}: model files end in .safetensors")
    config, state = convert(read_torch_file(official))
    model = EmbedMask(config)
    model.load_state_dict(state)
    save(model, out, class_names=_class_names(config.num_classes))
    return config


def _class_names(count: int) -> list[str]:
    """Return COCO's class names for 80 classes, else numbered names: the authors' files contain none."""
    if count != COCO_CLASSES:
        return [f"class {label}" for label in range(count)]
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    # torchvision lists COCO's 91 category ids, of which 80 have a name
    listed = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return [name for name in listed if name not in ("__background__", "N/A")]


def infer_config(official: Mapping[str, Tensor]) -> ModelConfig:
    """Return the configuration of a state dict of the authors' code, inferred from its names and shapes.

    Raises:
        BadInput: a required tensor is missing, the backbone is neither ResNet-50 nor ResNet-101, or the proposal head
            is the second repository's `Conv3`.
    """
    try:
        preset, sizes = _infer_sizes(official)
    except KeyError as error:
        raise BadInput(f"not a file of the authors' EmbedMask: no tensor {error.args[0]!r}") from None
    # NAME.STAGE.BLOCK...: the number of blocks in the third stage gives the depth
    third_stage = "backbone.bottom_up.res4." if preset == "fused" else "backbone.body.layer3."
    blocks = {name.split(".")[3] for name in official if name.startswith(third_stage)}
    depths = {6: "resnet50", 23: "resnet101"}
    if len(blocks) not in depths:
        raise BadInput(f"stage 3 of the backbone has {len(blocks)} blocks; ResNet-50 has 6, ResNet-101 23")
    overrides: dict[str, Any] = {
        **sizes,
        "backbone": depths[len(blocks)],
        "backbone_norm_eps": None if preset == "fused" else 0.0,
        "stride_in_1x1": True,
        "channel_order": "bgr",
        "image_mean": DETECTRON_MEAN_BGR if preset == "fused" else CAFFE_MEAN_BGR,
        "image_std": (1.0, 1.0, 1.0),
    }
    return ModelConfig.preset(preset, **overrides)


def _infer_sizes(official: Mapping[str, Tensor]) -> tuple[str, dict[str, int]]:
    """Return the preset and its sizes; a missing tensor raises KeyError."""
    if any(name.startswith("proposal_generator.") for name in official):
        if not any(name.startswith(REDUCTIONS) for name in official):
            raise BadInput(
                "PROPOSAL_HEAD Conv3 of the second repository is not supported, only Conv1_Conv3, which its "
                "configuration files set"
            )
        halves = [official[f"pixel_head.{half}_embed_head.bias"] for half in ("spatial", "free")]
        return "fused", {
            "num_classes": len(official["proposal_generator.fcos_head.cls_logits.bias"]),
            "embed_dim": sum(map(len, halves)),
            "embed_channels": len(official["proposal_head.embed_conv.bias"]),
        }
    margin = official["rpn.head.proposal_margin_pred.weight"]
    num_classes = len(official["rpn.head.cls_logits.bias"])
    if "rpn.head.position_scale.scale" in official:
        return "ijcai21", {"num_classes": num_classes, "embed_dim": len(margin)}
    embed_dim = len(official["rpn.head.pixel_embed_pred.bias"])
    return "paper", {"num_classes": num_classes, "embed_dim": embed_dim}


def _our_name(name: str) -> str:
    """Return the name in `EmbedMask` of a tensor of the authors' code."""
    # FPN: the first repository numbers convolutions by backbone stage, from 2, the second by level, from P3
    fpn = re.fullmatch(r"backbone\.(?:fpn\.)?fpn_(inner|layer|lateral|output)(\d)\.(weight|bias)", name)
    if fpn:
        block = "inner_blocks" if fpn[1] in ("inner", "lateral") else "layer_blocks"
        first = 2 if fpn[1] in ("inner", "layer") else 3
        return f"neck.fpn.{block}.{int(fpn[2]) - first}.0.{fpn[3]}"
    # P6 and P7
    top = re.fullmatch(r"backbone\.(?:fpn\.top_blocks|top_block)\.p(\d)\.(weight|bias)", name)
    if top:
        return f"neck.fpn.extra_blocks.convs.{int(top[1]) - 6}.{top[2]}"
    # ResNet of detectron2: res2.0.conv1.weight, res2.0.conv1.norm.weight, res2.0.shortcut.weight
    block_part = re.fullmatch(r"backbone\.bottom_up\.res(\d)\.(\d+)\.(conv\d|shortcut)\.(norm\.)?(.+)", name)
    if block_part:
        stage, block, layer, norm, rest = block_part.groups()
        if layer == "shortcut":
            layer = "downsample.1" if norm else "downsample.0"
        elif norm:
            layer = layer.replace("conv", "bn")
        return f"backbone.body.layer{int(stage) - 1}.{block}.{layer}.{rest}"
    for pattern, replacement in PATTERNS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise BadInput(f"unexpected tensor {name!r}; is this a file of another model?")
