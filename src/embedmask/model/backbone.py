"""The backbone: any timm model as a giver of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from embedmask.config.detector import IMAGENET_MEAN, IMAGENET_STD, DetectorConfig
from embedmask.errors import BadInput

COARSEST_STRIDE = 32
"""The backbone ends here; the neck makes the coarser levels."""

PRETRAINED_TAGS = {
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv_in1k",
    "resnet101": "tv_in1k",
    "resnet152": "tv_in1k",
    "resnet10t": "c3_in1k",
    "resnet18d": "ra2_in1k",
}
"""The weights of a backbone that is named without a tag. timm's default is the tag that scores best on ImageNet and
changes with its version. The plain ResNets take torchvision's first weights (`tv_in1k`): of all tags their training
(90 epochs of SGD on cross entropy) is nearest to that of the paper's MSRA weights, whose frozen BatchNorm section 4.1
and the authors' learning rate rely on. `a1_in1k`, timm's default, comes from 600 epochs of LAMB on binary cross entropy
with mixup and cutmix: better on ImageNet, but not what this learning rate was tuned for."""


class Backbone(nn.Module):
    """Feature maps of a timm model at the strides that the neck needs.

    Attributes:
        strides: px per cell of each output.
        channels: channels of each output.
        norm_eps: of its BatchNorm; None: it has none, or not the same everywhere.
        image_mean: of the RGB pixels, 0..255, that its pretrained weights expect.
        image_std: their standard deviation.
    """

    def __init__(
        self,
        name: str,
        *,
        finest_stride: int,
        norm: str = "frozen",
        norm_eps: float | None = None,
        frozen_stages: int = 2,
        stride_in_1x1: bool = False,
    ) -> None:
        """See `DetectorConfig` for the arguments; `finest_stride` is the stride of the first output."""
        super().__init__()
        self.name = name
        body = _create(name)
        if str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC"):
            raise BadInput(f"backbone {name!r} gives maps with channels last, not supported; choose another")
        self.norm_eps = _set_norm_eps(body, norm_eps)
        self.image_mean, self.image_std = _image_statistics(name)
        if stride_in_1x1:
            _move_stride_to_1x1(body, name)
        _freeze_stages(body, frozen_stages)
        self.body = freeze_batch_norm_2d(body) if norm == "frozen" else body  # type: ignore[no-untyped-call]
        reductions = body.feature_info.reduction()
        self._outputs = [i for i, r in enumerate(reductions) if finest_stride <= r <= COARSEST_STRIDE]
        self.strides = [reductions[i] for i in self._outputs]
        self.channels = [body.feature_info.channels()[i] for i in self._outputs]
        wanted = [s for s in (2, 4, 8, 16, 32) if s >= finest_stride]
        if self.strides != wanted:
            raise BadInput(
                f"backbone {name!r} gives strides {reductions}, {wanted} are needed; choose another"
            )

    @classmethod
    def from_config(cls, cfg: DetectorConfig, finest_stride: int) -> Backbone:
        """Build the backbone that a config describes, with random weights."""
        return cls(
            cfg.backbone,
            finest_stride=finest_stride,
            norm=cfg.backbone_norm,
            norm_eps=cfg.backbone_norm_eps,
            frozen_stages=cfg.frozen_stages,
            stride_in_1x1=cfg.stride_in_1x1,
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """`[N, 3, H, W]` normalised -> maps `[N, C, H / s, W / s]`, finest first."""
        features: Sequence[Tensor] = self.body(images)
        return [features[i] for i in self._outputs]


def pretrained_name(name: str) -> str:
    """Return the name of a backbone with the tag of its pretrained weights, as timm spells it."""
    config = None if "." in name else timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        return name
    return f"{name}.{PRETRAINED_TAGS.get(name, config.tag)}"


def _image_statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the pixels (RGB, 0..255) that the pretrained weights expect."""
    config = timm.get_pretrained_cfg(pretrained_name(name))
    if config is None:
        return IMAGENET_MEAN, IMAGENET_STD
    # without the last bits of the products: 0.485 * 255 is 123.675
    (r, g, b), (dr, dg, db) = (
        [round(255 * value, 6) for value in each] for each in (config.mean, config.std)
    )
    return (r, g, b), (dr, dg, db)


def _set_norm_eps(body: nn.Module, eps: float | None) -> float | None:
    """Set the epsilon of all BatchNorm layers unless None, and return the one that they share."""
    norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.eps = norm.eps if eps is None else eps
    shared = {norm.eps for norm in norms}
    return shared.pop() if len(shared) == 1 else eps


def _freeze_stages(body: Any, count: int) -> None:
    """Fix all parameters up to the end of the `count`-th stage, the one that ends at stride 2^count."""
    info = body.feature_info
    ends = [m for m, r in zip(info.module_name(), info.reduction(), strict=True) if r <= 2**count]
    if not ends:
        return
    # timm either flattens the dotted names of its parts or keeps the whole model as one of them
    spellings = (ends[-1], ends[-1].replace(".", "_"), f"model.{ends[-1]}")
    reached = False
    for name, module in body.named_modules():
        inside = name.startswith(tuple(f"{end}." for end in spellings)) or name in spellings
        if reached and not inside:
            return
        reached |= inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def _create(name: str) -> Any:
    """A timm feature net: an ordered dict of the backbone's parts that knows the stride of each output."""
    try:
        body = timm.create_model(name, pretrained=False, features_only=True)
    except RuntimeError as error:
        near = timm.list_models(f"*{name.split('.', maxsplit=1)[0][:6]}*")[:3]
        hint = f"; perhaps {', '.join(near)}" if near else "; see timm.list_models()"
        raise BadInput(
            f"backbone {name!r} cannot be made by timm ({str(error).splitlines()[0][:80]}){hint}"
        ) from None
    return body


def _move_stride_to_1x1(body: nn.Module, name: str) -> None:
    """Caffe-style ResNet: the first 1x1 convolution of a stage strides, not its 3x3."""
    moved = 0
    for block in body.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if not (isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and hasattr(block, "conv3")):
            continue
        if second.stride == (2, 2):
            first.stride, second.stride = second.stride, first.stride
            moved += 1
    if not moved:
        raise BadInput(f"stride_in_1x1 is for bottleneck ResNets, not for backbone {name!r}; leave it false")
