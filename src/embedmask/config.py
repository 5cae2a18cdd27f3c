"""Typed configuration: the only place that holds defaults.

`ModelConfig` is what a checkpoint carries: all that is needed to rebuild the network and to turn pictures into
instances. `DataConfig` and `TrainConfig` matter in training only. A recipe (`configs/*.yaml`) is
`{preset: NAME, model: {...}, data: {...}, train: {...}}` and says only what differs from the defaults.
"""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml

from embedmask.errors import BadInput
from embedmask.fields import check_types, coerce, nearest, require

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network and its post-processing. The defaults are preset `paper` (arXiv v1).

    Sections, equations and tables are the paper's; `docs/paper_map.md` lists them all.
    """

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

    # Neck
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Pyramid levels, finest (4 or 8) first, each twice the one before."""
    size_ranges: tuple[float, ...] = (64, 128, 256, 512)
    """A level serves objects whose max(l, t, r, b) lies between its two neighbouring bounds, px."""
    channels: int = 256

    # Head (section 3.1) and pixel branch
    tower_convs: int = 4
    norm_groups: int = 32
    embed_dim: int = 32
    """D, Table 2 (e)."""
    coordinates: bool = False
    """Add pixel position x learned scale / 100 to the first two dims of p and q (2021)."""
    margin: Literal["predicted", "constant", "hinge"] = "predicted"
    """Table 2 (a): mask loss with the predicted or a constant margin, or the hinge loss with two fixed ones (eq. 2)."""
    margin_source: Literal["box", "tower"] = "box"
    """Predicted margin: a scalar from the box (2019) or one value a dimension from the box tower (2021)."""
    margin_input_scale: float = 800.0
    """The margin's input is divided by this: px of box distances, or box tower features."""
    prior_margin: float = 2.0
    """delta_0: the distance at which phi = 0.5 before training."""
    cluster_center: Literal["proposal", "pixel"] = "proposal"
    """Table 2 (b): Q from the proposal embedding, or from the pixel embedding at the proposal's location."""

    # Assignment and sampling (section 3.5)
    center_radius: float | None = 1.5
    """Centre sampling, in strides; None: anywhere in the box."""
    sample_in_mask: bool = True
    """Table 2 (c): a positive location must lie inside its ground-truth mask."""
    embed_samples: Literal["iou", "all", "best"] = "iou"
    """Table 2 (c): Q, S are means over positives with box IoU > `sample_iou`, over all, or the best one alone."""
    sample_iou: float = 0.5
    box_offset: float = 1.0
    """Added to width and height of boxes in areas and IoUs: 1 as the authors' inclusive pixel ends, 0 continuous."""

    # Objective (eq. 8)
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    mask_weight: float = 0.5
    """lambda_1."""
    smooth_weight: float = 0.1
    """lambda_2; 0: no smooth loss."""
    box_expansion: float | None = 1.2
    """Table 2 (d): the mask loss sees the ground-truth box with each side this much longer; None: the whole image."""
    min_prob: float = 0.0
    """phi is clamped from below at this in the mask loss; no gradient passes beyond it (2021: 1e-9)."""
    mask_normalizer: Literal["all", "matched"] = "all"
    """K of eq. 4: all ground truths of an image, or those that have a positive location."""

    # Inference (section 3.6)
    score_threshold: float = 0.05
    pre_nms: int = 1000
    """Candidates kept a level."""
    nms_threshold: float = 0.6
    max_detections: int = 100
    mask_threshold: float = 0.5
    mask_interpolation: Literal["prob", "log_prob"] = "prob"
    """What is resized to the original image before thresholding: phi (2019) or log phi (2021)."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("num_classes", "channels", "embed_dim", "norm_groups", "pre_nms", "max_detections",
                     "image_long_side"):  # fmt: skip
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("score_threshold", "nms_threshold", "mask_threshold", "sample_iou"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        require(self, "mask_threshold", self.mask_threshold > 0, "above 0")
        for name in ("prior_margin", "margin_input_scale"):
            require(self, name, getattr(self, name) > 0, "above 0")
        short_ok = self.image_short_side is None or self.image_short_side >= 1
        require(self, "image_short_side", short_ok, "at least 1, or null")
        for name in ("frozen_stages", "box_offset", "mask_weight", "smooth_weight", "min_prob"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        expansion_ok = self.box_expansion is None or self.box_expansion >= 1
        require(self, "box_expansion", expansion_ok, "at least 1, or null for the whole image")
        require(self, "tower_convs", self.tower_convs >= 0, "at least 0")
        require(
            self,
            "channels",
            self.channels % self.norm_groups == 0,
            f"a multiple of norm_groups {self.norm_groups}",
        )
        doubling = all(b == 2 * a for a, b in itertools.pairwise(self.strides))
        strides_ok = bool(self.strides) and self.strides[0] in (4, 8) and self.strides[-1] >= 32 and doubling
        require(self, "strides", strides_ok, "4 or 8, then doubling, up to 32 or more")
        ranges_ok = len(self.size_ranges) == len(self.strides) - 1 and list(self.size_ranges) == sorted(
            self.size_ranges
        )
        require(
            self,
            "size_ranges",
            ranges_ok,
            f"{len(self.strides) - 1} ascending bounds, one between two levels",
        )
        min_dim = 3 if self.coordinates else 1
        require(self, "embed_dim", self.embed_dim >= min_dim, f"at least {min_dim}")

    @classmethod
    def preset(cls, name: str = "paper", **overrides: Any) -> ModelConfig:
        """One of the published versions, whole; any field can be overridden by keyword.

        Raises:
            BadInput: unknown preset, unknown field (the nearest is named) or impossible value.
        """
        if name not in PRESETS:
            raise BadInput(f"unknown preset {name!r}{nearest(name, PRESETS)}; presets: {', '.join(PRESETS)}")
        return from_dict(ModelConfig, {**PRESETS[name], **overrides}, where=f"preset {name}")

    @property
    def mask_loss(self) -> Literal["lovasz", "hinge"]:
        """Eq. 4 or eq. 2, by `margin`."""
        return "hinge" if self.margin == "hinge" else "lovasz"

    @property
    def fixed_margin_distance(self) -> float | None:
        """Distance at which phi = 0.5 for every proposal (delta of eq. 1 with `hinge`); None: it is predicted."""
        return {"predicted": None, "constant": self.prior_margin, "hinge": HINGE_MARGIN}[self.margin]

    @property
    def level_ranges(self) -> list[tuple[float, float]]:
        """(low, high) of max(l, t, r, b) for each level, px, both ends included."""
        bounds = (-1.0, *self.size_ranges, math.inf)
        return list(itertools.pairwise(bounds))


HINGE_MARGIN = 1.0
"""delta of eq. 1 for the hinge ablation (delta_a and delta_b of eq. 2 are in objective/losses.py)."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "ijcai21": {
        "embed_dim": 16,
        "coordinates": True,
        "margin_source": "tower",
        "margin_input_scale": 32.0,
        "embed_samples": "best",
        "smooth_weight": 0.0,
        "box_expansion": None,
        "min_prob": 1e-9,
        "mask_normalizer": "matched",
        "mask_threshold": 0.53,
        "mask_interpolation": "log_prob",
    },
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How training pictures are changed before the network sees them. The defaults are section 4.1."""

    short_sides: tuple[int, ...] = (800,)
    """The short side is drawn from these, px; empty: pictures keep their size. (Inference: `image_short_side`.)"""
    long_side: int = 1333
    scale_range: tuple[float, float] = (1.0, 1.0)
    """Further random scale, log-uniform (large-scale jitter)."""
    crop_size: int | None = None
    """Side of a random square crop, px, after scaling; None: the whole picture."""
    flip_horizontal: float = 0.5
    """Probability."""
    flip_vertical: float = 0.0
    rotate90: bool = False
    """Draw one of the four right-angle rotations (microscopy has no up and down)."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast, saturation and hue, 0..1."""
    invert: float = 0.0
    """Probability of inverting all colours."""
    min_box_side: float = 1.0
    """Objects whose visible part is narrower or lower are left out of the targets, px."""
    repeat: int = 1
    """Times the training set is walked in one epoch (small sets: fewer, longer epochs)."""

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.scale_range
        require(self, "scale_range", 0 < low <= high, "(low, high) with 0 < low <= high")
        require(self, "repeat", self.repeat >= 1, "at least 1")
        require(self, "short_sides", all(side >= 1 for side in self.short_sides), "sides of at least 1 px")
        require(self, "long_side", self.long_side >= 1, "at least 1")
        for name in ("flip_horizontal", "flip_vertical", "invert", "color_jitter"):
            require(self, name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        crop_ok = self.crop_size is None or self.crop_size >= 32
        require(self, "crop_size", crop_ok, "at least 32, or null")


Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The solver of section 4.1 (defaults: R-50 1x) and the engine's settings."""

    batch_size: int = 16
    """Images a step, all processes together."""
    max_steps: int | None = 90_000
    epochs: int | None = None
    """Train this many epochs instead of `max_steps`; set one of the two to null."""
    max_minutes: float | None = None
    """Stop after this many minutes, whatever the schedule."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    bias_lr_factor: float = 2.0
    bias_weight_decay: float = 0.0
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[float, ...] = (2 / 3, 8 / 9)
    """Drops of the step schedule, as fractions of the whole training (60k and 80k of 90k)."""
    gamma: float = 0.1
    warmup_steps: int = 500
    warmup_factor: float = 1 / 3
    warmup: Literal["constant", "linear"] = "constant"
    clip_norm: float | None = None
    ema_decay: float | None = None
    """Keep a moving average of the weights and evaluate, save that; null: none."""
    pretrained: bool = True
    """Start the backbone from timm's ImageNet weights."""
    precision: Precision = "auto"
    """`auto`: bfloat16 where the device is fast at it. Embeddings, distances and losses stay float32."""
    workers: int | None = None
    """Processes that load pictures; null: one fewer than the cores, at most 8."""
    eval_every: int = 1
    """Epochs between evaluations on val."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        lengths = sum(value is not None for value in (self.max_steps, self.epochs))
        require(self, "max_steps", lengths == 1, "set while epochs is null, or null while epochs is set")
        for name in ("batch_size", "eval_every"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_steps", "epochs", "max_minutes", "clip_norm"):
            value = getattr(self, name)
            require(self, name, value is None or value > 0, "above 0, or null")
        require(self, "lr", self.lr > 0, "above 0")
        for name in (
            "warmup_steps",
            "seed",
            "momentum",
            "weight_decay",
            "bias_weight_decay",
            "bias_lr_factor",
        ):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "workers", self.workers is None or self.workers >= 0, "at least 0, or null")
        decay_ok = self.ema_decay is None or 0 <= self.ema_decay < 1
        require(self, "ema_decay", decay_ok, "from 0 to below 1, or null")
        milestones_ok = all(0 <= m <= 1 for m in self.milestones)
        require(self, "milestones", milestones_ok, "fractions of the training, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole experiment: what `embedmask train --config` reads and what a results folder keeps."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str) -> Self:
        """`{preset, model, data, train}`, each part optional."""
        unknown = set(values) - {"preset", "model", "data", "train"}
        if unknown:
            key = min(unknown, key=str)
            known = ("preset", "model", "data", "train")
            raise BadInput(f"{where}: unknown key {key!r}{nearest(key, known)}; use {', '.join(known)}")
        parts = {name: values.get(name) or {} for name in ("model", "data", "train")}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise BadInput(f"{where}: {name} must be a mapping of fields, got {part!r}")
        preset = values.get("preset", "paper")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise BadInput(f"{where}: unknown preset {preset!r}{nearest(str(preset), PRESETS)}")
        return cls(
            model=from_dict(ModelConfig, {**PRESETS[preset], **parts["model"]}, where=f"{where}: model"),
            data=from_dict(DataConfig, parts["data"], where=f"{where}: data"),
            train=from_dict(TrainConfig, parts["train"], where=f"{where}: train"),
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a recipe file; raises `BadInput` on anything that is not one."""
        return cls.from_mapping(read_yaml(path), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping that `from_mapping` takes back."""
        return {"model": to_dict(self.model), "data": to_dict(self.data), "train": to_dict(self.train)}


Config = TypeVar("Config", ModelConfig, DataConfig, TrainConfig)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping from disk; an empty file is an empty mapping."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error.__class__.__name__})") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{path}: expected a mapping with preset, model, data, train")
    return values


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build a config from plain values (lists become tuples, integers floats where the field says so)."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise BadInput(f"{where}: unknown field {name!r}{nearest(name, known)}")
        built[name] = coerce(value, hints[name])
    try:
        return cls(**built)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def to_dict(config: ModelConfig | DataConfig | TrainConfig) -> dict[str, Any]:
    """Plain values for JSON or YAML: tuples become lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()
    }


def override(config: Config, values: Mapping[str, Any], where: str) -> Config:
    """A copy with some fields changed, checked like a new one."""
    changed = {f.name: getattr(config, f.name) for f in fields(config)}
    return from_dict(type(config), {**changed, **values}, where=where)
