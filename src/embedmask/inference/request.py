"""Options of a prediction, and the post-processing for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from embedmask.config import DetectorConfig
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.errors import BadInput
from embedmask.fields import coerce
from embedmask.inference.detect import PostProcessing, make_postprocessor
from embedmask.structures import Instances, PixelMap, Predictions, Size


class Options(TypedDict, total=False):
    """Keyword arguments of `Predictor.__call__`, described there."""

    tile: int | None
    overlap: int
    embeddings: bool
    page: int | None
    channels: Sequence[int] | None
    level: int


@dataclass(frozen=True)
class Request:
    """Validated options of a prediction.

    Attributes:
        postprocess: see `postprocessor_of_request`.
        score_thresholds: minimum final score of each class, C values; empty: no thresholds.
        max_detections: of a whole image; None: as in the config.
        tile, overlap: px; `tile` is None without tiles.
        batch_size: images per batch.
        reading: options for reading image files.
        embeddings: keep the pixel embedding of each image.
    """

    postprocess: PostProcessing
    score_thresholds: tuple[float, ...]
    max_detections: int | None
    tile: int | None
    overlap: int
    batch_size: int
    reading: ReadOptions = DEFAULT_READING
    embeddings: bool = False


class PixelRecorder:
    """Post-processing that also keeps the pixel embeddings of its last batch, in `maps`."""

    def __init__(self, postprocess: PostProcessing) -> None:
        self.postprocess = postprocess
        self.network_options = postprocess.network_options
        self.maps: list[PixelMap] = []

    def __call__(
        self, predictions: Predictions, image_sizes: Sequence[Size], original_sizes: Sequence[Size]
    ) -> list[Instances]:
        """Return the instances of each image; see `PostProcessing`."""
        embeds = zip(predictions.pixel_embed, image_sizes, strict=True)
        self.maps = [PixelMap(embed, predictions.pixel_stride, size) for embed, size in embeds]
        return self.postprocess(predictions, image_sizes, original_sizes)


def postprocessor_of_request(
    config: DetectorConfig, score_thresholds: Sequence[float], max_detections: int | None, *, parts: bool
) -> PostProcessing:
    """Build the post-processing of a request; masks are placed exactly.

    The requested thresholds apply to final scores. The smallest raises the threshold of candidates only as far as this
    loses no result.

    Args:
        score_thresholds: of each class, C values; empty: candidates are limited by the config alone.
        max_detections: None: that of the config.
        parts: whether images are tiles. The request then applies to whole objects only, whose parts may have lower
            scores and be more numerous.

    Raises:
        BadInput: `max_detections` is not a whole number or below 1, or the threshold is invalid.
    """
    limit = coerce(config.max_detections if max_detections is None else max_detections, int)
    is_whole = isinstance(limit, int) and not isinstance(limit, bool)
    if not is_whole or limit < 1:
        rule = "at least 1" if is_whole else "a whole number"
        raise BadInput(f"predictor: max_detections must be {rule}, got {limit!r}")
    lowest = candidates = config.candidate_threshold
    if score_thresholds:
        candidates = config.candidate_threshold_for(min(score_thresholds))
    if parts:
        limit, candidates, score_thresholds = max(limit, config.max_detections), min(candidates, lowest), ()
    return make_postprocessor(
        config, max_detections=limit, score_threshold=candidates, final_thresholds=score_thresholds
    )
