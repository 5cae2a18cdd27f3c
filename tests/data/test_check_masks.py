"""Warnings about doubtful masks that do not stop training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedmask.data import check_masks
from embedmask.data.check import Report, check_folder
from embedmask.data.check_masks import self_crossing
from embedmask.data.segmentation import Polygons, pixel_area

from .conftest import MakeFolder, annotation, polygon, run_lengths

BOW_TIE = [4.0, 6, 24, 26, 24, 6, 4, 26]


def ring(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 2)


def slow_crossing(points: np.ndarray) -> bool:
    """Compare every edge with every other, in exact integers."""
    p = [(int(x), int(y)) for x, y in points]
    edges = list(zip(p, p[1:] + p[:1], strict=True))

    def side(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for i, (a, b) in enumerate(edges)
        for c, d in edges[:i]
    )


@pytest.mark.parametrize(
    ("points", "crosses"),
    [
        (ring(*BOW_TIE), True),
        (ring(0, 0, 10, 0, 10, 10, 0, 10), False),
        (ring(0, 0, 10, 0, 0, 0, 5, 8), False),  # goes back over an edge
        (ring(0, 0, 20, 0, 20, 20, 10, 0, 0, 20), False),  # a corner touches an edge
        (ring(0, 0, 9, 0, 9, 9, 3, 9, 3, 3, 6, 3, 6, 6, 0, 6), True),  # overlaps itself
        (
            ring(0, 0, 9, 0, 9, 9, 0, 9, 0, 0, 3, 3, 3, 6, 6, 6, 6, 3, 3, 3),
            False,
        ),  # round a hole, by a bridge
        (ring(0, 0, 10, 0, 10, 10, 4, 10, 4, -1, 0, 10), True),  # a sliver
    ],
)
def test_self_crossing(points: np.ndarray, crosses: bool) -> None:
    assert self_crossing([points]).tolist() == [crosses]
    assert self_crossing([points[::-1] + 1000]).tolist() == [crosses]
    assert slow_crossing(points) == crosses


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-9, 30), st.integers(-9, 30)), min_size=3, max_size=12), max_size=6
    )
)
def test_self_crossing_agrees_with_slow_reference(rings: list[list[tuple[int, int]]]) -> None:
    arrays = [np.array(points, np.float32) for points in rings]
    assert self_crossing(arrays).tolist() == [slow_crossing(points) for points in arrays]


def test_self_crossing_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rings = [rng.integers(0, 40, (n, 2)).astype(np.float32) for n in (3, 4, 5, 9, 30, 3, 4)]
    expected = [slow_crossing(points) for points in rings]
    assert 0 < sum(expected) < len(rings)
    for pairs in (1, 7, 100):
        monkeypatch.setattr(check_masks, "PAIRS", pairs)
        assert self_crossing(rings).tolist() == expected


def test_pixel_area_of_polygons() -> None:
    """Loops do not cancel, overlaps count once, and pixels outside the image do not count."""
    size = (60, 60)
    square, shifted = ring(*polygon(10, 10, 20, 20)), ring(*polygon(20, 20, 20, 20))
    assert pixel_area(Polygons([ring(*BOW_TIE)]), size) == 200
    assert pixel_area(Polygons([square]), size) == 400
    assert pixel_area(Polygons([square, square]), size) == 400
    assert pixel_area(Polygons([square, shifted]), size) == 700
    assert pixel_area(Polygons([ring(*polygon(50, 50, 40, 40))]), size) == 100


def check(make_folder: MakeFolder, segmentation: Any, **changes: Any) -> tuple[Report, list[tuple[str, str]]]:
    """Check one object beside a valid one (image 200 px wide, 100 high); return report and mask warnings."""
    objects = [annotation(1, category_id=90), annotation(2, segmentation=segmentation, **changes)]
    for split in ("train", "val"):
        folder = make_folder(objects if split == "train" else objects[:1], {5: (100, 200)}, split=split)
    report = check_folder(folder)
    kinds = {"tiny object", "self-crossing polygon", "outside the image", "mostly empty mask"}
    return report, [(p.kind, p.message) for p in report.problems if p.kind in kinds]


def box(x: float, y: float, width: float, height: float) -> dict[str, Any]:
    return {"segmentation": [polygon(x, y, width, height)], "bbox": [x, y, width, height]}


def mask(*boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    pixels = np.zeros((100, 200), dtype=bool)
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = True
    return run_lengths(pixels)


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "sound": (box(30, 30, 40, 20), []),
    "bow tie": ({"segmentation": [BOW_TIE], "bbox": [4, 6, 20, 20]}, ["self-crossing polygon"]),
    "second part crosses": (
        {"segmentation": [polygon(40, 40, 9, 9), BOW_TIE], "bbox": [4, 6, 45, 43]},
        ["self-crossing polygon"],
    ),
    "parts that overlap": (
        {"segmentation": [polygon(10, 10, 20, 20), polygon(15, 15, 20, 20)], "bbox": [10, 10, 25, 25]},
        [],
    ),
    "outside by a rounding": (box(160, 10, 41.5, 20), []),
    "far outside, right": (box(160, 10, 70, 20), ["outside the image"]),
    "far outside, above": (box(10, -15, 20, 30), ["outside the image"]),
    "one part outside": (
        {"segmentation": [polygon(10, 10, 20, 20), polygon(205, 10, 9, 9)], "bbox": [10, 10, 204, 20]},
        ["outside the image"],
    ),
    "specks far apart": (
        {"segmentation": mask((5, 5, 2, 2), (150, 80, 2, 2)), "bbox": [5, 5, 147, 77]},
        ["mostly empty mask"],
    ),
    "speck in its box": (
        {"segmentation": mask((40, 40, 3, 3)), "bbox": [10, 10, 80, 80]},
        ["mostly empty mask"],
    ),
    "a ring": (
        {
            "segmentation": [[*polygon(10, 10, 80, 80), 10, 10, 14, 14, 14, 86, 86, 86, 86, 14, 14, 14]],
            "bbox": [10, 10, 80, 80],
        },
        [],
    ),
    "one pixel": ({"segmentation": mask((40, 40, 1, 1)), "bbox": [40, 40, 1, 1]}, ["tiny object"]),
    "cut off to nothing but a corner": (box(197, 97, 60, 60), ["outside the image"]),
}


@pytest.mark.parametrize("case", CASES)
def test_reports_doubtful_masks(make_folder: MakeFolder, case: str) -> None:
    changes, kinds = CASES[case]
    report, found = check(make_folder, **changes)
    assert [kind for kind, _ in found] == kinds
    assert not report.fatal
    for _, message in found:
        assert "train.json: annotation 2 of image 5 (5.png) has" in message or "reaches" in message
        assert "\n" not in message
    examples = {
        kind: [(split, e.image_id, e.name) for split, e in report.examples[kind]] for kind in report.examples
    }
    assert examples == {kind: [("train", 5, "annotation 2")] for kind in kinds}


def test_messages(make_folder: MakeFolder) -> None:
    assert "its mask has 200 pixels" in check(make_folder, [BOW_TIE], bbox=[4, 6, 20, 20])[1][0][1]
    assert "reaches 30 px beyond its image [100, 200]" in check(make_folder, **box(160, 10, 70, 20))[1][0][1]
    found = check(make_folder, mask((40, 40, 3, 3)), bbox=[10, 10, 30, 30])[1]
    assert "has a mask of 9 pixels, 1.0 % of its box" in found[0][1]


def test_bow_tie_is_counted_by_its_pixels(make_folder: MakeFolder) -> None:
    """The shoelace formula gives 0, which would count as small."""
    large = [0.0, 0, 90, 90, 90, 0, 0, 90]
    report, _ = check(make_folder, [large], bbox=[0, 0, 90, 90])
    assert report.splits["train"].counts == {"disc": (0, 1, 0), "star": (1, 0, 0)}


def test_object_outside_its_image_is_fatal(make_folder: MakeFolder) -> None:
    report, found = check(make_folder, [polygon(230, 10, 20, 20)], bbox=[190, 10, 20, 20])
    assert report.fatal
    assert [p.kind for p in report.problems if p.fatal] == ["empty mask"]
    assert found == []


def test_invalid_boxes_are_ignored(make_folder: MakeFolder) -> None:
    for wrong in ([1, 2, 3], "box", None, [0, 0, "a", 1], [0, 0, float("nan"), 1]):
        item = check_masks.CheckedObject(
            Polygons([ring(*polygon(4, 6, 10, 8))]), 0, 5, (100, 200), "x", wrong
        )
        assert list(check_masks.mask_faults(item, 80, False, item.mask.bounds())) == []
