"""`DetectorConfig`: settings shared by all types of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, Any, Literal

import numpy as np

from embedmask.config.reading import Depth, ReadOptions, check_reading
from embedmask.errors import BadInput
from embedmask.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    above,
    at_most,
    check_fields,
    nearest,
)

Rounding = Literal["down", "nearest"]
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
SCORE_ROUNDING = 1e-6
"""Relative tolerance for the float32 rounding between a candidate's value and its final score."""


ScoreThreshold = float | Sequence[float] | Mapping[str, float]
"""Threshold on final scores: one for all classes, one per class, or by class name."""
DEFAULT_SCORE_THRESHOLD = 0.3
"""Score threshold of a model for which none was chosen on val."""


def check_score(value: Any) -> None:
    """Check that a value is a number between 0 and 1.

    Raises:
        BadInput: the value is anything else.
    """
    # nan also fails the comparison; bool is an int
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise BadInput(f"score_threshold must be a number between 0 and 1, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Image input, backbone, pyramid and post-processing settings shared by all types of model."""

    num_classes: PositiveInt = 80
    """Number of classes; training sets it from the data set."""

    # Image -> network
    backbone: str = "resnet50"
    """Backbone: a timm model with features at strides 4 to 32, optionally with the tag of its pretrained weights."""
    backbone_norm: Literal["frozen", "batch"] = "frozen"
    """BatchNorm of the backbone: fixed (`frozen`, for pretrained weights) or trained (`batch`, for random weights).
    With `batch` set `frozen_stages` to 0, since the running statistics of frozen stages are also updated."""
    backbone_norm_eps: NonNegativeFloat | None = None
    """Epsilon of the backbone's BatchNorm; null: timm's (1e-5 in ResNets, 1e-3 in `tf_*` models)."""
    frozen_stages: NonNegativeInt = 2
    """Number of frozen backbone stages, counted from the stem; section 4.1 freezes the stem and the first stage."""
    stride_in_1x1: bool = False
    """Use Caffe's ResNet, with stride 2 in the first 1x1 convolution of a stage instead of the 3x3."""
    image_norm: Literal["fixed", "image"] = "fixed"
    """Normalization of images: by `image_mean` and `image_std`, or by each image's own mean and deviation."""
    image_mean: tuple[float, float, float] | None = None
    """Mean of pixels 0..255 in `channel_order`; null: as the backbone's pretrained weights expect."""
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Standard deviation of pixels 0..255 in `channel_order`; null: as the backbone's pretrained weights expect."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Channel order of the network's input."""
    image_short_side: PositiveInt | None = 800
    """Short side to resize images to in evaluation and prediction, px; null: images keep their size. EmbedMask-600 of
    Table 1 has 600."""
    image_long_side: PositiveInt = 1333
    """Maximum long side of resized images, px."""
    image_rounding: Rounding = "down"
    """Rounding of resized sides: `down` as in the authors' first repository, `nearest` as in the second."""
    image_page: int | None = None
    """Page of a TIFF stack or frame of an animation to read, from 0; null: the first."""
    image_channels: tuple[int, ...] | None = None
    """Channel to read as gray, or three to read as R, G, B, from 0; null: the colors of the image, else the first
    channel."""
    image_depth: Depth = "camera"
    """Conversion of more than 8 bits to 8: `camera` (see docs/data.md), or the value that becomes 255."""
    channels: PositiveInt = 256
    """Number of channels of every pyramid level."""

    # Inference (section 3.6)
    candidate_threshold: Fraction = 0.05
    """Threshold on candidate scores before NMS, for speed; not a threshold on final scores."""
    default_score_threshold: Fraction | tuple[Fraction, ...] | None = None
    """Default score threshold of `predict` and of counting metrics, for all classes or one per class; null: chosen on
    val. Training chooses the highest F1 at mask IoU 0.5; an untrained model uses 0.3."""
    nms_threshold: Fraction = 0.6
    """IoU threshold of the class-wise NMS."""
    max_detections: PositiveInt = 100
    """Maximum number of detections per image."""
    mask_threshold: Annotated[float, above(0), at_most(1)] = 0.5
    """Probability above which a pixel belongs to a mask."""

    has_embeddings = False
    """Whether the model's `Instances` have proposal embeddings and margins; a constant of the class."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_reading(self, "image_")

    @property
    def min_score(self) -> float:
        """Return the smallest threshold on final scores that the model serves."""
        return 0.0

    def reading(self) -> ReadOptions:
        """Return the options for reading image files."""
        return ReadOptions(page=self.image_page, channels=self.image_channels, depth=self.image_depth)

    def score_thresholds(
        self, requested: ScoreThreshold | None = None, class_names: Sequence[str] = ()
    ) -> tuple[float, ...]:
        """Return the score threshold of each class, `[C]`.

        Args:
            requested: one threshold for all classes, one per class, or by class name; None, and classes without a
                value: the model's `default_score_threshold`.
            class_names: names of the C classes; required for thresholds by name.

        Raises:
            BadInput: a value is not a number between 0 and 1, the number of values differs from the number of
                classes, or a class is unknown.
        """
        default = self.default_score_threshold
        values = self._per_class(
            DEFAULT_SCORE_THRESHOLD if default is None else default, "default_score_threshold"
        )
        if isinstance(requested, Mapping):
            unknown = [name for name in requested if name not in class_names]
            if unknown:
                hint = nearest(unknown[0], class_names)
                raise BadInput(f"score_threshold: the model has no class {unknown[0]!r}{hint}")
            values = tuple(map(requested.get, class_names, values))
        elif requested is not None:
            values = self._per_class(requested, "score_threshold")
        for value in values:
            check_score(value)
        return tuple(map(float, values))

    def _per_class(self, value: Any, name: str) -> tuple[Any, ...]:
        if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str):
            return (value,) * self.num_classes
        if len(value) != self.num_classes:
            raise BadInput(
                f"{name} has {len(value)} values for {self.num_classes} classes; give one per class"
            )
        return tuple(value)

    def candidate_threshold_for(self, score_threshold: float) -> float:
        """Return the highest candidate threshold that keeps every result with a score of at least `score_threshold`.

        A candidate below it would end below `score_threshold`. Dropping it is safe, since in NMS, rescoring and the
        limit on detections a result affects only results with lower scores.

        Args:
            score_threshold: threshold on final scores, 0..1.

        Raises:
            BadInput: the threshold is not a number between 0 and 1.
        """
        check_score(score_threshold)
        return self._candidate_score(score_threshold) * (1 - SCORE_ROUNDING)

    def _candidate_score(self, score: float) -> float:
        """Return the minimum candidate value of a result with this final score."""
        return score
