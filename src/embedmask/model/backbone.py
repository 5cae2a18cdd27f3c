"""The backbone: any timm model as a giver of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

from embedmask.config.detector import DetectorConfig
from embedmask.errors import BadInput

COARSEST_STRIDE = 32
"""The backbone ends here; the neck makes the coarser levels."""


class Backbone(nn.Module):
    """Feature maps of a timm model at the strides that the neck needs.

    Attributes:
        strides: px per cell of each output.
        channels: channels of each output.
    """

    def __init__(
        self,
        name: str,
        *,
        finest_stride: int,
        norm: str = "frozen",
        norm_eps: float = 1e-5,
        frozen_stages: int = 2,
        stride_in_1x1: bool = False,
    ) -> None:
        """See `DetectorConfig` for the arguments; `finest_stride` is the stride of the first output."""
        super().__init__()
        self.name = name
        body = _create(name)
        if str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC"):
            raise BadInput(f"backbone {name!r} gives maps with channels last, not supported; choose another")
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = norm_eps
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
        """The backbone that a configuration asks for, with random weights."""
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

    def load_pretrained(self) -> None:
        """Copy timm's ImageNet weights in place.

        Raises:
            BadInput: the model has none, or they cannot be reached.
        """
        try:
            source = timm.create_model(self.name, pretrained=True, features_only=True)
        except Exception as error:  # timm lets many kinds through: hub, network, missing weights
            reason = str(error).splitlines()[0][:120] if str(error) else error.__class__.__name__
            raise BadInput(
                f"ImageNet weights of {self.name!r} could not be loaded ({reason}); connect to the internet once, "
                "or train from random weights with --train.pretrained false"
            ) from None
        loaded = self.body.load_state_dict(source.state_dict(), strict=False)
        # frozen BatchNorm does not count its batches; anything else that is missing would stay random
        strange = [
            name for name in (*loaded.missing_keys, *loaded.unexpected_keys) if "num_batches" not in name
        ]
        if strange:
            raise BadInput(f"ImageNet weights of {self.name!r} do not fit the backbone: {strange[0]!r}")


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
