"""`ModelConfig`: EmbedMask's network and post-processing, with presets of its versions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from embedmask.config.convert import current_names, from_dict
from embedmask.config.detector import DetectorConfig
from embedmask.errors import BadInput
from embedmask.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    at_least,
    nearest,
    require,
)

COARSEST_FUSED = 32
"""Largest stride of the levels that `pixel_branch: fused` sums, px per cell: the coarsest of the backbone."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig(DetectorConfig):
    """EmbedMask's network and post-processing (defaults: preset `paper`, arXiv v1).

    Sections, equations and tables are those of the paper; see `docs/paper_map.md`.
    """

    # Neck
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Strides of the pyramid levels, px, finest (4 or 8) first and doubling."""
    size_ranges: tuple[float, ...] = (64, 128, 256, 512)
    """Bounds between the levels, px: an object belongs to the level whose bounds enclose max(l, t, r, b). The
    assigner `fcos` alone reads them."""

    # Head (section 3.1) and pixel branch
    detector: Literal["fcos", "retinanet", "tal"] = "fcos"
    """Head: FCOS as in the paper; `retinanet` with anchors; or `tal`, without anchors and centerness, whose class score
    is trained to be the quality of the box (docs/detectors.md)."""
    tower_convs: NonNegativeInt = 4
    """Number of convolutions in each tower."""
    norm_groups: PositiveInt = 32
    """Number of groups of GroupNorm."""
    embed_dim: PositiveInt = 32
    """Dimension D of the embeddings (Table 2 e)."""
    coordinates: bool = False
    """Add the pixel position x scale / 100 to the first two dims of p and q (2021)."""
    coordinate_scale: Literal["learned", "fixed"] = "learned"
    """Scale of `coordinates`: learned, or fixed at 1 (second repository)."""
    pixel_branch: Literal["tower", "fused"] = "tower"
    """Source of p: a tower on the finest level, or the fused backbone levels, with BatchNorm (second repository)."""
    embed_stride: int | None = None
    """Stride of p, px; null: that of the finest level. Coarser values are faster. Finer ones (2, or 4 if the finest
    level has 8) add finer backbone maps to the pixel branch. Masks are coupled at half this stride, with
    `mask_interpolation: aligned` at this stride."""
    embed_channels: PositiveInt | None = None
    """Width of the layers before the embeddings; null: `channels`. A number adds 1x1 convolutions before q and s, and
    is the width of the fused pixel branch and of the semantic head."""
    margin: Literal["predicted", "constant", "hinge"] = "predicted"
    """Margin of the mask loss: predicted or constant, or the hinge loss with two fixed margins, eq. 2 (Table 2 a)."""
    margin_source: Literal["box", "tower"] = "box"
    """Input of the predicted margin: the box, for a scalar (2019), or the box tower, for one value per dim (2021)."""
    margin_input_scale: PositiveFloat = 800.0
    """Divisor of the margin's input: px for box distances, or box tower features."""
    prior_margin: PositiveFloat = 2.0
    """Initial margin delta_0: the distance at which phi = 0.5 before training."""
    cluster_center: Literal["proposal", "pixel"] = "proposal"
    """Source of Q: the proposal embedding, or the pixel embedding at the proposal's location (Table 2 b)."""

    anchor_scales: tuple[PositiveFloat, ...] = (4.0, 5.0397, 6.3496)
    """Sides of the square anchors of `retinanet`, in strides, rounded down to px."""
    anchor_ratios: tuple[PositiveFloat, ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors of `retinanet`; each scale has all of them."""

    # Assignment and sampling (section 3.5)
    assigner: Literal["fcos", "iou", "task_aligned"] | None = None
    """Assignment of ground truths: by center, size range and mask (`fcos`), by the IoU of anchors (`iou`), or by class
    score and IoU of the predictions (`task_aligned`); null: that of the detector. `retinanet` requires `iou`, which no
    other detector supports."""
    align_alpha: NonNegativeFloat = 1.0
    """Exponent of the class score in the alignment of `task_aligned`."""
    align_beta: NonNegativeFloat = 6.0
    """Exponent of the IoU in the alignment of `task_aligned`."""
    align_topk: PositiveInt = 13
    """Number of locations of highest alignment that `task_aligned` assigns to each ground truth."""
    center_radius: PositiveFloat | None = 1.5
    """Radius of center sampling, in strides; null: anywhere in the box. Only the assigner `fcos` reads it."""
    sample_in_mask: bool = True
    """Require positive locations to lie inside their ground-truth mask (Table 2 c)."""
    sampling_center: Literal["box", "mass"] = "box"
    """Center of center sampling: that of the box, or the mask's center of mass (second repository). Only the
    assigner `fcos` reads it."""
    embed_samples: Literal["iou", "all", "best", "each"] = "iou"
    """Positives averaged for Q and S: those with box IoU > `sample_iou`, all, or the best one (Table 2 c). With `each`
    every positive is a separate instance in the mask loss (second repository)."""
    sample_iou: Fraction = 0.5
    """IoU threshold of `embed_samples: iou`."""
    box_offset: NonNegativeFloat = 1.0
    """Offset on width and height in box areas and IoUs: 1 as in the authors' code, 0 for continuous coordinates."""

    # Objective (eq. 8)
    focal_alpha: Fraction = 0.25
    """Weight of positives in the focal loss."""
    focal_gamma: NonNegativeFloat = 2.0
    """Focusing exponent of the focal loss."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of the box loss."""
    mask_weight: NonNegativeFloat = 0.5
    """Weight lambda_1 of the mask loss."""
    smooth_weight: NonNegativeFloat = 0.1
    """Weight lambda_2 of the smooth loss; 0: none. Without effect with `embed_samples: each`, whose instances are
    single positives."""
    semantic_weight: NonNegativeFloat = 0.0
    """Weight of the semantic loss of an auxiliary head that classifies every cell in training; 0: none."""
    mask_loss: Literal["lovasz", "dice", "bce"] = "lovasz"
    """Mask loss L of eq. 4: Lovász hinge, dice or binary cross-entropy; `margin: hinge` replaces it by eq. 2."""
    box_expansion: Annotated[float, at_least(1)] | None = 1.2
    """Factor on the sides of the ground-truth box whose pixels the mask loss uses; null: whole image (Table 2 d)."""
    min_prob: NonNegativeFloat = 0.0
    """Lower clamp of phi in the Lovász and the bce loss (2021: 1e-9). Beyond it no gradient flows. With
    `mask_interpolation: aligned` phi is also clamped from above, at 1 - `min_prob`."""
    mask_normalizer: Literal["all", "matched", "batch"] = "all"
    """Count K of eq. 4: all ground truths of an image, or those with a positive location. `batch`: the mean over all
    instances of the batch (second repository)."""
    max_mask_instances: PositiveInt | None = 500
    """Maximum number of instances in the mask loss of a process's batch, sampled in every step; null: no maximum. The
    loss is scaled up to all instances, so that its expectation is unchanged; the other losses use every object. Memory
    grows with instances x cells: 500 take 1.0 to 1.5 GB on images of 1024 px. The second repository has 500, the first
    no maximum."""

    # Inference (section 3.6)
    pre_nms_topk: PositiveInt = 1000
    """Maximum number of candidates per level before NMS."""
    score: Literal["product", "root"] = "product"
    """Final score: class score x centerness, or its square root (second repository). `candidate_threshold` applies to
    the class score with `product`, and to the final score with `root`."""
    rescore_masks: bool = False
    """Multiply scores by the agreement of mask and box and by the part of the mask that no better mask covers. This
    separates duplicates from touching objects; it is not in the paper. See inference/rescoring.py."""
    clip_before_nms: bool = True
    """Clip boxes to the image before NMS, or after the best `max_detections` are selected. Boxes without area are
    dropped at the same time."""
    mask_interpolation: Literal["prob", "log_prob", "aligned"] = "prob"
    """Quantity that is resized to the image: phi (`prob`, 2019; `aligned`, second repository) or log phi (`log_prob`,
    2021). `prob` and `log_prob` resize p to half its stride and couple inside the box. `aligned` couples p over the
    whole image, and resizes with cells kept at their locations, also in the mask loss."""
    mask_frame: Literal["authors", "exact"] = "authors"
    """Placement of masks with `embedmask eval --reference-masks`, which reproduces published figures; all other
    predictions use `exact`. `authors`, the placement of the authors' code, resizes the map to its size rounded up to
    whole px, so that masks drift by up to 1 px at the far edge, and lets a mask reach one or two cells
    (of 4 px if p has stride 8) beyond its box. `exact` keeps cells at their locations and lets a mask reach
    `mask_margin` beyond its box. Without effect with `mask_interpolation: aligned`."""
    mask_margin: NonNegativeFloat | None = None
    """Distance that an exact mask may reach beyond its box, as a fraction of the box's side, and at least 1.5 cells
    unless it is 0. Boxes are often slightly too small, and masks are cut off at this margin; above 0.15 they may
    include neighbors (docs/predicting.md). null: 0.1, or less if the mask loss covered less around the box
    (`box_expansion` below 1.2)."""

    has_embeddings = True

    def __post_init__(self) -> None:
        super().__post_init__()
        groups_ok = self.channels % self.norm_groups == 0
        require(self, "channels", groups_ok, f"a multiple of norm_groups {self.norm_groups}")
        min_dim = 3 if self.coordinates else 1  # two dims hold the position
        require(self, "embed_dim", self.embed_dim >= min_dim, f"at least {min_dim}")
        by_anchor = (self.detector == "retinanet", self.assigner_name == "iou")
        require(
            self, "assigner", len(set(by_anchor)) == 1, "iou with detector retinanet, another one without"
        )
        require(self, "anchor_scales", bool(self.anchor_scales), "at least one scale")
        require(self, "anchor_ratios", bool(self.anchor_ratios), "at least one ratio")
        self._check_mask_loss()
        self._check_levels()

    @property
    def mask_reach(self) -> tuple[float, float]:
        """Return the margin of exact masks around their boxes: a fraction of the box's side, and a minimum in cells."""
        margin = self.mask_margin
        if margin is None:
            margin = MASK_MARGIN
            if self.box_expansion is not None:
                margin = min(margin, (self.box_expansion - 1) / 2)
        return margin, MIN_MASK_MARGIN_CELLS if margin > 0 else 0.0

    def _check_mask_loss(self) -> None:
        aligned, hinge = self.mask_interpolation == "aligned", self.margin == "hinge"
        # aligned takes the logit of resized probabilities, which is infinite at 0 and 1 without the clamp
        clamp_ok = not aligned or 0 < self.min_prob < 0.5
        require(self, "min_prob", clamp_ok, "above 0 and below 0.5 with mask_interpolation aligned")
        require(self, "mask_interpolation", not (aligned and hinge), "prob or log_prob with margin hinge")
        require(self, "mask_loss", not hinge or self.mask_loss == "lovasz", "lovasz with margin hinge")

    def _check_levels(self) -> None:
        # the backbone ends at stride 32; the neck appends coarser levels by convolutions of stride 2
        doubling = all(b == 2 * a for a, b in itertools.pairwise(self.strides))
        strides_ok = bool(self.strides) and self.strides[0] in (4, 8) and self.strides[-1] >= 32 and doubling
        require(self, "strides", strides_ok, "4 or 8, then doubling, up to 32 or more")
        # maps finer than the finest level come from the backbone's stages of strides 2 and 4
        pixel_ok = self.pixel_stride in (*self.strides, *(s for s in (2, 4) if s < self.strides[0]))
        require(self, "embed_stride", pixel_ok, "null, one of strides, or 2 or 4 below the first of them")
        fused_ok = self.pixel_branch != "fused" or self.pixel_stride <= COARSEST_FUSED
        require(self, "embed_stride", fused_ok, f"at most {COARSEST_FUSED} with pixel_branch fused")
        if self.assigner_name != "fcos":
            return  # no other assigner reads the size ranges
        count = len(self.strides) - 1
        ranges_ok = len(self.size_ranges) == count and list(self.size_ranges) == sorted(self.size_ranges)
        require(self, "size_ranges", ranges_ok, f"{count} ascending bounds, one between two levels")

    @classmethod
    def preset(cls, name: str = "paper", **overrides: Any) -> ModelConfig:
        """Return the config of a published version (`paper`, `ijcai21`, `fused`) or `fast`, with some fields changed.

        Raises:
            BadInput: the preset or a field is unknown (the message suggests the nearest), or a value is invalid.
        """
        if name not in PRESETS:
            raise BadInput(f"unknown preset {name!r}{nearest(name, PRESETS)}; presets: {', '.join(PRESETS)}")
        where = f"preset {name}"
        return from_dict(cls, {**PRESETS[name], **current_names(cls, overrides, where)}, where=where)

    def _candidate_score(self, score: float) -> float:
        # `root` compares candidates by class score x centerness, the square of the final score; `product` compares
        # them by the class score, which is at least the final score since centerness <= 1
        return score**2 if self.score == "root" else score

    @property
    def pixel_stride(self) -> int:
        """Return the stride of the pixel embedding, px."""
        return self.strides[0] if self.embed_stride is None else self.embed_stride

    @property
    def assigner_name(self) -> str:
        """Return the name of the assigner: `assigner`, or that of the detector."""
        return self.assigner or {"fcos": "fcos", "retinanet": "iou", "tal": "task_aligned"}[self.detector]

    @property
    def fixed_margin_distance(self) -> float | None:
        """Return the distance at which phi = 0.5 for every proposal; None: it is predicted."""
        return {"predicted": None, "constant": self.prior_margin, "hinge": HINGE_MARGIN}[self.margin]

    @property
    def level_ranges(self) -> list[tuple[float, float]]:
        """Return (low, high) bounds of max(l, t, r, b) for each level, px, both inclusive."""
        bounds = (-1.0, *self.size_ranges, math.inf)
        return list(itertools.pairwise(bounds))


MASK_MARGIN = 0.1
"""Maximum default of `mask_margin`."""
MIN_MASK_MARGIN_CELLS = 1.5
"""Minimum margin of a mask around its box: boxes are often a pixel or two too small."""
HINGE_MARGIN = 1.0
"""Margin delta of eq. 1 in the hinge ablation; delta_a and delta_b of eq. 2 are in objective/losses.py."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "ijcai21": {  # the 2021 version of the authors' first repository
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
    "fused": {  # the authors' second repository
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
"""Light version, not in the paper: `fused` on smaller images, with pyramid and towers of half the width."""
