"""Pickles of arrays are read; any other global is rejected before it is called."""

from __future__ import annotations

import codecs
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedmask.unpickling import load_arrays


class Call:
    """Object whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_in_plain_containers(protocol: int) -> None:
    masks = np.arange(6, dtype=np.uint16).reshape(2, 3)
    value = OrderedDict(masks=masks, scale=np.float32(0.5), names=["a", None], raw=b"\xff\0")
    loaded = load_arrays(io.BytesIO(pickle.dumps(value, protocol)))
    assert list(loaded) == list(value)
    assert loaded["masks"].dtype == np.uint16
    np.testing.assert_array_equal(loaded["masks"], masks)
    assert (loaded["scale"], loaded["names"], loaded["raw"]) == (0.5, ["a", None], b"\xff\0")


def test_other_globals_are_never_called(tmp_path: Path) -> None:
    content = pickle.dumps({"masks": Call(os.mkdir, str(tmp_path / "made"))})
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir, which is not an array"):
        load_arrays(io.BytesIO(content))
    assert not (tmp_path / "made").exists()


def test_only_latin1_text_becomes_bytes() -> None:
    with pytest.raises(pickle.UnpicklingError, match="text in rot13"):
        load_arrays(io.BytesIO(pickle.dumps(Call(codecs.encode, "text", "rot13"), 2)))
