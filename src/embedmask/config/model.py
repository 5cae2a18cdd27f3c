"""`ModelConfig`: the network and its post-processing, with the published versions and a light one as presets."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

from embedmask.config.convert import from_dict
from embedmask.config.detector import DetectorConfig
from embedmask.errors import BadInput
from embedmask.fields import nearest, require


@dataclass(frozen=True, kw_only=True)
class ModelConfig(DetectorConfig):
    """The network and its post-processing. The defaults are preset `paper` (arXiv v1).

    Sections, equations and tables are the paper's; `docs/paper_map.md` lists them all.
    """

    # Neck
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Pyramid levels, finest (4 or 8) first, each twice the one before."""
    size_ranges: tuple[float, ...] = (64, 128, 256, 512)
    """A level serves objects whose max(l, t, r, b) lies between its two neighbouring bounds, px."""

    # Head (section 3.1) and pixel branch
    tower_convs: int = 4
    norm_groups: int = 32
    embed_dim: int = 32
    """D, Table 2 (e)."""
    coordinates: bool = False
    """Add pixel position x scale / 100 to the first two dims of p and q (2021)."""
    coordinate_scale: Literal["learned", "fixed"] = "learned"
    """That scale: one learned number, or 1 (second repository)."""
    pixel_branch: Literal["tower", "fused"] = "tower"
    """p from a tower on the finest level, or from the backbone's levels fused, with BatchNorm (second repository)."""
    embed_stride: int | None = None
    """Stride of p, px; null: the finest level's. Coarser, another level's: quicker. Finer (2, or 4 before strides of 8
    on): the backbone's finer maps join the pixel branch. Masks are coupled at half of it (`aligned`: at all of it)."""
    embed_channels: int | None = None
    """Width in front of the embeddings: of a 1x1 convolution before q and before s, and of the fused pixel branch and
    the semantic head throughout; null: `channels`, and no 1x1 convolution."""
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
    sampling_center: Literal["box", "mass"] = "box"
    """Centre sampling around the centre of the box, or of the mask's mass (second repository)."""
    embed_samples: Literal["iou", "all", "best", "each"] = "iou"
    """Table 2 (c): Q, S are means over positives with box IoU > `sample_iou`, over all, or the best one alone;
    `each`: every positive is an instance of its own in the mask loss (second repository)."""
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
    semantic_weight: float = 0.0
    """Of the semantic loss, for which an auxiliary head says the class of every cell in training; 0: none."""
    mask_loss: Literal["lovasz", "dice"] = "lovasz"
    """L of eq. 4; `margin: hinge` has eq. 2 instead."""
    box_expansion: float | None = 1.2
    """Table 2 (d): the mask loss sees the ground-truth box with each side this much longer; None: the whole image."""
    min_prob: float = 0.0
    """phi is clamped from below at this in the mask loss; no gradient passes beyond it (2021: 1e-9). With
    `mask_interpolation: aligned` also from above, at 1 - `min_prob`."""
    mask_normalizer: Literal["all", "matched", "batch"] = "all"
    """K of eq. 4: all ground truths of an image, or those that have a positive location. `batch`: one mean over all
    instances of the batch, however they spread over its images (second repository)."""
    max_mask_instances: int | None = 500
    """The mask loss looks at no more instances than this in a process's batch, drawn anew in every step; null: all.
    Its memory grows with instances x cells: 500 take 0.8 to 1.4 GB on images of 1024 px, however many objects there
    are. Each is as likely as any other and the sum is scaled up to all of them: on average over the draws nothing
    changes. The other losses see every object. (500 is the second repository's; the first had no such limit.)"""

    # Inference (section 3.6)
    pre_nms: int = 1000
    """Candidates kept a level."""
    score: Literal["product", "root"] = "product"
    """Class score x centerness, of candidates whose class score passes `score_threshold`; or the square root of that
    product, which itself must pass (second repository)."""
    rescore_masks: bool = False
    """Multiply scores by how far the mask agrees with its box and holds what no better one holds, for scores that tell
    duplicates from touching objects; ours, in no paper. See inference/rescoring.py."""
    clip_before_nms: bool = True
    """Boxes are clipped to the image before the NMS or after the best `max_detections` are chosen; boxes without
    area are dropped there."""
    mask_interpolation: Literal["prob", "log_prob", "aligned"] = "prob"
    """From the cells to pixels. `prob` (2019), `log_prob` (2021): p is resized to half the stride and coupled inside
    the box, then phi or log phi is resized to the original image. `aligned` (second repository): p is coupled as it is,
    over the whole image, then phi is resized by the rule that keeps cells at their locations, in the mask loss, too."""
    mask_frame: Literal["authors", "exact"] = "authors"
    """Where cells lie in the image, and how far around its box a mask may reach. `authors`: the map is resized to its
    size rounded up to whole px, by which masks drift up to 1 px at the far edge; a cell or two around the box (of
    4 px, where p has 8). `exact`: cells lie where they lie at every size; `mask_margin` around the box.
    `mask_interpolation: aligned`, which is exact and knows no boxes, is the same in both."""
    mask_margin: float = 0.1
    """In the frame `exact`: how far around its box a mask may reach, as a share of the box's side, and at least 1.5
    cells. Boxes are often a little too small; a mask that passes this margin ends in a straight cut. More than 0.15
    lets neighbors in (docs/predicting.md)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("embed_dim", "norm_groups", "pre_nms"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        require(self, "sample_iou", 0 <= self.sample_iou <= 1, "between 0 and 1")
        for name in ("prior_margin", "margin_input_scale"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("box_offset", "mask_weight", "smooth_weight", "semantic_weight", "min_prob"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        require(self, "mask_margin", 0 <= self.mask_margin < math.inf, "a finite number, at least 0")
        for name in ("embed_channels", "max_mask_instances"):
            value = getattr(self, name)
            require(self, name, value is None or value >= 1, "at least 1, or null")
        aligned, hinge = self.mask_interpolation == "aligned", self.margin == "hinge"
        clamp_ok = not aligned or 0 < self.min_prob < 0.5
        require(self, "min_prob", clamp_ok, "above 0 and below 0.5 with mask_interpolation aligned")
        require(self, "mask_interpolation", not (aligned and hinge), "prob or log_prob with margin hinge")
        require(self, "mask_loss", not (hinge and self.mask_loss == "dice"), "lovasz with margin hinge")
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
        pixel_ok = self.pixel_stride in (*self.strides, *(s for s in (2, 4) if s < self.strides[0]))
        require(self, "embed_stride", pixel_ok, "null, one of strides, or 2 or 4 below the first of them")
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
        """One of the published versions, or `fast`, whole; any field can be overridden by keyword.

        Raises:
            BadInput: unknown preset, unknown field (the nearest is named) or impossible value.
        """
        if name not in PRESETS:
            raise BadInput(f"unknown preset {name!r}{nearest(name, PRESETS)}; presets: {', '.join(PRESETS)}")
        return from_dict(ModelConfig, {**PRESETS[name], **overrides}, where=f"preset {name}")

    def _candidate_score(self, score: float) -> float:
        # `root` compares candidates by class score x centerness, of which the finished score is the root; with
        # `product` they are compared by the class score, which is at least the product
        return score**2 if self.score == "root" else score

    @property
    def pixel_stride(self) -> int:
        """px a cell of the pixel embedding."""
        return self.strides[0] if self.embed_stride is None else self.embed_stride

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
    "fused": {
        "image_rounding": "nearest",
        "embed_dim": 16,
        "coordinates": True,
        "coordinate_scale": "fixed",
        "pixel_branch": "fused",
        "embed_channels": 128,
        "margin_source": "tower",
        "margin_input_scale": 32.0,
        "sample_in_mask": False,
        "sampling_center": "mass",
        "embed_samples": "each",
        "box_offset": 0.0,
        "mask_weight": 1.0,
        "smooth_weight": 0.0,
        "semantic_weight": 1.0,
        "box_expansion": None,
        "min_prob": 1e-6,
        "mask_normalizer": "batch",
        "score": "root",
        "clip_before_nms": False,
        "mask_interpolation": "aligned",
    },
}
PRESETS["fast"] = {
    **PRESETS["fused"],
    "image_short_side": 512,
    "image_long_side": 853,
    "channels": 128,
    "mask_frame": "exact",
}
"""Light, ours and in no paper: the second repository's version on smaller images, pyramid and towers half as wide."""
