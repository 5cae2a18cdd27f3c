"""`DetectorConfig`: what the networks here have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedmask.config.reading import Depth, ReadOptions
from embedmask.fields import check_types, require

Rounding = Literal["down", "nearest"]
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Picture to backbone to pyramid, and what is kept of the results: the same for every kind of model."""

    num_classes: int = 80

    # Image -> network
    backbone: str = "resnet50"
    """Any timm model that gives features at strides 4 to 32."""
    backbone_norm: Literal["frozen", "batch"] = "frozen"
    """`frozen`: BatchNorm as a fixed affine map (pretrained weights); `batch`: trained (random weights).
    With `batch` the running statistics of frozen stages move on; set `frozen_stages` to 0."""
    backbone_norm_eps: float = 1e-5
    frozen_stages: int = 2
    """Stages kept fixed in training, counted from the stem (2: the stem and the first stage, as in section 4.1)."""
    stride_in_1x1: bool = False
    """Caffe-style ResNet: stride 2 in the first 1x1 convolution of a stage instead of its 3x3."""
    image_norm: Literal["fixed", "image"] = "fixed"
    """`fixed`: subtract `image_mean`, divide by `image_std`; `image`: each image's own mean and deviation."""
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    """In the order of `channel_order`, for pixels 0..255."""
    image_std: tuple[float, float, float] = IMAGENET_STD
    channel_order: Literal["rgb", "bgr"] = "rgb"
    image_short_side: int | None = 800
    """Pictures are resized so that the short side has this many px (null: they keep their size) ..."""
    image_long_side: int = 1333
    """... unless the long side would pass this many. EmbedMask-600 of Table 1 is `image_short_side=600`."""
    image_rounding: Rounding = "down"
    """Of the sides so found: the first repository cuts to whole px, the second takes the nearest."""
    image_page: int | None = None
    """Page of a TIFF stack or frame of an animation that is read, from 0; null: the first."""
    image_channels: tuple[int, ...] | None = None
    """Channel of an image file that is read as grey, or the three read as R, G and B, from 0; null: the colours of an
    image in colour, else the first channel."""
    image_depth: Depth = "camera"
    """How more than 8 bits become 8: `camera`, the rule of docs/data.md, or the value that becomes 255."""
    channels: int = 256
    """Of every pyramid level."""

    # Inference (section 3.6)
    score_threshold: float = 0.05
    """Of candidates."""
    decision_threshold: float = 0.3
    """From this score on a result counts as found, where no other is asked for: what `predict` gives, and what is
    counted where results are not ranked. Best chosen on val."""
    nms_threshold: float = 0.6
    max_detections: int = 100
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        self.reading()  # checks the fields that it takes
        for name in ("num_classes", "channels", "max_detections", "image_long_side"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("score_threshold", "decision_threshold", "nms_threshold", "mask_threshold"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "mask_threshold", self.mask_threshold > 0, "above 0")
        short_ok = self.image_short_side is None or self.image_short_side >= 1
        require(self, "image_short_side", short_ok, "at least 1, or null")
        require(self, "frozen_stages", self.frozen_stages >= 0, "at least 0")

    def reading(self) -> ReadOptions:
        """Return how image files are read."""
        return ReadOptions(page=self.image_page, channels=self.image_channels, depth=self.image_depth)

    def decision(self, asked: float | None) -> float:
        """The score from which on a result counts as found: the one asked for, else `decision_threshold`."""
        return self.decision_threshold if asked is None else asked
