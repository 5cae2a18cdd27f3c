"""Backbone: feature maps of any timm model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from embedmask.config.detector import IMAGENET_MEAN, IMAGENET_STD, DetectorConfig
from embedmask.errors import BadInput

COARSEST_STRIDE = 32
"""Stride of the last feature map, px per cell; the neck adds the coarser levels."""

PRETRAINED_TAGS = {
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv_in1k",
    "resnet101": "tv_in1k",
    "resnet152": "tv_in1k",
    "resnet10t": "c3_in1k",
    "resnet18d": "ra2_in1k",
}
"""Pretrained weights of a backbone that is named without a tag. timm's default is the tag with the highest ImageNet
accuracy and changes between its versions. The plain ResNets use torchvision's first weights (`tv_in1k`): their training
(90 epochs of SGD on cross entropy) is closest to that of the paper's MSRA weights, whose frozen BatchNorm (section 4.1)
the authors' learning rate was tuned for. `a1_in1k`, timm's default, was trained for 600 epochs of LAMB on binary cross
entropy with mixup and cutmix."""


class Backbone(nn.Module):
    """A timm model that returns the feature maps of the neck.

    Attributes:
        strides: px per cell of each output, finest first.
        channels: channels of each output.
        norm_eps: epsilon of its BatchNorm layers; None if it has none, or several values.
        image_mean: mean of the RGB pixels (0..255) that its pretrained weights expect.
        image_std: standard deviation of these pixels.
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
        """Create the model with random weights.

        Args:
            name: timm's name of the model.
            finest_stride: stride of the first output, px per cell.
            norm: as the other arguments, see `DetectorConfig`.

        Raises:
            BadInput: timm has no such model, or it lacks feature maps at the required strides.
        """
        super().__init__()
        self.name = name
        body = _create(name)
        if str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC"):
            raise BadInput(
                f"backbone {name!r} returns channels-last maps, which are not supported; choose another"
            )
        norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.eps = module.eps if norm_eps is None else norm_eps
        epsilons = {module.eps for module in norms}
        self.norm_eps = epsilons.pop() if len(epsilons) == 1 else norm_eps
        self.image_mean, self.image_std = image_statistics(name)
        if stride_in_1x1:
            _move_stride_to_1x1(body, name)
        _freeze_stages(body, frozen_stages)
        self.body = freeze_batch_norm_2d(body) if norm == "frozen" else body  # type: ignore[no-untyped-call]
        reductions = body.feature_info.reduction()
        self._outputs = [i for i, r in enumerate(reductions) if finest_stride <= r <= COARSEST_STRIDE]
        self.strides = [reductions[i] for i in self._outputs]
        self.channels = [body.feature_info.channels()[i] for i in self._outputs]
        required = [s for s in (2, 4, 8, 16, 32) if s >= finest_stride]
        if self.strides != required:
            raise BadInput(
                f"backbone {name!r} provides strides {reductions}, but {required} are required; choose another"
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
        """Return the feature maps of normalized images: `[N, 3, H, W]` -> `[N, C, H / s, W / s]` per stride s."""
        features: Sequence[Tensor] = self.body(images)
        return [features[i] for i in self._outputs]


def pretrained_name(name: str) -> str:
    """Return the name of a backbone with the tag of its pretrained weights, as timm spells it."""
    config = None if "." in name else timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        return name
    return f"{name}.{PRETRAINED_TAGS.get(name, config.tag)}"


def image_statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of the RGB pixels (0..255) that the pretrained weights expect."""
    config = timm.get_pretrained_cfg(pretrained_name(name))
    if config is None:
        return IMAGENET_MEAN, IMAGENET_STD
    # 0.485 * 255 is 123.67499999999998 in floating point; configs show 123.675
    (r, g, b), (dr, dg, db) = (
        [round(255 * value, 6) for value in each] for each in (config.mean, config.std)
    )
    return (r, g, b), (dr, dg, db)


def _freeze_stages(body: Any, count: int) -> None:
    """Freeze all parameters up to the end of stage `count`, which ends at stride 2^count."""
    info = body.feature_info
    ends = [m for m, r in zip(info.module_name(), info.reduction(), strict=True) if r <= 2**count]
    if not ends:
        return
    # timm either flattens the dotted module names, or wraps the whole model as `model`
    spellings = (ends[-1], ends[-1].replace(".", "_"), f"model.{ends[-1]}")
    # modules are listed in order of execution: stop at the first one behind the last frozen stage
    reached = False
    for name, module in body.named_modules():
        inside = name.startswith(tuple(f"{end}." for end in spellings)) or name in spellings
        if reached and not inside:
            return
        reached |= inside
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def _create(name: str) -> Any:
    """Create a timm model that returns features, an ordered dict of its parts with the stride of each output."""
    try:
        body = timm.create_model(name, pretrained=False, features_only=True)
    except RuntimeError as error:
        near = timm.list_models(f"*{name.split('.', maxsplit=1)[0][:6]}*")[:3]
        hint = f"; did you mean {', '.join(near)}?" if near else "; see timm.list_models()"
        raise BadInput(
            f"timm cannot create backbone {name!r} ({str(error).splitlines()[0][:80]}){hint}"
        ) from None
    return body


def _move_stride_to_1x1(body: nn.Module, name: str) -> None:
    """Move the stride of each stage from its 3x3 convolution to its first 1x1, as in Caffe's ResNets."""
    moved = 0
    for block in body.modules():
        first, second = getattr(block, "conv1", None), getattr(block, "conv2", None)
        if not (isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and hasattr(block, "conv3")):
            continue
        if second.stride == (2, 2):
            first.stride, second.stride = second.stride, first.stride
            moved += 1
    if not moved:
        raise BadInput(f"stride_in_1x1 needs a bottleneck ResNet, not backbone {name!r}; set it to false")
