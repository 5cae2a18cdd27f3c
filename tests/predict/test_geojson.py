"""GeoJSON: valid polygons that restore the masks, holes and pieces included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_polygons import RING, Bools, any_mask, fill, scene

from embedmask.predict.geojson import features, write_geojson
from embedmask.predict.polygons import polygons

Ring = list[list[float]]


def area(ring: Ring) -> float:
    """Return the signed area of a closed ring, positive if it runs counterclockwise in coordinates (x, y)."""
    (x, y), (x2, y2) = np.array(ring[:-1]).T, np.array(ring[1:]).T
    return float((x * y2 - x2 * y).sum() / 2)


def polygons_of(geometry: dict[str, Any]) -> list[list[Ring]]:
    parts: list[list[Ring]] = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        return [parts]  # type: ignore[list-item]
    assert geometry["type"] == "MultiPolygon"
    return parts


def filled(geometry: dict[str, Any], size: tuple[int, int]) -> Bools:
    """Fill each polygon without its holes; pieces must not overlap."""
    mask = np.zeros(size, bool)
    for shell, *holes in polygons_of(geometry):
        piece = fill([np.array(shell[:-1])], size)
        for hole in holes:
            inside = fill([np.array(hole[:-1])], size)
            assert not (inside & ~piece).any()
            piece &= ~inside
        assert not (mask & piece).any()
        mask |= piece
    return mask


@settings(deadline=None)
@given(st.lists(any_mask, min_size=1, max_size=3), st.integers(0, 99))
def test_features_restore_the_masks(masks: list[Bools], seed: int) -> None:
    instances = scene(masks, [0] * len(masks), (14, 15), seed)
    for feature, mask in zip(features(instances, ["cell"]), instances.masks.to_dense().numpy(), strict=True):
        np.testing.assert_array_equal(filled(feature["geometry"], (14, 15)), mask)


@given(any_mask)
def test_polygons_are_simple_features(mask: Bools) -> None:
    found = polygons(mask)
    assert len(found) == ndimage.label(mask)[1]
    num_holes = 0
    for shell, *holes in found:
        num_holes += len(holes)
        for sign, ring in [(1, shell), *((-1, hole) for hole in holes)]:
            corners = ring.tolist()
            assert len({tuple(corner) for corner in corners}) == len(corners), "a corner is visited twice"
            assert np.sign(area([*corners, corners[0]])) == sign
            steps = ring - np.roll(ring, 1, 0)
            assert ((steps == 0).sum(1) == 1).all(), "an edge is not along the pixels"
            # horizontal and vertical edges in turn: no corner in the middle of an edge
            assert (steps[:, 0] != 0).tolist() == (np.roll(steps, 1, 0)[:, 0] == 0).tolist()
    # background that is enclosed, pixels that meet at a corner apart where the mask passes between them
    enclosed = np.pad(~mask, 1, constant_values=True)
    assert num_holes >= ndimage.label(enclosed, np.ones((3, 3)))[1] - 1


def test_hole_that_touches_the_outline() -> None:
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    ((shell, hole),) = polygons(mask)
    assert [2, 2] in shell.tolist()
    assert [2, 2] in hole.tolist()
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_file_is_a_feature_collection_for_qupath(tmp_path: Path) -> None:
    empty = np.zeros((0, 0), bool)
    instances = scene([np.eye(4, dtype=bool), empty, RING], [1, 0, 0], (30, 40))
    write_geojson(tmp_path / "a.geojson", instances, ["cell", "debris"])
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    first, last = content["features"]
    assert first["type"] == last["type"] == "Feature"
    assert [len(polygons_of(feature["geometry"])) for feature in (first, last)] == [4, 1]
    assert len(last["geometry"]["coordinates"]) == 2, "an outline and a hole"
    assert first["properties"] == {
        "objectType": "detection",
        "object": 1,
        "classification": {"name": "debris"},
        "measurements": {"score": 0.9},
    }
    assert last["properties"]["object"] == 3
    for index, feature in ((0, first), (2, last)):
        np.testing.assert_array_equal(
            filled(feature["geometry"], (30, 40)), instances.masks.to_dense()[index]
        )
    write_geojson(tmp_path / "none.geojson", instances.select([]), ["cell", "debris"])
    assert json.loads((tmp_path / "none.geojson").read_text()) == {
        "type": "FeatureCollection",
        "features": [],
    }


def test_coordinates_of_a_level() -> None:
    instances = scene([RING], [0], (30, 40))
    (plain,), (scaled,) = features(instances, ["x"]), features(instances, ["x"], (2.0, 4.0))
    for one, other in zip(plain["geometry"]["coordinates"], scaled["geometry"]["coordinates"], strict=True):
        np.testing.assert_array_equal(np.array(one) * (4, 2), other)
