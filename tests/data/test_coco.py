from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedmask.config import DataConfig
from embedmask.data.coco import CocoInstances, open_train_val
from embedmask.data.transforms import EvalTransform
from embedmask.errors import BadInput

from .conftest import MakeFolder, annotation, polygon, run_lengths


def test_items_have_labels_boxes_and_masks(make_folder: MakeFolder) -> None:
    objects = [
        annotation(1),
        annotation(2, category_id=90, segmentation=[polygon(20, 30, 5, 6)], bbox=[20, 30, 5, 6]),
    ]
    dataset = CocoInstances.open(make_folder(objects), "train")
    assert dataset.class_names == ["disc", "star"]  # by ascending id, not by the order of the file
    assert dataset.category_ids == [7, 90]
    image, target = dataset[0]
    assert image.shape == (3, 40, 30)
    assert image.dtype == torch.uint8
    assert target.labels.tolist() == [0, 1]
    assert target.labels.dtype == torch.int64
    assert target.boxes.tolist() == [[4, 6, 14, 14], [20, 30, 25, 36]]
    assert target.boxes.dtype == torch.float32
    assert target.dense_masks().shape == (2, 40, 30)
    assert target.dense_masks().dtype == torch.bool
    assert target.dense_masks()[0].nonzero().tolist() == [[y, x] for y in range(6, 14) for x in range(4, 14)]
    assert target.image_id == 5
    target.validate(num_classes=2)


def test_all_forms_of_segmentation_give_the_same_mask(make_folder: MakeFolder) -> None:
    mask = np.zeros((40, 30), dtype=bool)
    mask[6:14, 4:14] = True
    halves = [polygon(4, 6, 5, 8), polygon(9, 6, 5, 8)]
    kinds = [[polygon(4, 6, 10, 8)], halves, run_lengths(mask), run_lengths(mask, compressed=False)]
    objects = [annotation(i, segmentation=kind) for i, kind in enumerate(kinds)]
    _, target = CocoInstances.open(make_folder(objects), "train")[0]
    assert len(target) == 4
    for painted in target.dense_masks():
        np.testing.assert_array_equal(painted.numpy(), mask)


def test_items_without_crowds_and_without_objects(make_folder: MakeFolder) -> None:
    crowd = annotation(2, iscrowd=1, segmentation=run_lengths(np.ones((40, 30), dtype=bool)))
    sizes = {9: (12, 8), 5: (40, 30), 3: (10, 10)}
    dataset = CocoInstances.open(make_folder([annotation(1), crowd], sizes), "train")
    assert dataset.image_ids == [9, 5, 3]
    assert dataset.sizes == [(12, 8), (40, 30), (10, 10)]
    assert [len(dataset[i][1]) for i in range(3)] == [0, 1, 0]
    target = dataset[0][1]
    assert target.boxes.shape == (0, 4)
    assert target.labels.shape == (0,)
    assert target.dense_masks().shape == (0, 12, 8)
    target.validate(num_classes=2)
    assert len(dataset) == 3
    assert dataset[-1][1].image_id == 3
    with pytest.raises(IndexError):
        dataset[3]


def test_many_objects(make_folder: MakeFolder) -> None:
    spots = [(x, y) for y in range(0, 90, 3) for x in range(0, 90, 3)]
    objects = [
        annotation(i, segmentation=[polygon(x, y, 1, 1)], bbox=[x, y, 1, 1]) for i, (x, y) in enumerate(spots)
    ]
    _, target = CocoInstances.open(make_folder(objects, {5: (90, 90)}), "train")[0]
    assert len(target) == 900
    assert target.boxes.tolist() == [[x, y, x + 1, y + 1] for x, y in spots]
    assert (target.dense_masks().sum((1, 2)) == 1).all()


def test_dataset_can_be_pickled(make_folder: MakeFolder) -> None:
    dataset = CocoInstances.open(make_folder([annotation()]), "train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0][1].dense_masks(), dataset[0][1].dense_masks())
    assert copy.class_names == dataset.class_names


def change(content: dict[str, Any], key: str, **changes: Any) -> None:
    content[key][0].update(changes)


BROKEN: dict[str, tuple[Any, str]] = {
    "missing image": (lambda c: change(c, "annotations", image_id=77), r"annotation 1 names image 77"),
    "missing category": (lambda c: change(c, "annotations", category_id=1), r"1 of image 5 .*category 1"),
    "image id as text": (lambda c: change(c, "annotations", image_id="5"), r"names image '5'"),
    "two points": (
        lambda c: change(c, "annotations", segmentation=[[1, 2, 3, 4]]),
        r"annotation 1 of image 5 \(5.png\).*2 points",
    ),
    "no segmentation": (lambda c: c["annotations"][0].pop("segmentation"), r"no segmentation"),
    "other size": (
        lambda c: change(c, "annotations", segmentation=run_lengths(np.ones((30, 40), bool))),
        r"annotation 1 of image 5 .*size \[30, 40\].*\[40, 30\]",
    ),
    "not an object": (lambda c: c["annotations"].append(3), r"annotation 1 of the list"),
    "image id twice": (lambda c: c["images"].append(c["images"][0]), r"image 5 is listed twice"),
    "no file name": (lambda c: c["images"][0].pop("file_name"), r"image 5 needs a 'file_name'"),
    "no size": (lambda c: c["images"][0].pop("height"), r"image 5 .*'height'"),
    "zero size": (lambda c: change(c, "images", width=0), r"above 0"),
    "no image id": (lambda c: c["images"][0].pop("id"), r"image 0 of the list"),
    "missing file": (lambda c: change(c, "images", file_name="gone.png"), r"gone\.png: no such file"),
    "no images": (lambda c: c.update(images=[]), r"'images' is empty"),
    "no categories": (lambda c: c.update(categories=[]), r"'categories' is empty"),
    "category id twice": (lambda c: c["categories"].append(c["categories"][0]), r"category 2 .*has id 90"),
    "category without name": (lambda c: c["categories"][1].pop("name"), r"category 1 of the list needs"),
    "key missing": (lambda c: c.pop("annotations"), r"no list 'annotations'"),
    "images not a list": (lambda c: c.update(images={"a": 1}), r"no list 'images'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_raises_on_broken_annotations(make_folder: MakeFolder, case: str) -> None:
    spoil, message = BROKEN[case]
    folder = make_folder([annotation()])
    content = json.loads((folder / "train.json").read_text())
    spoil(content)
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match=message) as caught:
        CocoInstances.open(folder, "train")
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"null", b"[" * 100_000])
def test_raises_on_files_that_are_not_annotations(make_folder: MakeFolder, content: bytes) -> None:
    folder = make_folder([])
    (folder / "train.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"train\.json: (not JSON|has no list)") as caught:
        CocoInstances.open(folder, "train")
    assert "\n" not in str(caught.value)


def test_raises_on_damaged_image(make_folder: MakeFolder) -> None:
    dataset = CocoInstances.open(make_folder([annotation()]), "train")
    path = dataset.image_path(0)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BadInput, match=r"5\.png"):
        dataset[0]


def test_training_without_empty_images(make_folder: MakeFolder) -> None:
    """As the authors: images without objects, or with crowds alone, are no training images; val keeps them."""
    crowd = annotation(2, 9, iscrowd=1, segmentation=run_lengths(np.ones((12, 8), dtype=bool)))
    sizes = {9: (12, 8), 5: (40, 30), 3: (10, 10)}
    folder = make_folder([annotation(1), crowd], sizes)
    make_folder([annotation(1), crowd], sizes, split="val")
    for keep_empty, expected in ((True, [9, 5, 3]), (False, [5])):
        config = DataConfig(keep_empty=keep_empty)
        train, val = open_train_val(folder, config, EvalTransform.full_size())
        assert (train.image_ids, val.image_ids) == (expected, [9, 5, 3])
        assert ("; 2 images without objects left out" in train.layout) is not keep_empty
        assert [len(train[i][1]) > 0 for i in range(len(train))].count(True) == 1
    assert train.fingerprint()["images"] == 1


def test_images_of_rare_values_are_repeated(make_folder: MakeFolder) -> None:
    """With 9, 3 and 1 images of a value: sqrt(9 / 3) rounds to 2, sqrt(9 / 1) is 3; val stays as it is."""
    sizes = dict.fromkeys(range(1, 14), (40, 30))
    objects = [annotation(1), annotation(2, 10)]
    folders = [make_folder(objects, sizes, split=split) for split in ("val", "train")]
    for split in ("train", "val"):
        file = folders[0] / f"{split}.json"
        content = json.loads(file.read_text())
        for image in content["images"]:
            image["stain"] = "a" if image["id"] <= 9 else 7 if image["id"] <= 12 else None
        file.write_text(json.dumps(content))
    config = DataConfig(balance="stain")
    train, val = open_train_val(folders[0], config, EvalTransform.full_size())
    assert sorted(train.image_ids) == sorted([*range(1, 10), *[10, 11, 12] * 2, *[13] * 3])
    assert val.image_ids == list(range(1, 14))
    assert train.layout.endswith("; balanced: 9 of a, 6 of 7, 3 of null")
    assert train[0][0].shape == (3, 40, 30)
    equal = DataConfig(balance="stain", balance_power=1)
    train, _ = open_train_val(folders[0], equal, EvalTransform.full_size())
    assert train.layout.endswith("; balanced: 9 of a, 9 of 7, 9 of null")
    filtered = DataConfig(balance="stain", image_filter="stain=7")
    assert open_train_val(folders[0], filtered, EvalTransform.full_size())[0].image_ids == [10, 11, 12]
    with pytest.raises(BadInput, match=r"data\.balance color: no image of .* has this key \(keys: .*stain"):
        open_train_val(folders[0], DataConfig(balance="color"), EvalTransform.full_size())


def test_raises_on_train_without_objects(make_folder: MakeFolder) -> None:
    mask = run_lengths(np.ones((40, 30), dtype=bool))
    for objects in ([], [annotation(1, iscrowd=1, segmentation=mask)]):
        make_folder([annotation(1)], split="val")
        folder = make_folder(objects, split="train")
        for keep_empty in (False, True):
            with pytest.raises(BadInput, match=r"train\.json: train has no objects other than crowds"):
                open_train_val(folder, DataConfig(keep_empty=keep_empty), EvalTransform.full_size())


def test_raises_on_image_of_another_size(make_folder: MakeFolder) -> None:
    dataset = CocoInstances.open(make_folder([annotation()]), "train")
    Image.new("RGB", (30, 41)).save(dataset.image_path(0))
    with pytest.raises(BadInput, match=r"5\.png: is \(41, 30\).*says \(40, 30\) for image 5"):
        dataset[0]


@pytest.mark.parametrize("annotated_upright", [True, False])
def test_images_with_exif_rotation_follow_their_annotations(
    make_folder: MakeFolder, annotated_upright: bool
) -> None:
    stored = np.zeros((30, 40, 3), dtype=np.uint8)
    stored[:10] = 255  # the top as stored is the right side once upright
    size = (40, 30) if annotated_upright else (30, 40)
    folder = make_folder([], {5: size})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(folder / "images" / "5.png", exif=exif)
    image, _ = CocoInstances.open(folder, "train")[0]
    assert image.shape == (3, *size)
    bright = image[:, :, -10:] if annotated_upright else image[:, :10]
    assert (bright == 255).all()
    assert int(image.sum()) == int(stored.sum())


@pytest.mark.parametrize(
    ("name", "images", "objects"),
    [("nuclei", (464, 100), (20072, 4799)), ("coco-mini", (80, 80), (699, 804))],
)
def test_loads_real_data_sets(
    shared: Path, name: str, images: tuple[int, int], objects: tuple[int, int]
) -> None:
    for split, num_images, num_objects in zip(("train", "val"), images, objects, strict=True):
        dataset = CocoInstances.open(shared / "data" / name, split)  # type: ignore[arg-type]
        assert len(dataset) == num_images
        assert sum(len(dataset.annotations(i)) for i in range(len(dataset))) == num_objects
        for index in range(0, num_images, num_images // 5):
            image, target = dataset[index]
            assert tuple(image.shape[-2:]) == dataset.sizes[index]
            assert len(target) == len(dataset.annotations(index))
            target.validate(num_classes=len(dataset.class_names))
