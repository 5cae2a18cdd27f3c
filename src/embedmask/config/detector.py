"""`DetectorConfig`: what the networks here have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from embedmask.config.reading import Depth, ReadOptions
from embedmask.errors import BadInput
from embedmask.fields import check_types, nearest, require

Rounding = Literal["down", "nearest"]
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
SCORE_ROUNDING = 1e-6
"""Relative; several times what float32 loses between a candidate's value and its finished score."""


ScoreThreshold = float | Sequence[float] | Mapping[str, float]
"""A requested threshold on finished scores: for all classes, one per class, or by class name."""
DEFAULT_DECISION = 0.3
"""Of a model whose threshold was not chosen on val."""


def check_score(value: object) -> None:
    """Raise `BadInput` unless the value is a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:  # nan fails too
        raise BadInput(f"score_threshold must be a number between 0 and 1, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """ImageSource to backbone to pyramid, and what is kept of the results: the same for every kind of model."""

    num_classes: int = 80

    # Image -> network
    backbone: str = "resnet50"
    """Any timm model that gives features at strides 4 to 32, with or without the tag of its pretrained weights."""
    backbone_norm: Literal["frozen", "batch"] = "frozen"
    """`frozen`: BatchNorm as a fixed affine map (pretrained weights); `batch`: trained (random weights).
    With `batch` the running statistics of frozen stages move on; set `frozen_stages` to 0."""
    backbone_norm_eps: float | None = None
    """Of the backbone's BatchNorm; null: the backbone's own (1e-5 in ResNets, 1e-3 in timm's `tf_*` models)."""
    frozen_stages: int = 2
    """Stages kept fixed in training, counted from the stem (2: the stem and the first stage, as in section 4.1)."""
    stride_in_1x1: bool = False
    """Caffe-style ResNet: stride 2 in the first 1x1 convolution of a stage instead of its 3x3."""
    image_norm: Literal["fixed", "image"] = "fixed"
    """`fixed`: subtract `image_mean`, divide by `image_std`; `image`: each image's own mean and deviation."""
    image_mean: tuple[float, float, float] | None = None
    """In the order of `channel_order`, for pixels 0..255; null: what the backbone's pretrained weights expect."""
    image_std: tuple[float, float, float] | None = None
    """Likewise."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    image_short_side: int | None = 800
    """Images are resized so that the short side has this many px (null: they keep their size) ..."""
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
    """Of candidates, before the NMS: a lower bound for speed, not a threshold on finished scores."""
    decision_threshold: float | tuple[float, ...] | None = None
    """Score from which a result counts as found where no other is requested: in `predict`, and wherever results are
    counted instead of ranked. One for all classes, or one per class. null: training chooses it on val, where F1 at mask
    IoU 0.5 is highest; until then 0.3."""
    nms_threshold: float = 0.6
    max_detections: int = 100
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        self.reading()  # checks the fields that it takes
        for name in ("num_classes", "channels", "max_detections", "image_long_side"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("score_threshold", "nms_threshold", "mask_threshold"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        own = self.decision_threshold
        for value in () if own is None else own if isinstance(own, tuple) else (own,):
            require(self, "decision_threshold", 0 <= value <= 1, "between 0 and 1, one or one per class")
        require(self, "mask_threshold", self.mask_threshold > 0, "above 0")
        short_ok = self.image_short_side is None or self.image_short_side >= 1
        require(self, "image_short_side", short_ok, "at least 1, or null")
        require(self, "frozen_stages", self.frozen_stages >= 0, "at least 0")

    def reading(self) -> ReadOptions:
        """Return how image files are read."""
        return ReadOptions(page=self.image_page, channels=self.image_channels, depth=self.image_depth)

    def decision(
        self, requested: ScoreThreshold | None = None, class_names: Sequence[str] = ()
    ) -> tuple[float, ...]:
        """Return the score from which a result of each class counts as found, `[C]`.

        Args:
            requested: one for all classes, one per class, or by class name; classes without a value, and all classes
                where it is None, keep the model's own `decision_threshold`.
            class_names: of the model, C; needed with names.

        Raises:
            BadInput: a value that is no number between 0 and 1, another number of values than classes, or an
                unknown class.
        """
        own = self.decision_threshold
        values = self._per_class(DEFAULT_DECISION if own is None else own, "decision_threshold")
        if isinstance(requested, Mapping):
            unknown = [name for name in requested if name not in class_names]
            if unknown:
                hint = nearest(unknown[0], class_names)
                raise BadInput(f"score_threshold names the class {unknown[0]!r}, which the model lacks{hint}")
            values = tuple(map(requested.get, class_names, values))
        elif requested is not None:
            values = self._per_class(requested, "score_threshold")
        for value in values:
            check_score(value)
        return values

    def _per_class(self, value: float | Sequence[float], name: str) -> tuple[float, ...]:
        if not isinstance(value, Sequence):
            return (value,) * self.num_classes
        if len(value) != self.num_classes:
            raise BadInput(
                f"{name} has {len(value)} values for {self.num_classes} classes; give one per class"
            )
        return tuple(value)

    def candidate_threshold(self, score_threshold: float) -> float:
        """Return the highest candidate threshold that loses no result with a score of at least `score_threshold`.

        A candidate below it ends below `score_threshold`, and the NMS, rescoring and the limit on detections let a
        result change only what scores less.

        Args:
            score_threshold: of finished scores, 0..1.

        Raises:
            BadInput: the threshold is no number between 0 and 1.
        """
        check_score(score_threshold)
        return self._candidate_score(score_threshold) * (1 - SCORE_ROUNDING)

    def _candidate_score(self, score: float) -> float:
        """Return the least value that candidates are compared by of a result with this finished score."""
        return score
