"""Export of masks as GeoJSON for QuPath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embedmask.files import write_json_rows
from embedmask.predict.polygons import numbered_crops, polygons
from embedmask.structures import Instances

Scale = tuple[float, float]
"""Factors of y and x."""


def features(
    instances: Instances, class_names: Sequence[str], scale: Scale = (1.0, 1.0)
) -> Iterator[dict[str, Any]]:
    """Yield a GeoJSON feature per object, one mask decoded at a time; empty masks are skipped.

    The geometry is a `Polygon`, or a `MultiPolygon` for a mask of several pieces, with holes, along the edges of
    pixels: filling it restores the mask. Properties are those of QuPath's detections, and `object`, the number of the
    object in its image, from 1.

    Args:
        scale: px of the coordinates per px of the masks; of a level of a pyramid, its downsampling factors.
    """
    labels, scores = instances.labels.tolist(), instances.scores.tolist()
    for number, (crop, top, left) in numbered_crops(instances.masks):
        shapes = [
            # a ring ends with its first corner
            [[[(x + left) * scale[1], (y + top) * scale[0]] for x, y in [*ring, ring[0]]] for ring in rings]
            for rings in ([ring.tolist() for ring in polygon] for polygon in polygons(crop))
        ]
        is_single = len(shapes) == 1
        yield {
            "type": "Feature",
            "geometry": {
                "type": "Polygon" if is_single else "MultiPolygon",
                "coordinates": shapes[0] if is_single else shapes,
            },
            "properties": {
                "objectType": "detection",
                "object": number,
                "classification": {"name": class_names[labels[number - 1]]},
                "measurements": {"score": round(scores[number - 1], 6)},
            },
        }


def write_geojson(
    path: str | Path, instances: Instances, class_names: Sequence[str], scale: Scale = (1.0, 1.0)
) -> None:
    """Write the objects of an image as a feature collection, one feature per line, as they are produced."""
    rows = features(instances, class_names, scale)
    write_json_rows(path, rows, head='{"type": "FeatureCollection", "features": ', tail="}")
