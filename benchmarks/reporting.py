"""Tables in Markdown and peak memory, for the scripts of this folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from embedmask.machine import peak_memory


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown, followed by an empty line."""
    cells = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(row)} |" for row in cells), ""]


def peak_gb() -> float:
    """Return the peak memory of this process so far, GB; nan if unknown."""
    peak = peak_memory(torch.device("cpu"))
    return float("nan") if peak is None else peak / 1e9
