"""Any timm model as a backbone, and what is said where it cannot be one."""

from __future__ import annotations

import pytest
import timm
import torch
from small_models import small_config
from torch import nn

from embedmask import EmbedMask
from embedmask.errors import BadInput
from embedmask.model.backbone import Backbone

OTHERS = ["resnet18", "mobilenetv3_small_050", "convnext_atto", "efficientnet_b0"]


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("finest", [4, 8])
def test_other_backbones(name: str, norm: str, finest: int) -> None:
    backbone = Backbone(name, finest_stride=finest, norm=norm).eval()
    assert backbone.strides == [s for s in (4, 8, 16, 32) if s >= finest]
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [m.shape[1:] for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)
    ]
    trained = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    has_batch_norm = name != "convnext_atto"
    assert bool(trained) == (norm == "batch" and has_batch_norm)


def test_frozen_batch_norm_never_changes() -> None:
    backbone = Backbone("resnet10t", finest_stride=8, norm="frozen").train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64) * 5 + 3)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert not any("bn" in name for name, _ in backbone.named_parameters())


def test_batch_norm_epsilon() -> None:
    backbone = Backbone("resnet10t", finest_stride=8, norm="batch", norm_eps=0.125)
    assert {m.eps for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {0.125}
    frozen = Backbone("resnet10t", finest_stride=8, norm="frozen", norm_eps=0.125)
    assert {m.eps for m in frozen.modules() if "Frozen" in type(m).__name__} == {0.125}


# The first part that still learns when as many stages are fixed
FIRST_TRAINED = {
    "resnet18": ["conv1.", "layer1.0", "layer2.0", "layer3.0", "layer4.0", None],
    "convnext_atto": ["stem_0.", "stem_0.", "stages_1.", "stages_2.", "stages_3.", None],
    "mobilenetv3_small_050": ["conv_stem.", "blocks.0", "blocks.1", "blocks.2", "blocks.4", None],
}


@pytest.mark.parametrize("name", FIRST_TRAINED)
@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_are_counted_from_the_stem(name: str, count: int) -> None:
    body = Backbone(name, finest_stride=8, norm="batch", frozen_stages=count).body
    trained = [parameter.requires_grad for _, parameter in body.named_parameters()]
    assert trained == sorted(trained)  # what is fixed comes first, without a gap
    first = next((n for n, p in body.named_parameters() if p.requires_grad), None)
    expected = FIRST_TRAINED[name][count]
    assert first is None if expected is None else first is not None and first.startswith(expected)


def test_stride_in_1x1() -> None:
    ours = Backbone("resnet50", finest_stride=8, stride_in_1x1=True).body
    blocks = [ours[f"layer{i}"][0] for i in (2, 3, 4)]
    assert [b.conv1.stride for b in blocks] == [(2, 2)] * 3
    assert [b.conv2.stride for b in blocks] == [(1, 1)] * 3
    assert ours["layer1"][0].conv1.stride == (1, 1)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_stride_in_1x1_needs_a_bottleneck(name: str) -> None:
    with pytest.raises(BadInput, match=f"bottleneck ResNets, not for backbone '{name}'"):
        Backbone(name, finest_stride=8, stride_in_1x1=True)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet51", r"backbone 'resnet51' cannot be made by timm .*perhaps .*resnet"),
        ("zzz_nothing", r"cannot be made by timm .*see timm.list_models\(\)"),
        ("vit_tiny_patch16_224", r"gives strides \[16, 16, 16\], \[8, 16, 32\] are needed"),
        ("swin_tiny_patch4_window7_224", "channels last, not supported"),
    ],
)
def test_models_that_cannot_be_backbones(name: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        Backbone(name, finest_stride=8)
    assert "\n" not in str(error.value)


def test_no_stride_4_for_a_stride_4_pyramid(monkeypatch: pytest.MonkeyPatch) -> None:
    body = timm.create_model("resnet10t", features_only=True, out_indices=(0, 2, 3, 4))
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: body)
    with pytest.raises(BadInput, match=r"gives strides \[2, 8, 16, 32\], \[4, 8, 16, 32\] are needed"):
        Backbone("resnet10t", finest_stride=4)


@pytest.mark.parametrize(
    "error", [OSError("no route to host\nsecond line"), RuntimeError("no weights"), KeyError()]
)
def test_pretrained_weights_offline(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = EmbedMask(small_config())

    def refuse(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(BadInput, match="ImageNet weights of 'resnet10t' could not be loaded") as raised:
        model.backbone.load_pretrained()
    assert "\n" not in str(raised.value)
    assert "second line" not in str(raised.value)
    assert "--train.pretrained false" in str(raised.value)


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_pretrained_weights_arrive(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    model = EmbedMask(small_config(backbone_norm=norm)).eval()
    source = timm.create_model("resnet10t", features_only=True).eval()
    for index, value in enumerate(source.state_dict().values()):
        if value.is_floating_point():
            value.add_(0.01 * (index % 7 + 1))
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: source)
    model.backbone.load_pretrained()
    picture = torch.randn(1, 3, 32, 32)
    for ours, theirs in zip(model.backbone(picture), source(picture)[2:], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
