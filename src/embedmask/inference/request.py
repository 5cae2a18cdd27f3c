"""Options of a prediction: the config that answers them, and the results that pass the score thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from embedmask.config import DetectorConfig, ModelConfig, override
from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.structures import Instances


@dataclass(frozen=True)
class Request:
    """The options of a prediction, checked.

    Attributes:
        config: answers the request, see `config_of_request`.
        score_thresholds: of finished scores, one per class, C; empty: none.
        max_detections: of a whole image; None: as the config says.
        tile, overlap: px; None: no tiles.
        batch_size: images that the network sees at once.
        reading: how image files are read.
    """

    config: DetectorConfig
    score_thresholds: tuple[float, ...]
    max_detections: int | None
    tile: int | None
    overlap: int
    batch_size: int
    reading: ReadOptions = DEFAULT_READING


def passing(instances: Instances, thresholds: tuple[float, ...]) -> Instances:
    """Return the instances that reach the threshold of their class, `[C]`; all of them without thresholds."""
    if not thresholds:
        return instances
    limits = instances.scores.new_tensor(thresholds)[instances.labels]
    return instances.select((instances.scores >= limits).nonzero()[:, 0].tolist())


@lru_cache
def config_of_request(
    config: DetectorConfig, score_threshold: float | None, max_detections: int | None, *, parts: bool
) -> DetectorConfig:
    """Return the config that answers a request; it is kept, since every frame of a video asks for the same.

    The requested threshold applies to finished scores: it reaches the candidates only as far as no result is lost.
    With `parts`, for tiles, the request holds for whole objects only: their parts may score less and be more.
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
