"""timm models as backbones, and the errors of unsuitable ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from small_models import small_config
from torch import nn

from embedmask import EmbedMask
from embedmask.config import Recipe
from embedmask.errors import BadInput
from embedmask.model.backbone import PRETRAINED_TAGS, Backbone, pretrained_name

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


# the first part that is trained when this number of stages is frozen
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
    assert trained == sorted(trained)  # frozen parameters come first, without a gap
    first = next((n for n, p in body.named_parameters() if p.requires_grad), None)
    expected = FIRST_TRAINED[name][count]
    assert first is None if expected is None else first is not None and first.startswith(expected)


def test_stride_in_1x1() -> None:
    body = Backbone("resnet50", finest_stride=8, stride_in_1x1=True).body
    blocks = [body[f"layer{i}"][0] for i in (2, 3, 4)]
    assert [b.conv1.stride for b in blocks] == [(2, 2)] * 3
    assert [b.conv2.stride for b in blocks] == [(1, 1)] * 3
    assert body["layer1"][0].conv1.stride == (1, 1)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050"])
def test_raises_on_stride_in_1x1_without_bottleneck(name: str) -> None:
    with pytest.raises(BadInput, match=f"needs a bottleneck ResNet, not backbone '{name}'"):
        Backbone(name, finest_stride=8, stride_in_1x1=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"timm cannot create backbone 'resnet51' .*did you mean .*resnet"),
        ("zzz_nothing", r"timm cannot create .*see timm.list_models\(\)"),
        ("vit_tiny_patch16_224", r"provides strides \[16, 16, 16\], but \[8, 16, 32\] are required"),
        ("swin_tiny_patch4_window7_224", "channels-last maps, which are not supported"),
    ],
)
def test_raises_on_unsuitable_model(name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as error:
        Backbone(name, finest_stride=8)
    assert "\n" not in str(error.value)


def test_raises_on_missing_stride_4(monkeypatch: pytest.MonkeyPatch) -> None:
    body = timm.create_model("resnet10t", features_only=True, out_indices=(0, 2, 3, 4))
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_options: body)
    with pytest.raises(
        BadInput, match=r"provides strides \[2, 8, 16, 32\], but \[4, 8, 16, 32\] are required"
    ):
        Backbone("resnet10t", finest_stride=4)


# --- defaults that depend on the backbone --------------------------------------

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("name", "mean", "std", "eps"),
    [
        ("resnet10t", *IMAGENET, 1e-5),
        ("resnet50", *IMAGENET, 1e-5),
        ("resnet18.a1_in1k", *IMAGENET, 1e-5),
        ("tf_efficientnet_lite0", (127.5,) * 3, (127.5,) * 3, 1e-3),
        ("tf_mobilenetv3_small_minimal_100", (127.5,) * 3, (127.5,) * 3, 1e-3),
        ("convnext_atto", *IMAGENET, None),
        ("test_convnext.r160_in1k", (127.5,) * 3, (127.5,) * 3, None),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_pixels_and_epsilon_follow_the_backbone(
    name: str, mean: tuple[float, ...], std: tuple[float, ...], eps: float | None, norm: str
) -> None:
    config = small_config(backbone=name, backbone_norm=norm)
    assert (config.image_mean, config.image_std, config.backbone_norm_eps) == (None, None, None)
    model = EmbedMask(config)
    found = model.config
    assert (found.image_mean, found.image_std, found.backbone_norm_eps) == (mean, std, eps)
    norms = {m.eps for m in model.backbone.modules() if "BatchNorm" in type(m).__name__}
    assert norms == ({eps} if eps else set())
    assert torch.equal(model.mean.flatten(), torch.tensor(mean))
    assert torch.equal(model.std.flatten(), torch.tensor(std))


def test_configured_values_are_kept() -> None:
    values = {"image_mean": (1.0, 2.0, 3.0), "image_std": (4.0, 5.0, 6.0), "backbone_norm_eps": 1e-5}
    model = EmbedMask(small_config(backbone="tf_efficientnet_lite0", **values))
    assert {name: getattr(model.config, name) for name in values} == values
    assert {m.eps for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    assert torch.equal(model.mean.flatten(), torch.tensor([1.0, 2.0, 3.0]))


def test_the_mean_follows_the_order_of_the_channels() -> None:
    config = EmbedMask(small_config(channel_order="bgr")).config
    assert (config.image_mean, config.image_std) == (IMAGENET[0][::-1], IMAGENET[1][::-1])


def test_names_without_tag_have_a_pinned_tag() -> None:
    """Check the pinned tags; a tag in the name is kept, and other names use timm's default."""
    assert pretrained_name("resnet50") == "resnet50.tv_in1k"
    assert pretrained_name("resnet101") == "resnet101.tv_in1k"
    assert pretrained_name("resnet50.a1_in1k") == "resnet50.a1_in1k"
    assert pretrained_name("tf_efficientnet_lite0") == "tf_efficientnet_lite0.in1k"


def test_every_pinned_tag_exists_and_no_recipe_is_without() -> None:
    for name, tag in PRETRAINED_TAGS.items():
        assert timm.is_model_pretrained(f"{name}.{tag}"), name
    recipes = Path(__file__).parents[2] / "configs"
    backbones = {Recipe.from_yaml(path).model.backbone for path in recipes.rglob("*.yaml")}
    assert {"resnet50", "resnet101", "resnet18"} <= backbones <= set(PRETRAINED_TAGS)
