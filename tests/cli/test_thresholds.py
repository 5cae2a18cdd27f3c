from __future__ import annotations

import pytest
from messages import refused

from embedmask.cli.thresholds import parse_score_threshold


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("0.3", 0.3),
        ("cat=0.3", {"cat": 0.3}),
        ("cat=0.3, dog = 1", {"cat": 0.3, "dog": 1.0}),
        ("cat, black=0.3,dog=0.2", {"cat, black": 0.3, "dog": 0.2}),
        ("a=b=0.5", {"a=b": 0.5}),
    ],
)
def test_number_or_number_of_each_class(text: str | None, expected: object) -> None:
    assert parse_score_threshold(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1.5", "nan", "high", "0.5,0.6", "cat=", "cat=0.5,", "cat=0.5,0.4", "=0.5,cat=0.4"]
)
def test_raises_on_other_text(text: str) -> None:
    assert "between 0 and 1" in refused(parse_score_threshold, text)
