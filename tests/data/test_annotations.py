from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedmask.config import DataConfig
from embedmask.data.annotations import Annotations, PackedAnnotations, check_annotations, read_coco
from embedmask.data.coco import CocoInstances
from embedmask.data.problems import Problem
from embedmask.data.segmentation import Polygons, RunLengths
from embedmask.data.transforms import TrainTransform
from embedmask.errors import BadInput

from .conftest import MakeFolder, annotation, polygon, run_lengths


def test_packed_annotations_come_back() -> None:
    rng = np.random.default_rng(0)
    items = []
    for number in range(20):
        masks: list[Polygons | RunLengths] = []
        for kind in rng.integers(0, 2, rng.integers(0, 4)):
            if kind:
                parts = [rng.uniform(-5, 90, (rng.integers(3, 9), 2)) for _ in range(rng.integers(1, 4))]
                masks.append(Polygons([part.astype(np.float32) for part in parts]))
            else:
                masks.append(RunLengths(np.array([0, 30, 40]), (7, 10)))
        items.append(Annotations(rng.integers(0, 80, len(masks)), masks, (7, 10), number * 7))
    packed = PackedAnnotations(items)
    assert len(packed) == 20
    for index in (*range(20), -1):
        found, expected = packed[index], items[index]
        assert (found.size, found.image_id) == (expected.size, expected.image_id)
        np.testing.assert_array_equal(found.labels, expected.labels)
        for ours, theirs in zip(found.segmentations, expected.segmentations, strict=True):
            assert type(ours) is type(theirs)
            assert ours.bounds() == theirs.bounds()
            if isinstance(ours, Polygons) and isinstance(theirs, Polygons):
                for part, other in zip(ours.parts, theirs.parts, strict=True):
                    np.testing.assert_array_equal(part, other)
            elif isinstance(ours, RunLengths) and isinstance(theirs, RunLengths):
                np.testing.assert_array_equal(ours.counts, theirs.counts)
                assert ours.size == theirs.size


def test_no_annotations_at_all() -> None:
    assert len(PackedAnnotations([])) == 0


def crowded_content(images: int, objects: int, points: int) -> dict[str, Any]:
    angles = np.linspace(0, 6, points)
    circle = np.stack((40 + 20 * np.cos(angles), 40 + 20 * np.sin(angles)), axis=1).ravel().tolist()
    annotations = [
        annotation(i, image_id=i % images, segmentation=[circle], bbox=[20, 20, 40, 40])
        for i in range(images * objects)
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 90, "width": 90} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "disc"}],
    }


def test_memory_is_that_of_the_numbers(tmp_path: Path) -> None:
    """Four bytes a number and a little an object; lists would take 32 a number, arrays of their own 200 an object."""
    file = tmp_path / "train.json"
    images, objects, points = 200, 8, 30
    file.write_text(json.dumps(crowded_content(images, objects, points)))
    read_coco(file)  # what is imported or cached once is not counted
    tracemalloc.start()
    content = check_annotations(read_coco(file), file)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content.annotations[3]) == objects
    assert kept < images * (objects * (4 * 2 * points + 60) + 700)
    assert peak < 4 * file.stat().st_size + 2e6


def test_a_picture_of_1964_objects(make_folder: MakeFolder) -> None:
    spots = [(2 * (i % 45), 2 * (i // 45)) for i in range(1964)]
    objects = [
        annotation(i, segmentation=[polygon(x, y, 2, 2)], bbox=[x, y, 2, 2]) for i, (x, y) in enumerate(spots)
    ]
    folder = make_folder(objects, {5: (88, 90)})
    whole = CocoInstances.open(folder, "train")[0][1]
    assert len(whole) == 1964
    assert (whole.dense_masks().sum(0) <= 1).all()
    config = DataConfig(short_sides=(), crop_size=32, flip_horizontal=0)
    image, part = CocoInstances.open(folder, "train", TrainTransform(config)).sample(
        0, torch.Generator().manual_seed(0)
    )
    assert image.shape == (3, 32, 32)
    assert 200 <= len(part) <= 17 * 17
    assert part.dense_masks().shape == (len(part), 32, 32)


DEGENERATE: dict[str, dict[str, Any]] = {
    "degenerate box": {"bbox": [4, 6, 0, 8]},
    "degenerate polygon": {"segmentation": [[1, 2, 3, 4]]},
    "empty mask": {"segmentation": run_lengths(np.zeros((40, 30), dtype=bool))},
    "outside": {"segmentation": [[30, 6, 35, 6, 35, 9]]},
}
LINES = [
    [[4, 6, 14, 6, 9, 6]],
    [[4, 6, 4, 14, 4, 9, 4, 12]],
    [[4, 6, 14.1, 16.1, 9.3, 11.3, 7.7, 9.7]],
    [[4, 6, 4, 6, 4, 6]],
    [[4, 6, 14, 6, 9, 6], [4, 6, 4, 14, 4, 9]],
]


@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_objects_are_refused_or_dropped(make_folder: MakeFolder, kind: str) -> None:
    crowd = annotation(3, iscrowd=1, segmentation=run_lengths(np.ones((40, 30), dtype=bool)))
    folder = make_folder([annotation(2), annotation(1, **DEGENERATE[kind]), crowd])
    with pytest.raises(BadInput, match=r"annotation 1 of image 5 .* --augment\.degenerate drop$"):
        CocoInstances.open(folder, "train")
    dataset = CocoInstances.open(folder, "train", degenerate="drop")
    assert len(dataset[0][1]) == 1
    assert dataset.layout.endswith("; 1 degenerate objects of train left out")
    truth = dataset.ground_truth
    assert isinstance(truth, dict)
    assert [entry["id"] for entry in truth["annotations"]] == [2, 3]
    assert [len(truth["images"]), len(truth["categories"])] == [1, 2]


@pytest.mark.parametrize("parts", LINES)
def test_polygons_on_a_line_have_no_area(make_folder: MakeFolder, parts: list[list[float]]) -> None:
    folder = make_folder([annotation(1, segmentation=parts)])
    with pytest.raises(BadInput, match=r"annotation 1 .*polygon without area"):
        CocoInstances.open(folder, "train")


@pytest.mark.parametrize(
    "parts",
    [
        [[0, 0, 10, 10, 10, 0, 0, 10]],  # a bow tie, whose halves cancel out
        [[4, 6, 14, 6, 9, 6], polygon(4, 6, 3, 3)],  # a line beside an area
        [[4, 6, 4, 6, 4, 6, 9, 9, 4, 12]],  # begins with one point three times
        [[4, 6, 24, 6, 24, 6.01]],  # thin
    ],
)
def test_polygons_with_little_area_are_kept(make_folder: MakeFolder, parts: list[list[float]]) -> None:
    dataset = CocoInstances.open(make_folder([annotation(1, segmentation=parts)]), "train")
    assert len(dataset.annotations(0)) == 1


def test_dropping_forgives_nothing_else(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(1, category_id=1)])
    with pytest.raises(BadInput, match="category 1"):
        CocoInstances.open(folder, "train", degenerate="drop")


def test_ground_truth_is_the_file_where_nothing_was_dropped(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation()])
    assert CocoInstances.open(folder, "train", degenerate="drop").ground_truth == folder / "train.json"


def test_all_problems_are_noted_and_the_rest_is_read(make_folder: MakeFolder) -> None:
    folder = make_folder(
        [
            annotation(1),
            annotation(1),
            annotation(2, image_id=9),
            annotation(3, category_id=9),
            annotation(4, bbox=[1, 1, 0, 0], segmentation=[[1, 2, 3, 4]]),
            annotation([5]),  # type: ignore[arg-type]
            3,  # type: ignore[list-item]
            annotation(6),
            annotation(7, iscrowd="0"),
        ]
    )
    content = json.loads((folder / "train.json").read_text())
    content["images"] += [{"id": 5, "file_name": "x", "height": 1, "width": 1}, {"id": 6}, {}]
    content["categories"] += [{"id": 7, "name": "again"}, {"name": "nobody"}]
    noted: list[Problem] = []
    file = check_annotations(content, folder / "train.json", noted.append)
    assert [problem.kind for problem in noted] == [
        "duplicate id",
        "bad record",
        "duplicate id",
        "bad record",
        "bad record",
        "duplicate id",
        "unknown image",
        "unknown category",
        "degenerate box",
        "degenerate polygon",
        "bad record",
        "bad record",
        "bad record",
    ]
    assert len(file.annotations[0]) == 2
    assert file.dropped == [1, 2, 3, 4, 5, 6, 8]
    assert file.class_names == ["disc", "star"]
