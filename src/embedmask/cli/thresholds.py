"""The option `--score-threshold`."""

from __future__ import annotations

import re

from embedmask.errors import BadInput


def parse_score_threshold(text: str | None) -> float | dict[str, float] | None:
    """Parse `--score-threshold`: one number, or `CLASS=NUMBER,CLASS=NUMBER`; names of classes may have commas.

    Raises:
        BadInput: A value is not a number between 0 and 1, or a class is repeated.
    """
    if text is None:
        return None
    # a comma separates classes only where it ends a value
    separated = re.sub(r"(=[^=,]*),", r"\1\n", text)
    parts = [part.rpartition("=") for part in separated.split("\n")]
    try:
        # a number without a class has the name ""; the comparison also rejects nan
        numbers = {name.strip(): float(value) for name, _, value in parts}
        if (len(parts) > 1 and "" in numbers) or not all(0 <= value <= 1 for value in numbers.values()):
            raise ValueError
    except ValueError:
        raise BadInput(
            f"--score-threshold must lie between 0 and 1, one number or CLASS=NUMBER,CLASS=NUMBER, got {text}"
        ) from None
    if len(numbers) < len(parts):
        raise BadInput(f"--score-threshold {text}: names a class twice; give each class one number")
    return numbers.get("", numbers)
