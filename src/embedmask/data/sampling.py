"""Random numbers of an item: from its own generator, never the global one, so that any worker draws the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def between(low: float, high: float, generator: torch.Generator) -> float:
    """Uniform in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def happens(probability: float, generator: torch.Generator) -> bool:
    """Whether something of this probability happens."""
    return between(0, 1, generator) < probability


def below(end: int, generator: torch.Generator) -> int:
    """One of 0..end - 1."""
    return int(torch.randint(end, (), generator=generator))


def choose(options: Sequence[int], generator: torch.Generator) -> int:
    """One of the options."""
    return options[below(len(options), generator)]
