"""Metadata of an exported file; `embedmask.runtime` has the rules and reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from embedmask import __version__
from embedmask.config import ModelConfig, model_to_dict
from embedmask.errors import BadInput
from embedmask.export.graph import output_limit
from embedmask.inference.mask_decoding import OUTSIDE_LOG_PROB
from embedmask.locations import MASK_UPSAMPLING
from embedmask.model.detector import FRAME_MULTIPLE
from embedmask.model.embedmask import EmbedMask
from embedmask.runtime_file import FORMAT, VERSION
from embedmask.runtime_masks import Settings

CONVENTIONS = {
    "images": "uint8 RGB [N, 3, H, W] of any N, H, W, resized by the rule in settings and not padded",
    "boxes": "[N, K, 4] x1, y1, x2, y2 in px of images, continuous: 0 <= x1 < x2 <= W",
    "scores": "[N, K], by descending score; 0 where the label is -1",
    "labels": "[N, K], index into class_names; -1: no detection",
    "q": "[N, K, D], embedding of each detection",
    "s": "[N, K, 1 or D], margin of each detection, a precision",
    "p": "[N, D, h, w], embedding of each cell of pixel_stride px of the padded frame",
    "log_phi": "[N, K, 2 h, 2 w], with interpolation aligned [N, K, h, w]; not limited to boxes",
    "mask": "phi = exp(-sum_d s_d (p_d - q_d)^2) > mask_threshold, in the frame of the whole image, not of the box",
    "padding": f"right and below, to multiples of {FRAME_MULTIPLE} px, within the graph",
    "resizing": "Pillow's BILINEAR, antialiased, on 8 bits",
}


def settings_from(config: ModelConfig, class_names: Sequence[str], *, dense_masks: bool) -> Settings:
    """Return the settings of a model, for the decoder; errors as in `served_thresholds`."""
    reading = config.reading()
    margin, min_margin_cells = config.mask_reach
    return Settings(
        class_names=list(class_names),
        score_thresholds=served_thresholds(config),
        short_side=config.image_short_side,
        long_side=config.image_long_side,
        rounding=config.image_rounding,
        page=reading.page,
        channels=None if reading.channels is None else list(reading.channels),
        depth=reading.depth,
        strides=list(config.strides),
        pixel_stride=config.pixel_stride,
        score=config.score,
        candidate_threshold=config.candidate_threshold,
        nms_threshold=config.nms_threshold,
        max_detections=min(config.max_detections, output_limit(config)),
        outputs=output_limit(config),
        rescore=config.rescore_masks,
        mask_threshold=config.mask_threshold,
        interpolation=config.mask_interpolation,
        upsampling=1 if config.mask_interpolation == "aligned" else MASK_UPSAMPLING,
        margin=margin,
        min_margin_cells=min_margin_cells,
        outside_log_prob=OUTSIDE_LOG_PROB,
        dense_masks=dense_masks,
    )


def served_thresholds(config: ModelConfig) -> list[float]:
    """Return the default score threshold of each class, `[C]`.

    Raises:
        BadInput: they need candidates that the graph leaves out.
    """
    thresholds = config.score_thresholds()
    lowest = config.candidate_threshold_for(min(thresholds))
    if lowest < config.candidate_threshold * (1 - 2e-6):
        raise BadInput(
            f"default_score_threshold {min(thresholds):g} needs candidates below candidate_threshold "
            f"{config.candidate_threshold:g}; lower candidate_threshold of the model to {lowest:g}"
        )
    return list(thresholds)


def metadata_text(model: EmbedMask, class_names: Sequence[str], *, dense_masks: bool, opset: int) -> str:
    """Return the metadata of a model's graph as JSON."""
    config = model.config
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "settings": vars(settings_from(config, class_names, dense_masks=dense_masks)),
        "config": model_to_dict(config),
        "conventions": CONVENTIONS,
        "weights": digest.hexdigest(),
        "versions": {"embedmask": __version__, "torch": torch.__version__, "opset": opset},
    }
    return json.dumps(values)
