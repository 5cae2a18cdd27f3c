from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedmask.data.coco import CocoInstances, check_same_classes
from embedmask.data.layouts import find_split
from embedmask.data.problems import Problem
from embedmask.data.segmentation import Polygons
from embedmask.errors import BadInput

SIZE = (40, 30)


def shape(kind: str, points: Any, label: str = "cell", **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, "flags": {}, **more}


def box_mask(x1: int, y1: int, mask: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    corners = [[x1, y1], [x1 + mask.shape[1] - 1, y1 + mask.shape[0] - 1]]
    return shape("mask", corners, mask=base64.b64encode(file.getvalue()).decode())


def write(folder: Path, name: str, shapes: list[Any], encoding: str = "utf-8", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    content = {
        "version": "5.5.0",
        "shapes": shapes,
        "imagePath": f"{name}.png",
        "imageData": "AAAA",
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        **changes,
    }
    file = folder / f"{name}.json"
    file.write_text(
        json.dumps({key: value for key, value in content.items() if value is not None}), encoding=encoding
    )
    return file


POLYGON = shape("polygon", [[2, 2], [12, 2], [12, 8], [2, 8]])


def masks(dataset: CocoInstances, index: int = 0) -> np.ndarray:
    return dataset[index][1].dense_masks().numpy()


def test_every_shape_type(tmp_path: Path) -> None:
    ring = np.ones((6, 8), dtype=bool)
    ring[2:4, 3:5] = False
    shapes = [
        POLYGON,
        shape("rectangle", [[20, 30], [10, 20]]),
        shape("rectangle", [[20, 2], [28, 2], [28, 9], [20, 9]], label="other"),
        shape("circle", [[15, 15], [15, 20]]),
        box_mask(20, 30, ring),
    ]
    write(tmp_path, "a", shapes)
    dataset = CocoInstances.open(tmp_path, "train")
    assert dataset.layout.startswith("LabelMe, ./")
    assert dataset.class_names == ["cell", "other"]
    _, target = dataset[0]
    assert target.labels.tolist() == [0, 0, 1, 0, 0]
    result = masks(dataset)
    expected = np.zeros((5, *SIZE), dtype=bool)
    expected[0, 2:8, 2:12] = True
    expected[1, 20:30, 10:20] = True
    expected[2, 2:9, 20:28] = True
    expected[4, 30:36, 20:28] = ring
    for place in (0, 1, 2, 4):
        np.testing.assert_array_equal(result[place], expected[place])
    assert result[3].sum() == pytest.approx(np.pi * 25, rel=0.05)
    ys, xs = np.nonzero(result[3])
    assert (ys.mean() + 0.5, xs.mean() + 0.5) == pytest.approx((15, 15), abs=0.3)


def test_group_is_one_object(tmp_path: Path) -> None:
    far = [[20, 20], [28, 20], [28, 30], [20, 30]]
    shapes = [
        {**POLYGON, "group_id": 4},
        shape("polygon", far, group_id=4),
        shape("polygon", far, "other", group_id=4),
        {**POLYGON, "group_id": 5},
        {**box_mask(20, 20, np.ones((10, 8), dtype=bool)), "group_id": 5},
    ]
    write(tmp_path, "a", shapes)
    dataset = CocoInstances.open(tmp_path, "train")
    assert dataset[0][1].labels.tolist() == [0, 1, 0]
    assert masks(dataset).sum((1, 2)).tolist() == [60 + 80, 80, 60 + 80]


def test_reports_shapes_without_area_and_images_without_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a",
        [POLYGON, shape("point", [[3, 3]]), shape("line", [[3, 3], [5, 5]]), shape("point", [[1, 1]])],
    )
    write(tmp_path, "b", []).unlink()
    line = "\n".join(CocoInstances.open(tmp_path, "train").warning_lines())
    assert "shapes without an area are left out: 1 line, 2 point" in line
    assert "1 images have no LabelMe file and are left out, among them b.png" in line
    issues: list[Problem] = []
    dataset = CocoInstances(find_split(tmp_path, "train"), on_issue=issues.append)
    assert len(dataset) == 1
    assert [(problem.kind, problem.fatal) for problem in issues] == [
        ("left out", False),
        ("image left out", False),
    ]


@pytest.mark.parametrize("place", ["{}", "annotations/{}", "{}/annotations"])
def test_splits_share_their_classes(tmp_path: Path, place: str) -> None:
    write(
        tmp_path / place.format("train"),
        "a",
        [POLYGON, shape("circle", [[15, 15], [15, 20]], "only in train")],
    )
    write(tmp_path / place.format("val"), "b", [POLYGON])
    train, val = (CocoInstances.open(tmp_path, split) for split in ("train", "val"))  # type: ignore[arg-type]
    check_same_classes(train, val)
    assert [len(train[0][1]), len(val[0][1])] == [2, 1]


@pytest.mark.parametrize(
    "path", ["..\\images\\a.png", "../images/a.png", "C:\\me\\images\\a.png", "a.png", "A.PNG"]
)
def test_images_in_separate_folder(tmp_path: Path, path: str) -> None:
    write(tmp_path / "labels", "a", [POLYGON], imagePath=path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels/a.png").rename(tmp_path / "images/a.png")
    dataset = CocoInstances.open(tmp_path, "train")
    assert len(dataset[0][1]) == 1
    assert dataset.image_path(0).resolve() == (tmp_path / "images/a.png").resolve()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, "a", [shape("polygon", POLYGON["points"], "Zelle ü")], encoding)
    assert CocoInstances.open(tmp_path, "train").class_names == ["Zelle ü"]


def test_files_without_size(tmp_path: Path) -> None:
    write(tmp_path, "a", [POLYGON], imageHeight=None, imageWidth=None)
    assert CocoInstances.open(tmp_path, "train").sizes == [SIZE]


def test_ground_truth_of_evaluator(tmp_path: Path) -> None:
    write(tmp_path, "a", [POLYGON])
    ground_truth = CocoInstances.open(tmp_path, "train").ground_truth
    (mask,) = ground_truth.annotations[0].segmentations
    assert isinstance(mask, Polygons)
    assert mask.parts[0].ravel().tolist() == [2, 2, 12, 2, 12, 8, 2, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagePath": "gone.png"}, r"gone\.png: no such file"),
        ({"imagePath": ""}, r"a\.json: has no imagePath"),
        ({"shapes": "none"}, r"a\.json: lacks the list 'shapes'"),
        (
            {"shapes": [shape("mask", [[1, 1], [3, 3]], mask="?")]},
            r"a\.json: shape 0 \(mask, cell\) cannot be used",
        ),
        ({"shapes": [shape("mask", [[1, 1], [3, 3]])]}, r"shape 0 \(mask, cell\) cannot be used"),
        ({"shapes": [shape("circle", [[1, 1]])]}, r"shape 0 .*a circle has a center and a point on it"),
        ({"shapes": [shape("polygon", [1, 2, 3])]}, r"shape 0 .*its points are not a list of x, y"),
        ({"shapes": [box_mask(28, 2, np.ones((3, 3), bool))]}, r"its mask reaches outside the image"),
        ({"shapes": [box_mask(2, 2, np.zeros((3, 3), bool))]}, r"its mask is empty"),
        (
            {"shapes": [shape("polygon", [[1, 1], [2, 2]])]},
            r"a\.json: shape 0 of image 1 \(a\.png\) has a polygon",
        ),
    ],
)
def test_raises_on_bad_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, "b", [POLYGON])
    write(tmp_path, "a", **{"shapes": [POLYGON], **changes})
    with pytest.raises(BadInput, match=message) as caught:
        CocoInstances.open(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_raises_on_file_that_is_not_json(tmp_path: Path) -> None:
    write(tmp_path, "b", [POLYGON])
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(BadInput, match=r"c\.json: cannot be read as JSON"):
        CocoInstances.open(tmp_path, "train")
