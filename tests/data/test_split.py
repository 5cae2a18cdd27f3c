"""Data sets without a val split: val is held out in memory or written as a new data set."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedmask.config import Recipe
from embedmask.config.data import Exif
from embedmask.config.reading import ReadOptions
from embedmask.data.coco import CocoInstances
from embedmask.data.split import write_split
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.training.data_module import TrainValDataModule

from .conftest import polygon

SIZE = (40, 30)


def write_set(folder: Path, count: int = 10, name: str = "train.json", images: str = "images") -> Path:
    """Write images of noise, each with a rectangle of a different width, every second one with a crowd as well."""
    (folder / images).mkdir(parents=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / images / f"{number}.png")
        records.append(
            {
                "id": 7 * number,
                "file_name": f"{number}.png",
                "height": SIZE[0],
                "width": SIZE[1],
                "site": number % 2,
            }
        )
        for crowd in range(1 + number % 2):
            entry = {"image_id": 7 * number, "category_id": 4, "iscrowd": crowd, "area": (number + 2) * 5.0}
            entry |= {"bbox": [2, 3, number + 2, 5], "segmentation": [polygon(2, 3, number + 2, 5)]}
            annotations.append({"id": len(annotations) + 1, "score": 0.5, **entry})
    content = {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": 4, "name": "disc"}],
        "info": {"year": 1},
    }
    (folder / name).write_text(json.dumps(content))
    return folder


def pixels_of(dataset: CocoInstances) -> dict[bytes, list[float]]:
    """Return the areas of the objects by the pixels of their image."""
    return {
        dataset[i][0].numpy().tobytes(): dataset.annotations(i).known_areas() for i in range(len(dataset))
    }


def state(folder: Path) -> dict[str, Any]:
    return {
        str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_holds_out_val_from_train(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    train, val = (CocoInstances.open(folder, split, val_fraction=0.2) for split in ("train", "val"))  # type: ignore[arg-type]
    assert (len(train), len(val)) == (8, 2)
    both = {**pixels_of(train), **pixels_of(val)}
    assert both == pixels_of(CocoInstances.open(folder, "train"))
    assert len(both) == 10
    assert train.layout == "train.json beside images/; 2 of 10 images held out as val"
    for dataset in (train, val):
        gt = dataset.ground_truth
        assert gt.image_ids == dataset.image_ids
        assert [gt.annotations[i].image_id for i in range(len(dataset))] == dataset.image_ids
        crowds = int(gt.annotations.crowd.sum())
        assert crowds == sum(number // 7 % 2 for number in dataset.image_ids)
        assert CocoEvaluator(gt).class_names == ["disc"]


def test_training_and_evaluation_use_the_same_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    recipe = Recipe.from_mapping({"data": {"val_fraction": 0.3, "image_filter": "site=1"}}, where="test")
    pair = TrainValDataModule(folder, recipe)
    val = CocoInstances.open(folder, "val", image_filter="site=1", val_fraction=0.3)
    assert pair.val_set.image_ids == val.image_ids
    assert sorted(pair.train_set.image_ids + val.image_ids) == [7, 21, 35, 49, 63]
    # all images are split first: no filter of another command moves images between train and val
    whole = CocoInstances.open(folder, "val", val_fraction=0.3)
    assert val.image_ids == [image_id for image_id in whole.image_ids if image_id in (7, 21, 35, 49, 63)]
    assert val.layout.endswith(f"; 3 of 10 images held out as val; {len(val)} images of val with site=1")
    assert type(pair.train_set.transform).__name__ == "TrainTransform"
    assert type(pair.val_set.transform).__name__ == "EvalTransform"


def test_raises_on_existing_val_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    (folder / "val.json").write_text((folder / "train.json").read_text())
    for split in ("train", "val"):
        with pytest.raises(
            BadInput,
            match="already has a val split, so nothing is held out; use it, or remove it first",
        ):
            CocoInstances.open(folder, split, val_fraction=0.2)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="already has a val split"):
        write_split(folder, tmp_path / "../new", val=0.2)


@pytest.mark.parametrize("copy", [False, True])
def test_written_split_equals_the_held_out_one(tmp_path: Path, copy: bool) -> None:
    folder, out = write_set(tmp_path / "set"), tmp_path / "new"
    before = state(folder)
    report = write_split(folder, out, val=0.2, copy=copy)
    assert state(folder) == before
    assert report.counts == {"train": 8, "val": 2}
    assert report.linked == (0 if copy else 10)
    assert sorted(path.name for path in out.iterdir()) == ["images", "train.json", "val.json"]
    for split in ("train", "val"):
        written = CocoInstances.open(out, split)  # type: ignore[arg-type]
        held = CocoInstances.open(folder, split, val_fraction=0.2)  # type: ignore[arg-type]
        assert written.layout == f"{split}.json beside images/"
        assert pixels_of(written) == pixels_of(held)
        content = json.loads((out / f"{split}.json").read_text())
        assert content["info"] == {"year": 1}
        assert all(entry["score"] == 0.5 for entry in content["annotations"])
        source = json.loads((folder / "train.json").read_text())
        assert content["images"] == [image for image in source["images"] if image["id"] in held.image_ids]
        assert content["annotations"] == [e for e in source["annotations"] if e["image_id"] in held.image_ids]


def test_records_are_copied_from_a_file_of_any_case(tmp_path: Path) -> None:
    folder, out = write_set(tmp_path / "set"), tmp_path / "new"
    source = json.loads((folder / "train.json").read_text())
    (folder / "train.json").rename(folder / "instances.JSON")
    write_split(folder, out, val=0.2)
    parts = [json.loads((out / f"{split}.json").read_text()) for split in ("train", "val")]
    written = [entry for part in parts for entry in part["annotations"]]
    assert sorted(written, key=lambda entry: entry["id"]) == source["annotations"]
    assert sum(entry["iscrowd"] for entry in written) == 5


def test_copies_images_that_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    folder = write_set(tmp_path / "set")
    assert write_split(folder, tmp_path / "new", val=0.2).linked == 0
    assert len(list((tmp_path / "new/images").iterdir())) == 10


def test_writes_a_test_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", 20, "annotations/instances_default.json".replace("annotations/", ""))
    report = write_split(folder, tmp_path / "new", val=0.2, test=0.1)
    assert report.counts == {"train": 14, "val": 4, "test": 2}
    sets = [pixels_of(CocoInstances.open(tmp_path / "new", split)) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sum(map(len, sets)) == len({key for pixels in sets for key in pixels}) == 20


def test_copies_an_existing_test_split(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    write_set(tmp_path / "other", 3, "test.json", "images")
    (folder / "test.json").write_text((tmp_path / "other/test.json").read_text())
    assert write_split(folder, tmp_path / "new", val=0.2).counts == {"train": 8, "val": 2, "test": 3}
    with pytest.raises(BadInput, match="already has a test split, which is copied; omit --test"):
        write_split(folder, tmp_path / "another", val=0.2, test=0.1)
    assert not (tmp_path / "another").exists()


def test_test_split_without_annotations_is_left_out(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "annotations").mkdir()
    (folder / "test2017").symlink_to((folder / "images").resolve(), target_is_directory=True)
    content = json.loads((folder / "train.json").read_text())
    del content["annotations"]
    (folder / "annotations/image_info_test2017.json").write_text(json.dumps(content))
    report = write_split(folder, tmp_path / "new", val=0.2)
    assert report.counts == {"train": 8, "val": 2}
    assert report.notes[-1].endswith("image_info_test2017.json: has no annotations, so test is not copied")
    assert not (tmp_path / "new/test.json").exists()


def test_label_stacks_are_split_and_converted_by_their_page(tmp_path: Path) -> None:
    """Page 0 is empty in all images, and has one object; page 1 differs, and has two objects."""
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, SIZE, dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"set/images/{number}.tif", np.stack([np.zeros_like(noise), noise]))
        labels = np.zeros((2, *SIZE), np.uint16)
        labels[0, :5, :5], labels[1, :5, : 5 + number], labels[1, 20:, 20:] = 1, 1, 2
        tifffile.imwrite(tmp_path / f"set/masks/{number}.tif", labels)
    with pytest.raises(BadInput, match="8 images in 1 groups of near-duplicates"):
        write_split(tmp_path / "set", tmp_path / "new", val=0.25)
    options = ReadOptions(page=1)
    report = write_split(tmp_path / "set", tmp_path / "new", val=0.25, options=options)
    assert report.counts == {"train": 6, "val": 2}
    assert report.notes == []
    for split, count in report.counts.items():
        new = CocoInstances.open(tmp_path / "new", split, options=options)
        assert [len(new.annotations(index).labels) for index in range(count)] == [2] * count
    held_out = CocoInstances.open(tmp_path / "set", "val", options=options, val_fraction=0.25)
    new = CocoInstances.open(tmp_path / "new", "val", options=options)
    assert sorted(path.stem for path in map(held_out.image_path, range(2))) == sorted(
        path.stem for path in map(new.image_path, range(2))
    )


def test_warnings_about_the_source_are_reported(tmp_path: Path) -> None:
    """YOLO files don't state the frame of their annotations; the page of stacks was not selected."""
    folder = tmp_path / "set"
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/train/{number}.jpg", exif=exif)
        (folder / f"labels/train/{number}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [disc]\n")
    ambiguous = write_split(folder, tmp_path / "auto", val=0.25)
    assert ambiguous.notes == CocoInstances.open(folder, "train").warning_lines()
    assert len(ambiguous.notes) == 1
    assert "EXIF" in ambiguous.notes[0]
    sizes: dict[Exif, tuple[int, int]] = {"upright": (SIZE[1], SIZE[0]), "stored": SIZE}
    for frame, size in sizes.items():
        assert write_split(folder, tmp_path / frame, val=0.25, exif=frame).notes == []
        new = CocoInstances.open(tmp_path / frame, "train")
        assert new.sizes == [size] * 3
        assert new.warnings == []


def test_numbers_clashing_names(tmp_path: Path) -> None:
    """Images of a YOLO data set may lie in different folders under the same name."""
    for number in range(4):
        place = tmp_path / f"place{number}/images"
        place.mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / ("a.PNG" if number == 3 else "a.png"))
        (tmp_path / f"place{number}/labels").mkdir()
        (tmp_path / f"place{number}/labels/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n" * (number + 1))
    (tmp_path / "set").mkdir()
    paths = [f"../place{number}/images" for number in range(4)]
    (tmp_path / "set/data.yaml").write_text(json.dumps({"names": ["disc"], "train": paths}))
    expected = pixels_of(CocoInstances.open(tmp_path / "set", "train"))
    assert sorted(map(len, expected.values())) == [1, 2, 3, 4]
    write_split(tmp_path / "set", tmp_path / "new", val=0.25)
    train, val = (pixels_of(CocoInstances.open(tmp_path / "new", split)) for split in ("train", "val"))  # type: ignore[arg-type]
    assert {**train, **val} == expected
    names = [path.name.casefold() for path in (tmp_path / "new/images").iterdir()]
    assert sorted(names) == ["a.png", "a_2.png", "a_3.png", "a_4.png"]
    entry = json.loads((tmp_path / "new/train.json").read_text())["annotations"][0]
    assert entry["bbox"] == pytest.approx([3, 4, 12, 16])
    assert entry["area"] == pytest.approx(96)


def test_leaves_no_partial_output(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    with pytest.raises(BadInput, match=r"lies inside .*set, which must not be changed"):
        write_split(folder, folder / "new", val=0.2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(BadInput, match="full: the folder is not empty"):
        write_split(folder, tmp_path / "full", val=0.2)
    for val, test in ((0.0, 0.0), (1.0, 0.0), (0.6, 0.5), (-0.1, 0.0)):
        with pytest.raises(BadInput, match="fractions must be above 0 and below 1 together"):
            write_split(folder, tmp_path / "new", val=val, test=test)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "set"]


def test_drops_degenerate_objects_on_request(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    content = json.loads((folder / "train.json").read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 2, 2, 3, 3]]
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(BadInput, match="polygon without area"):
        write_split(folder, tmp_path / "new", val=0.2)
    report = write_split(folder, tmp_path / "new", val=0.2, degenerate="drop")
    assert "1 degenerate objects of train left out" in report.layout
    count = sum(
        len(json.loads((tmp_path / f"new/{s}.json").read_text())["annotations"]) for s in ("train", "val")
    )
    assert count == len(content["annotations"]) - 1


def test_drops_degenerate_polygons_of_kept_objects(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    content = json.loads((folder / "train.json").read_text())
    triangle = [1.5, 1.25, 9, 1, 9.7, 9.1]
    objects = [entry for entry in content["annotations"] if not entry["iscrowd"]]
    for entry in objects:
        entry["segmentation"] = [triangle, [1, 1, 2, 2]]
    (folder / "train.json").write_text(json.dumps(content))
    report = write_split(folder, tmp_path / "new", val=0.2, degenerate="drop")
    assert f"{len(objects)} degenerate polygons" in report.layout
    for split in ("train", "val"):
        CocoInstances.open(tmp_path / "new", split)  # accepts the written set
        written = json.loads((tmp_path / f"new/{split}.json").read_text())["annotations"]
        assert written
        assert all(entry["segmentation"] == [triangle] for entry in written if not entry["iscrowd"])


def test_raises_on_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such data folder"):
        CocoInstances.open(tmp_path / "nowhere", "val", val_fraction=0.2)
    with pytest.raises(BadInput, match="no such data folder"):
        write_split(tmp_path / "nowhere", tmp_path / "new", val=0.2)
