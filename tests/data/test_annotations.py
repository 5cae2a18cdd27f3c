from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedmask.config import DataConfig
from embedmask.data.annotations import check_annotations, read_coco
from embedmask.data.coco import CocoInstances
from embedmask.data.problems import Problem
from embedmask.data.transforms import TrainTransform
from embedmask.errors import BadInput
from embedmask.evaluation.ground_truth import read_ground_truth

from .conftest import MakeFolder, annotation, polygon, run_lengths


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


def test_memory_is_close_to_the_size_of_the_arrays(tmp_path: Path) -> None:
    """Arrays take 4 bytes a number and little per object; lists take 32 a number, one array per object 200 bytes."""
    file = tmp_path / "train.json"
    images, objects, points = 200, 8, 30
    file.write_text(json.dumps(crowded_content(images, objects, points)))
    check_annotations(read_coco(file), file)  # warm up, so that imports and caches are not counted
    tracemalloc.start()
    content = check_annotations(read_coco(file), file)
    memory, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content.annotations[3]) == objects
    assert memory < images * (objects * (4 * 2 * points + 60) + 700)
    assert peak < 4 * file.stat().st_size + 2e6


def test_image_with_1964_objects(make_folder: MakeFolder) -> None:
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
def test_refuses_or_drops_degenerate_objects(make_folder: MakeFolder, kind: str) -> None:
    crowd = annotation(3, iscrowd=1, segmentation=run_lengths(np.ones((40, 30), dtype=bool)))
    folder = make_folder([annotation(2), annotation(1, **DEGENERATE[kind]), crowd])
    with pytest.raises(
        BadInput, match=r"annotation 1 of image 5 .* --degenerate drop \(train: --data\.degenerate drop\)$"
    ):
        CocoInstances.open(folder, "train")
    dataset = CocoInstances.open(folder, "train", degenerate="drop")
    assert len(dataset[0][1]) == 1
    assert dataset.layout.endswith("; 1 degenerate objects of train left out")
    gt = read_ground_truth(dataset.ground_truth)
    assert [entry["iscrowd"] for entry in gt.records[5]] == [0, 1]
    assert [list(gt.sizes), list(gt.categories)] == [[5], [7, 90]]


@pytest.mark.parametrize("parts", LINES)
def test_rejects_collinear_polygons(make_folder: MakeFolder, parts: list[list[float]]) -> None:
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
def test_accepts_polygons_with_little_area(make_folder: MakeFolder, parts: list[list[float]]) -> None:
    dataset = CocoInstances.open(make_folder([annotation(1, segmentation=parts)]), "train")
    assert len(dataset.annotations(0)) == 1


def test_drop_does_not_accept_other_problems(make_folder: MakeFolder) -> None:
    folder = make_folder([annotation(1, category_id=1)])
    with pytest.raises(BadInput, match="category 1"):
        CocoInstances.open(folder, "train", degenerate="drop")


def test_reports_all_problems_and_reads_the_rest(make_folder: MakeFolder) -> None:
    folder = make_folder(
        [
            annotation(1),
            annotation(1),
            annotation(2, image_id=9),
            annotation(3, category_id=9),
            annotation(4, segmentation=[[1, 2, 3, 4]]),
            annotation([5]),  # type: ignore[arg-type]
            3,  # type: ignore[list-item]
            annotation(6),
            annotation(7, iscrowd="many"),
            annotation(8, iscrowd=1, segmentation=[], bbox=[1, 1, 0, 0]),
            annotation(9, bbox=[1, 1, 0, 0], area=1e6, segmentation=[polygon(20, 6, 9, 9)]),
        ]
    )
    content = json.loads((folder / "train.json").read_text())
    content["images"] += [{"id": 5, "file_name": "x", "height": 1, "width": 1}, {"id": 6}, {}]
    content["categories"] += [{"id": 7, "name": "again"}, {"name": "unnumbered"}]
    problems: list[Problem] = []
    file = check_annotations(content, folder / "train.json", problems.append)
    assert [problem.kind for problem in problems] == [
        "duplicate id",
        "bad record",
        "duplicate id",
        "bad record",
        "bad record",
        "unknown image",
        "unknown category",
        "degenerate polygon",
        "bad record",
        "bad record",
        "bad record",
        "bad mask",
        "duplicate id",
        "bad area",
        "bad box",
        "object twice",
    ]
    assert [problem.kind for problem in problems if not problem.fatal] == [
        "bad mask",
        "duplicate id",
        "bad area",
        "bad box",
        "object twice",
    ]
    assert len(file.annotations[0]) == 4
    assert file.dropped == [2, 3, 4, 5, 6, 8]
    assert file.class_names == ["disc", "star"]
