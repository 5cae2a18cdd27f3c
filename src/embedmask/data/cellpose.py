"""Read label images in numpy files, among them Cellpose's `_seg.npy`, without executing pickled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedmask.unpickling import load_arrays


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
                value = np.asarray(load_arrays(file), dtype=object).reshape(shape)
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
