"""Options of a prediction, the config for them, and filtering by score thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from embedmask.config import DetectorConfig, ModelConfig, override
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.structures import Instances


@dataclass(frozen=True)
class Request:
    """Validated options of a prediction.

    Attributes:
        config: see `config_of_request`.
        score_thresholds: minimum final score of each class, C values; empty: no thresholds.
        max_detections: of a whole image; None: as in the config.
        tile, overlap: px; `tile` is None without tiles.
        batch_size: images per batch.
        reading: options for reading image files.
    """

    config: DetectorConfig
    score_thresholds: tuple[float, ...]
    max_detections: int | None
    tile: int | None
    overlap: int
    batch_size: int
    reading: ReadOptions = DEFAULT_READING


def filter_by_score(instances: Instances, thresholds: tuple[float, ...]) -> Instances:
    """Return the instances that reach the threshold of their class, `[C]`; all of them without thresholds."""
    if not thresholds:
        return instances
    limits = instances.scores.new_tensor(thresholds)[instances.labels]
    return instances.select((instances.scores >= limits).nonzero()[:, 0].tolist())


@lru_cache
def config_of_request(
    config: DetectorConfig, score_threshold: float | None, max_detections: int | None, *, parts: bool
) -> DetectorConfig:
    """Return the config for a request; it is cached, because all frames of a video share a request.

    The requested threshold applies to final scores. It raises the threshold of candidates only as far as no result is
    lost.

    Args:
        config: of the model.
        score_threshold: smallest requested threshold; None: that of the config.
        max_detections: None: that of the config.
        parts: whether images are tiles. The request then applies to whole objects only, whose parts may have lower
            scores and be more numerous.
    """
    changes: dict[str, object] = {}
    if score_threshold is not None:
        changes["score_threshold"] = config.candidate_threshold(score_threshold)
    if max_detections is not None:
        changes["max_detections"] = max_detections
    if isinstance(config, ModelConfig):
        changes["mask_frame"] = "exact"
    changed = override(config, changes, where="predictor")
    if not parts:
        return changed
    return replace(
        changed,
        score_threshold=min(changed.score_threshold, config.score_threshold),
        max_detections=max(changed.max_detections, config.max_detections),
    )
