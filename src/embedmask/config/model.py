"""`ModelConfig`: the network and its post-processing, with the published versions as presets."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

from embedmask.config.convert import from_dict
from embedmask.errors import BadInput
from embedmask.fields import check_types, nearest, require

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
