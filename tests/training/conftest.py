"""Trainings inside tests have no plot, which takes a quarter of their time; those of module fixtures have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from embedmask.training import fit


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave `curves.png` empty."""

    def touch(history: Sequence[Mapping[str, Any]], path: Path) -> None:
        del history
        path.touch()

    monkeypatch.setattr(fit, "plot_curves", touch)
