"""Score thresholds: which results count as decided."""

from __future__ import annotations

from collections.abc import Mapping

Thresholds = float | Mapping[int, float]
"""One score threshold for all categories, or one per category id."""


def is_decided(score: float, category: int, thresholds: Thresholds) -> bool:
    """Return whether a score reaches the threshold of its category."""
    return score >= (thresholds[category] if isinstance(thresholds, Mapping) else thresholds)


def describe(thresholds: Thresholds) -> str:
    """Return the thresholds as text, such as `at least 0.3`."""
    values = set(thresholds.values()) if isinstance(thresholds, Mapping) else {thresholds}
    return f"at least {values.pop():g}" if len(values) == 1 else "at least the threshold of their class"
