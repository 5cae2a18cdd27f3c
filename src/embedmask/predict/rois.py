"""Export of masks as regions of interest of ImageJ, in a zip file as its ROI manager reads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedmask.errors import UnsupportedImage
from embedmask.files import atomic_write
from embedmask.predict.polygons import Points, numbered_crops, polygons
from embedmask.structures import Instances

if TYPE_CHECKING:
    from roifile import ImagejRoi

MAX_SIDE = 60_535
"""Largest coordinate of the format, px: ImageJ reads 16 bits as -5000..60535."""
MOVE, LINE, CLOSE = 0.0, 1.0, 4.0
"""Segments of a composite ROI."""


def write_rois(
    path: Path,
    instances: Instances,
    class_names: Sequence[str],
    name: str,
    *,
    page: int | None = None,
    position: tuple[int, int] | None = None,
) -> None:
    """Write the objects of image `name` as a zip file of ROIs, `0001-CLASS.roi` for the first; empty masks are skipped.

    Args:
        page: Page of a stack that the ROIs belong to, from 0; None: all.
        position: Slice and frame of that page in a hyperstack, z and t from 0; the ROIs belong to all its channels.
            None: not a hyperstack.

    Raises:
        UnsupportedImage: the image is too large for the format.
        BadInput: the file cannot be written.
    """
    from roifile import roiwrite

    height, width = instances.masks.frame
    if max(height, width) > MAX_SIDE:
        raise UnsupportedImage(
            f"{name}: {width} x {height} px, but ImageJ ROIs have coordinates up to {MAX_SIDE}; use --format geojson"
        )
    with atomic_write(path) as temporary:
        temporary.unlink()  # roifile appends to existing files
        regions = list(rois(instances, class_names, page, position))
        roiwrite(temporary, regions, name=[f"{roi.name}.roi" for roi in regions], mode="w")


def rois(
    instances: Instances,
    class_names: Sequence[str],
    page: int | None = None,
    position: tuple[int, int] | None = None,
) -> Iterator[ImagejRoi]:
    """Yield an ROI per object: a polygon along pixel edges, or a composite if it has holes or several pieces."""
    labels, scores = instances.labels.tolist(), instances.scores.tolist()
    for number, (crop, top, left) in numbered_crops(instances.masks):
        rings = [ring + np.array([left, top]) for polygon in polygons(crop) for ring in polygon]
        roi = _polygon(rings[0]) if len(rings) == 1 else _composite(rings)
        label = class_names[labels[number - 1]]
        # names of files in the zip must not contain folders
        roi.name = f"{number:04}-{label.replace('/', '_')}"
        roi.props = f"class: {label}\nscore: {scores[number - 1]:.6f}\n"
        # ImageJ counts from 1; 0 stands for all
        if position is not None:
            roi.z_position, roi.t_position = position[0] + 1, position[1] + 1
        elif page is not None:
            roi.position = page + 1
        yield roi


def _polygon(ring: Points) -> ImagejRoi:
    """Return a polygon of integer coordinates."""
    from roifile import ROI_TYPE, ImagejRoi

    roi = ImagejRoi.frompoints(ring, name="")
    roi.roitype = ROI_TYPE.POLYGON
    return roi


def _composite(rings: Sequence[Points]) -> ImagejRoi:
    """Return a composite of several rings; holes run against their outlines, as fills by winding number need."""
    from roifile import ROI_TYPE, ImagejRoi

    corners = np.concatenate(rings)
    roi = ImagejRoi.frompoints(corners, name="")  # for the bounds and the options of the overlay
    roi.roitype, roi.n_coordinates, roi.integer_coordinates = ROI_TYPE.RECT, 0, None
    roi.right, roi.bottom = corners.max(0).tolist()
    segments = [
        [*itertools.chain(*((LINE if place else MOVE, x, y) for place, (x, y) in enumerate(ring))), CLOSE]
        for ring in (ring.tolist() for ring in rings)
    ]
    roi.multi_coordinates = np.array([*itertools.chain(*segments)], np.float32)
    roi.shape_roi_size = len(roi.multi_coordinates)
    return roi
