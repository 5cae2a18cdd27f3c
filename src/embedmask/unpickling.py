"""Load pickled arrays in plain containers; pickles with other objects, which could run code, are rejected."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np


def _encode(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, with which old pickle protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


ALLOWED: Mapping[tuple[str, str], Any] = {
    # numpy has moved these functions between modules: take them from the pickles that it writes today
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
"""Globals that a pickle may use: the constructors of arrays."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that rejects every other global before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, which is not an array")
        return allowed


def load_arrays(file: BinaryIO, encoding: str = "ASCII") -> Any:
    """Load arrays, numbers, texts and plain containers from a pickle.

    Args:
        file: read from its position.
        encoding: of the texts of Python 2; "latin1" for its arrays.

    Raises:
        pickle.UnpicklingError: the pickle needs another global; damaged pickles may raise any exception.
    """
    return _ArrayUnpickler(file, encoding=encoding).load()
