"""`predict --ids-from`, the hint of a run without detections, and score thresholds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from embedmask.cli import main
from embedmask.data.coco import CocoInstances
from embedmask.errors import BadInput
from embedmask.evaluation.coco import CocoEvaluator
from embedmask.predict.dataset_ids import DatasetIds
from embedmask.predict.sources import find_sources


@pytest.fixture(scope="module")
def renumbered(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the shapes with large image ids and sparse category ids."""
    folder = tmp_path_factory.mktemp("data") / "renumbered"
    shutil.copytree(shapes, folder)
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.json").read_text())
        shift = 10**12 if split == "train" else 2 * 10**12
        for image in content["images"]:
            image["id"] += shift
        for annotation in content["annotations"]:
            annotation["image_id"] += shift
            annotation["category_id"] = 7 * annotation["category_id"]
        for category in content["categories"]:
            category["id"] *= 7
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def predict(source: Path, weights: Path, out: Path, *options: str) -> int:
    common = ["--device", "cpu", "--precision", "float32", "--no-draw"]
    return main(["predict", str(source), "--weights", str(weights), "--out", str(out), *common, *options])


def test_raises_on_copy_of_images_of_two_splits(tmp_path: Path) -> None:
    """Check file names that two splits share, with the same image id and other category ids."""
    for split, category in (("train", 1), ("valid", 5)):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(folder / "1.png")
        content = {
            "images": [{"id": 1, "file_name": "1.png", "width": 20, "height": 20}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": category,
                    "segmentation": [[2, 2, 9, 2, 9, 9]],
                    "iscrowd": 0,
                }
            ],
            "categories": [{"id": category, "name": "disc"}],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    shutil.copytree(tmp_path / "set" / "valid", tmp_path / "copy")
    sources = find_sources([str(tmp_path / "copy" / "1.png")])
    with pytest.raises(BadInput, match="same file name as several images"):
        DatasetIds.read(tmp_path / "set", sources, ["disc"])
    sources = find_sources([str(tmp_path / "set" / "valid" / "1.png")])
    assert DatasetIds.read(tmp_path / "set", sources, ["disc"]) == DatasetIds({"1": 1}, [5])


def test_results_can_be_evaluated(renumbered: Path, weights: Path, tmp_path: Path) -> None:
    """Test the data set's own folder, and copies of its files elsewhere."""
    copies = tmp_path / "copies"
    shutil.copytree(renumbered / "images", copies)
    train = CocoInstances.open(renumbered, "train")
    names = {train.image_path(i).name: image_id for i, image_id in enumerate(train.image_ids)}
    for place in (renumbered / "images", copies):
        out = tmp_path / f"out_{place.name}"
        assert predict(place, weights, out, "--ids-from", str(renumbered)) == 0
        results = json.loads((out / "predictions.json").read_text())
        own = [result for result in results if result["image_id"] in train.image_ids]
        assert len(own) > 0
        assert {result["category_id"] for result in results} <= set(train.category_ids)
        CocoEvaluator(train.ground_truth).add(own)  # raises on unknown ids
        listed = json.loads((out / "images.json").read_text())
        ids = {Path(image["file_name"]).name: image["id"] for image in listed["images"]}
        assert names.items() <= ids.items()
        assert [category["id"] for category in listed["categories"]] == train.category_ids


def test_ids_do_not_change_results(renumbered: Path, weights: Path, tmp_path: Path) -> None:
    assert predict(renumbered / "images", weights, tmp_path / "counted") == 0
    assert predict(renumbered / "images", weights, tmp_path / "own", "--ids-from", str(renumbered)) == 0
    counted, own = (
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("counted", "own")
    )
    dropped = ("image_id", "category_id")
    plain = [[{k: v for k, v in row.items() if k not in dropped} for row in rows] for rows in (counted, own)]
    assert plain[0] == plain[1]
    assert [7 * row["category_id"] for row in counted] == [row["category_id"] for row in own]


def test_raises_on_ids_shared_by_two_splits(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Test splits that both number their images from 1: one alone is unambiguous."""
    assert predict(shapes / "images", weights, tmp_path / "both", "--ids-from", str(shapes)) == 2
    assert "both have image id 1, in two splits; predict the images of one split" in capsys.readouterr().err
    pattern = shapes / "images" / "train_*"
    assert predict(pattern, weights, tmp_path / "one", "--ids-from", str(shapes)) == 0


def test_raises_on_image_of_no_split(
    renumbered: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = tmp_path / "in" / "stranger.png"
    stranger.parent.mkdir()
    shutil.copy(next((renumbered / "images").iterdir()), stranger)
    assert predict(stranger, weights, tmp_path / "out", "--ids-from", str(renumbered)) == 2
    assert "stranger.png: is in no split of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_raises_on_missing_data_set(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(shapes / "images", weights, tmp_path / "out", "--ids-from", str(tmp_path)) == 2
    assert "split" in capsys.readouterr().err


def test_run_without_detections_prints_best_score(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(shapes / "images", weights, tmp_path / "out", "--score-threshold", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("0 objects in ")
    assert lines[-1].startswith("no detections: the best score ")
    best = float(lines[-1].split(" is ")[1].split()[0])
    assert 0 < best < 1
    assert predict(shapes / "images", weights, tmp_path / "some", "--score-threshold", str(0.9 * best)) == 0
    assert "no detections" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["1.5", "-0.1", "nan", "x", "0.3,0.4", "disc=2"])
def test_raises_on_invalid_threshold(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert predict(shapes / "images", weights, tmp_path / "out", f"--score-threshold={text}") == 2
    assert (
        f"--score-threshold must lie between 0 and 1, one number or CLASS=NUMBER,CLASS=NUMBER, got {text}"
        in (capsys.readouterr().err)
    )


def test_raises_on_repeated_class(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(shapes / "images", weights, tmp_path / "out", "--score-threshold=disc=0.2,disc=0.5") == 2
    assert "disc=0.2,disc=0.5: names a class twice" in capsys.readouterr().err


def test_best_score_is_that_of_the_page(
    shapes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        np.asarray(Image.open(path).convert("L")) for path in sorted((shapes / "images").iterdir())[:2]
    )
    stack, alone = tmp_path / "stack.tif", tmp_path / "alone.tif"
    tifffile.imwrite(stack, np.stack([first, second]), photometric="minisblack")
    tifffile.imwrite(alone, second, photometric="minisblack")
    hints = []
    for source, page in ((stack, "1"), (alone, "0"), (stack, "0")):
        words = ("--score-threshold", "1", "--page", page)
        assert predict(source, weights, tmp_path / f"out{len(hints)}", *words) == 0
        hints.append(capsys.readouterr().out.splitlines()[-1].partition(" (")[0])
    assert hints[0].startswith("no detections: the best score is ")
    assert hints[0] == hints[1] != hints[2]


def test_threshold_of_one_class(shapes: Path, weights: Path, tmp_path: Path) -> None:
    """Test that other classes keep the model's threshold, without a limit on detections."""
    names, no_limit = CocoInstances.open(shapes, "train").class_names, "--max-detections=100000"
    assert predict(shapes / "images", weights, tmp_path / "all", no_limit) == 0
    everything = json.loads((tmp_path / "all" / "predictions.json").read_text())
    chosen = everything[0]["category_id"]
    option = f"--score-threshold={names[chosen - 1]}=1"
    assert predict(shapes / "images", weights, tmp_path / "some", option, no_limit) == 0
    some = json.loads((tmp_path / "some" / "predictions.json").read_text())
    assert some == [row for row in everything if row["category_id"] != chosen]
    assert predict(shapes / "images", weights, tmp_path / "wrong", "--score-threshold=stra=1") == 2


def numbered(folder: Path, **splits: dict[int, str]) -> Path:
    """Write a data set of one image per split, with the categories of each split."""
    (folder / "images").mkdir(parents=True)
    for number, (split, categories) in enumerate(splits.items(), start=1):
        Image.new("RGB", (32, 24), (40 * number, 0, 0)).save(folder / f"images/{split}.png")
        image = {"id": number, "file_name": f"{split}.png", "height": 24, "width": 32}
        content = {"images": [image], "annotations": [], "categories": []}
        content["categories"] = [{"id": key, "name": name} for key, name in categories.items()]
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_categories_are_those_of_the_split(tmp_path: Path) -> None:
    one, other = {1: "cat", 2: "dog"}, {1: "dog", 2: "cat"}
    folder = numbered(tmp_path / "set", train=one, val=one, test=other)
    names = ["cat", "dog", "fox", "bird"]
    train, val, test = (find_sources([folder / f"images/{split}.png"]) for split in ("train", "val", "test"))
    assert DatasetIds.read(folder, train, names).categories == [1, 2, 3, 4]
    assert DatasetIds.read(folder, test, names).categories == [2, 1, 3, 4]
    assert DatasetIds.read(folder, [*train, *val], names).images == {"train": 1, "val": 2}
    with pytest.raises(BadInput, match=r"train\.json and .*test\.json have different category ids"):
        DatasetIds.read(folder, [*train, *test], names)


def test_raises_on_two_files_of_one_image(tmp_path: Path) -> None:
    folder = numbered(tmp_path / "set", train={1: "cat"}, val={1: "cat"})
    shutil.copy(folder / "images/train.png", tmp_path / "train.png")
    sources = find_sources([folder / "images/train.png", tmp_path / "train.png"])
    with pytest.raises(BadInput, match=r"both have image id 1; predict one of them"):
        DatasetIds.read(folder, sources, ["cat"])
