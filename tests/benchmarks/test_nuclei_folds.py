"""benchmarks/nuclei_folds.py: division into folds, and the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scripts import load_script

script = load_script("nuclei_folds")


def write_data(folder: Path) -> None:
    """Write 7 images in train and 4 in val: one of another kind, one copied from train to val."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    square = [[2, 2, 9, 2, 9, 9, 2, 9]]
    parts: dict[str, dict[str, list[dict[str, object]]]] = {}
    for split, ids in {"train": range(7), "val": range(7, 11)}.items():
        images = [
            {"id": i, "file_name": f"{i}.png", "width": 20, "height": 16, "kind": "b" if i == 3 else "a"}
            for i in ids
        ]
        objects = [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": square, "iscrowd": 0, "area": 49}
            for i in ids
        ]
        parts[split] = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cell"}]}
    for split, content in parts.items():
        (folder / f"{split}.json").write_text(json.dumps(content))
    for i in range(11):
        pixels = Image.fromarray(rng.integers(0, 256, (16, 20, 3), np.uint8))
        pixels.save(folder / "images" / f"{i}.png")
    (folder / "images" / "10.png").write_bytes((folder / "images" / "0.png").read_bytes())


def test_each_image_is_val_once(tmp_path: Path) -> None:
    write_data(tmp_path / "cells")
    script.write_folds(tmp_path / "cells", "kind=a", tmp_path / "folds", 3)
    held_out = []
    for number in range(3):
        own = tmp_path / "folds" / str(number)
        ids = {}
        for split in ("train", "val"):
            content = json.loads((own / f"{split}.json").read_text())
            ids[split] = [image["id"] for image in content["images"]]
            assert [one["image_id"] for one in content["annotations"]] == ids[split]
            assert all((own / "images" / image["file_name"]).is_file() for image in content["images"])
        assert sorted(ids["train"] + ids["val"]) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
        assert (0 in ids["val"]) == (10 in ids["val"])
        assert len(ids["val"]) in (3, 4)
        held_out += ids["val"]
    assert sorted(held_out) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_table_has_the_spread() -> None:
    rows = [
        {"images": 3, "objects": 9, "metrics": dict.fromkeys(script.METRICS, value)} for value in (0.5, 0.7)
    ]
    lines = script.fold_table(rows)
    assert lines[3].startswith("| 1 | 3 | 9 | 0.700 | 0.700 |")
    assert lines[4].startswith("| mean |  |  | 0.600 |")
    assert lines[5].startswith("| standard deviation |  |  | 0.141 |")
