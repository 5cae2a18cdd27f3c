"""Random numbers of one item from its own generator, so that the result does not depend on workers or their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Sample uniformly from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def bernoulli(probability: float, generator: torch.Generator) -> bool:
    """Return True with this probability."""
    return uniform(0, 1, generator) < probability


def randint(end: int, generator: torch.Generator) -> int:
    """Sample one of 0..end - 1."""
    return int(torch.randint(end, (), generator=generator))


def choice(options: Sequence[int], generator: torch.Generator) -> int:
    """Sample one of the options."""
    return options[randint(len(options), generator)]
