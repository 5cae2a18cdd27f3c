"""Label images in numpy's files, among them Cellpose's `_seg.npy`, read without running code."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


def _decode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, by which old pickles write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Any]:
    rebuild = {
        "_reconstruct": np.zeros(1).__reduce__()[0],
        "scalar": np.float64(1).__reduce__()[0],
        "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    }
    parts = ("multiarray", "numeric")
    modules = [f"numpy.{core}.{part}" for core in ("core", "_core") for part in parts]
    return {
        **{(module, name): value for module in modules for name, value in rebuild.items()},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _decode,
    }


class _ArraysOnly(pickle.Unpickler):
    """Rebuild arrays, numbers, texts and plain containers; refuse everything else before it is called."""

    allowed = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no array")
        return self.allowed[module, name]


def read_numpy_labels(path: Path) -> NDArray[Any]:
    """Read a label image from a `.npy` file: an array, or the entry `masks` of Cellpose's dictionary.

    Raises:
        ValueError: the file is damaged, holds neither, or holds anything but arrays and plain values, which could run
            code; says which.
    """
    try:
        with path.open("rb") as file:
            value = _read(file)
    except OSError:
        raise
    except Exception as error:  # a pickle that is damaged or made for the purpose raises whatever it likes
        raise ValueError(f"not numpy's arrays alone: {' '.join(str(error).split())}") from None
    entry = value.item() if value.dtype.hasobject and value.ndim == 0 else {"masks": value}
    labels = entry.get("masks") if isinstance(entry, dict) else None
    if not isinstance(labels, np.ndarray) or labels.dtype.hasobject:
        raise ValueError("no array of labels and no dictionary with 'masks'")
    return labels


def _read(file: BinaryIO) -> NDArray[Any]:
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        objects = np.asarray(_ArraysOnly(file).load(), dtype=object)
        return objects.reshape(shape)
    file.seek(0)
    value: NDArray[Any] = np.load(file, allow_pickle=False)
    return value
