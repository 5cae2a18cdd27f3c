"""Read label images in numpy files, among them Cellpose's `_seg.npy`, without executing pickled code."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _encode(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, with which old pickle protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


# numpy's rebuilding functions, taken from pickled arrays: their modules differ between numpy 1 and 2
ALLOWED: dict[tuple[str, str], Any] = {
    (f"numpy.{core}.{part}", name): function
    for core in ("core", "_core")
    for part in ("multiarray", "numeric")
    for name, function in {
        "_reconstruct": np.zeros(1).__reduce__()[0],
        "scalar": np.float64(1).__reduce__()[0],
        "_frombuffer": np.zeros(1).__reduce_ex__(5)[0],
    }.items()
} | {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of arrays, numbers, texts and plain containers; it rejects everything else before calling it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, which is no array")
        return ALLOWED[module, name]


def read_numpy_labels(path: Path) -> NDArray[Any]:
    """Read a label image from a `.npy` file: an array, or the entry `masks` of Cellpose's dictionary.

    Returns:
        The array as stored; neither shape nor values are checked.

    Raises:
        ValueError: the file is damaged, contains neither, or contains anything but arrays and plain values, which could
            execute code.
    """
    try:
        with path.open("rb") as file:
            # the version is a pair such as (1, 0); later versions differ in the length and encoding of the header
            is_first = np.lib.format.read_magic(file) == (1, 0)
            read_header = (
                np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            if dtype.hasobject:
                # `np.load` would unpickle the rest of the file unrestricted
                value = np.asarray(_ArraysOnly(file).load(), dtype=object).reshape(shape)
            else:
                file.seek(0)
                value = np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged or malicious pickle may raise any exception
        raise ValueError(f"not a plain numpy file: {' '.join(str(error).split())}") from None
    entry = value.item() if value.dtype.hasobject and value.ndim == 0 else {"masks": value}
    labels = entry.get("masks") if isinstance(entry, dict) else None
    if not isinstance(labels, np.ndarray) or labels.dtype.hasobject:
        raise ValueError("no array of labels and no dictionary with 'masks'")
    return labels
