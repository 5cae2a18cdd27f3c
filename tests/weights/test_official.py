"""Conversion of the authors' files: all tensors, versions and settings."""

from __future__ import annotations

import pytest
import torch
from golden_files import PRESET, official_state, official_trainable

from embedmask import EmbedMask, ModelConfig
from embedmask.errors import BadInput
from embedmask.weights.official import CAFFE_MEAN_BGR, DETECTRON_MEAN_BGR, UNUSED, convert


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize("depth", ["r50", "r101"])
def test_every_tensor_is_converted(version: str, depth: str) -> None:
    official = official_state(version, depth, seed=3)
    config, state = convert(official)
    assert config.backbone == {"r50": "resnet50", "r101": "resnet101"}[depth]
    assert config.embed_dim == ModelConfig.preset(PRESET[version]).embed_dim
    assert config.margin_source == ModelConfig.preset(PRESET[version]).margin_source
    assert sum(t.numel() for t in state.values()) == sum(t.numel() for t in official.values())
    model = EmbedMask(config)
    model.load_state_dict(state, strict=True)
    frozen = sum(
        not trained for name, trained in official_trainable(version, depth).items() if "conv" in name
    )
    assert frozen > 0
    stem_and_first = [p for n, p in model.named_parameters() if not p.requires_grad]
    buffers = {name for name, _ in model.named_buffers()}
    official_frozen = [
        name
        for name, trained in official_trainable(version, depth).items()
        if not trained and name.endswith("weight") and ("conv" in name or "downsample.0" in name)
    ]
    assert len(stem_and_first) == len(official_frozen)
    assert "backbone.body.bn1.weight" in buffers


@pytest.mark.parametrize(("depth", "backbone"), [("r50", "resnet50"), ("r101", "resnet101")])
def test_every_tensor_of_the_second_repository_is_converted(depth: str, backbone: str) -> None:
    official = official_state("fused", depth, seed=3)
    config, state = convert(official)
    expected = ModelConfig.preset(
        "fused",
        backbone=backbone,
        stride_in_1x1=True,
        channel_order="bgr",
        image_mean=DETECTRON_MEAN_BGR,
        image_std=(1.0, 1.0, 1.0),
    )
    assert config == expected
    unused = {name: official.pop(name) for name in UNUSED}
    assert set(unused) == {"mask_pred._iter", "mask_pred.sizes_of_interest"}
    assert sum(t.numel() for t in state.values()) == sum(t.numel() for t in official.values())
    model = EmbedMask(config)
    model.load_state_dict(state, strict=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    trained = official_trainable("fused", depth)
    assert len(frozen) == sum(not trained[name] and len(official[name].shape) == 4 for name in official)
    assert model.backbone.body["layer2"][0].conv1.stride == (2, 2)
    assert model.backbone.body["layer2"][0].bn1.eps == 1e-5


def test_raises_on_incomplete_file_of_the_second_repository() -> None:
    official = official_state("fused", "r50")
    del official["proposal_head.embed_conv.bias"]
    with pytest.raises(BadInput, match=r"no tensor 'proposal_head\.embed_conv\.bias'"):
        convert(official)
    official = official_state("fused", "r50")
    del official["pixel_head.spatial_embed_head.weight"]
    with pytest.raises(BadInput, match=r"unexpected tensor|no tensor"):
        convert(official)


def test_raises_on_the_proposal_head_conv3() -> None:
    official = official_state("fused", "r50")
    for name in [
        name
        for name in official
        if name.startswith(("proposal_head.embed_conv", "proposal_head.margin_conv"))
    ]:
        del official[name]
    with pytest.raises(BadInput, match=r"PROPOSAL_HEAD Conv3 .* is not supported"):
        convert(official)


def test_caffe_backbone_settings() -> None:
    config, _ = convert(official_state("v1", "r50"))
    model = EmbedMask(config)
    block = model.backbone.body["layer2"][0]
    assert block.conv1.stride == (2, 2)
    assert block.conv2.stride == (1, 1)
    assert (config.channel_order, config.image_mean, config.image_std) == (
        "bgr",
        CAFFE_MEAN_BGR,
        (1.0, 1.0, 1.0),
    )
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 32, 32)  # R, G, B
    first = model.preprocess([pixel]).tensors[0, :, 0, 0]
    torch.testing.assert_close(first, torch.tensor([30.0, 20.0, 10.0]) - torch.tensor(CAFFE_MEAN_BGR))
    assert block.bn1.eps == 0


def test_module_prefix_is_stripped() -> None:
    official = {f"module.{name}": value for name, value in official_state("v3", "r50").items()}
    config, _ = convert(official)
    assert config.coordinates


def test_embed_dim_and_classes_are_inferred() -> None:
    official = official_state("v1", "r50")
    for name in ("proposal_embed_pred", "pixel_embed_pred"):
        for kind in ("weight", "bias"):
            official[f"rpn.head.{name}.{kind}"] = official[f"rpn.head.{name}.{kind}"][:8]
    for kind in ("weight", "bias"):
        official[f"rpn.head.cls_logits.{kind}"] = official[f"rpn.head.cls_logits.{kind}"][:5]
    config, _ = convert(official)
    assert (config.embed_dim, config.num_classes) == (8, 5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.pop("rpn.head.centerness.bias"), "head.centerness.bias"),
        (lambda s: s.update({"rpn.head.extra.weight": torch.zeros(1)}), "rpn.head.extra.weight"),
        (lambda s: s.update({"rpn.head.centerness.bias": torch.zeros(2)}), "shape (2,)"),
        (lambda s: s.pop("rpn.head.proposal_margin_pred.weight"), "not a file of the authors'"),
    ],
)
def test_raises_on_other_files(spoil: object, words: str) -> None:
    official = official_state("v1", "r50")
    spoil(official)  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        convert(official)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
