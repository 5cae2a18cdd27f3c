"""Import of supervision without its warning about OpenCV, which this package does not need."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="OpenCV")
    import supervision as sv
    from supervision.detection.compact_mask import CompactMask

__all__ = ["CompactMask", "sv"]
