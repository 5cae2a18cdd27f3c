"""Messages of refused input."""

from __future__ import annotations

from typing import Any

import pytest

from embedmask.errors import BadInput


def refused(action: Any, *args: Any, **kwargs: Any) -> str:
    """Return the message with which `action` refuses its arguments: one line."""
    with pytest.raises(BadInput) as caught:
        action(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message
