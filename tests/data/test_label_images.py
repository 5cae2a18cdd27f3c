from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from embedmask.data.coco import CocoInstances
from embedmask.data.label_images import label_objects
from embedmask.data.layouts import find_split
from embedmask.data.problems import Problem
from embedmask.errors import BadInput
from embedmask.evaluation.ground_truth import read_ground_truth

from .folders import SCENES, SIZE, write_label_images


@given(
    labels=npst.arrays(
        np.uint16,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.sampled_from([0, 0, 1, 2, 300, 65535]),
    )
)
def test_label_objects_match_pixels(labels: np.ndarray) -> None:
    objects = dict(label_objects(labels))
    assert list(objects) == [value for value in np.unique(labels).tolist() if value]
    for value, mask in objects.items():
        assert mask.size == labels.shape
        np.testing.assert_array_equal(mask.pixels(0, 0, *labels.shape[::-1]), labels == value)
        assert mask.area() == (labels == value).sum()


@pytest.mark.parametrize("split_first", [True, False])
@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [(np.uint8, ".png"), (np.uint16, ".png"), (np.uint8, ".tif"), (np.uint16, ".tiff"), (np.int32, ".tif")],
)
def test_formats_and_folders(tmp_path: Path, dtype: type, suffix: str, split_first: bool) -> None:
    write_label_images(tmp_path, dtype, suffix, split_first)
    dataset = CocoInstances.open(tmp_path, "val")
    assert [len(dataset[i][1]) for i in range(2)] == [1, 3]
    _, target = dataset[1]
    assert [int(mask.sum()) for mask in target.dense_masks()] == [12, 12, 30]  # the first two touch


@pytest.mark.parametrize("ending", ["_masks", "_mask", "_labels"])
def test_name_endings(tmp_path: Path, ending: str) -> None:
    write_label_images(tmp_path)
    for path in list((tmp_path / "val/masks").iterdir()):
        path.rename(path.with_stem(path.stem + ending))
    assert len(CocoInstances.open(tmp_path, "val")[1][1]) == 3


def test_label_images_beside_images(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    for split in SCENES:
        for path in [*(tmp_path / split).glob("*/*.*")]:
            path.rename(tmp_path / split / (path.name if path.suffix == ".png" else f"{path.stem}_masks.tif"))
    dataset = CocoInstances.open(tmp_path, "val")
    assert [dataset.image_path(i).name for i in range(len(dataset))] == ["c.png", "d.png"]
    assert [len(dataset[i][1]) for i in range(2)] == [1, 3]


def test_pieces_with_one_label_are_one_object(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    labels = np.zeros(SIZE, dtype=np.uint16)
    labels[2:5, 3:6] = labels[20:25, 10:20] = 40000
    Image.fromarray(labels).save(tmp_path / "val/masks/c.tif")
    _, target = CocoInstances.open(tmp_path, "val")[0]
    assert target.boxes.tolist() == [[3, 2, 20, 25]]
    np.testing.assert_array_equal(target.dense_masks()[0].numpy(), labels > 0)


def test_palette_images_are_read_by_index(tmp_path: Path) -> None:
    write_label_images(tmp_path, np.uint8, ".png")
    file = tmp_path / "val/masks/d.png"
    image = Image.open(file).convert("P")
    image.putdata(list(Image.open(file).get_flattened_data()))
    image.putpalette([0, 0, 0] * 256)  # every number black
    image.save(file)
    assert len(CocoInstances.open(tmp_path, "val")[1][1]) == 3


def test_ground_truth_of_evaluator(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    ground_truth = CocoInstances.open(tmp_path, "val").ground_truth
    assert ground_truth.file_names == ["c.png", "d.png"]
    records = [record for own in read_ground_truth(ground_truth).records.values() for record in own]
    assert [record["image_id"] for record in records] == [1, 2, 2, 2]
    assert [record["id"] for record in records] == [1, 2, 3, 4]


def write_rgb(path: Path) -> None:
    Image.new("RGB", SIZE[::-1]).save(path)


def write_fractions(path: Path) -> None:
    Image.fromarray(np.full(SIZE, 0.5, dtype=np.float32)).save(path)


def write_negative(path: Path) -> None:
    Image.fromarray(np.full(SIZE, -1, dtype=np.int32)).save(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (write_rgb, "is not a label image; write one whole number per pixel"),
        (write_fractions, "is not a label image"),
        (write_negative, "is not a label image"),
        (truncate, "cannot be read as an image"),
        (Path.unlink, r"has no label image c\.png or \.tif"),
    ],
)
def test_raises_on_bad_label_images(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    write_label_images(tmp_path)
    spoil(tmp_path / "val/masks/c.tif")
    with pytest.raises(BadInput, match=message) as caught:
        CocoInstances.open(tmp_path, "val")
    assert "val/masks" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_raises_on_label_image_without_image(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    (tmp_path / "val/images/c.png").unlink()
    with pytest.raises(BadInput, match=r"masks/c\.tif: has no image of that name in .*images; add it"):
        CocoInstances.open(tmp_path, "val")


def test_raises_on_two_images_with_one_stem(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    (tmp_path / "val/images/c.jpg").write_bytes(b"")
    with pytest.raises(BadInput, match=r"c\.png: has the name of c\.jpg"):
        CocoInstances.open(tmp_path, "val")


def test_raises_on_size_mismatch(tmp_path: Path) -> None:
    write_label_images(tmp_path)
    Image.fromarray(np.ones((40, 31), dtype=np.uint16)).save(tmp_path / "val/masks/c.tif")
    with pytest.raises(BadInput, match=r"c\.png: is \(40, 30\) .*masks says \(40, 31\)"):
        CocoInstances.open(tmp_path, "val")[0]


def test_reports_foreground_masks(tmp_path: Path) -> None:
    """Masks of foreground and background only would merge objects that touch."""
    write_label_images(tmp_path)
    for name in SCENES["val"]:
        file = tmp_path / f"val/masks/{name}.tif"
        Image.fromarray((np.asarray(Image.open(file)) > 0) * np.uint8(255)).save(file)
    issues: list[Problem] = []
    dataset = CocoInstances(find_split(tmp_path, "val"), on_issue=issues.append)
    assert [len(dataset.annotations(i)) for i in range(2)] == [1, 1]
    assert [(problem.kind, problem.fatal) for problem in issues] == [("one label only", False)]
