"""Summary of a prediction of files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictSummary:
    """Summary of a run, complete on rank zero and empty elsewhere.

    Attributes:
        num_images, num_objects: Totals of all finished sources, including earlier runs.
        broken: One line per file that could not be read.
        hint: The best score, in a run without any detection.
        notes: One line per type of file that was skipped or read in part, and per video with unusable sound.
    """

    num_images: int = 0
    num_objects: int = 0
    broken: tuple[str, ...] = ()
    hint: str = ""
    notes: tuple[str, ...] = ()
