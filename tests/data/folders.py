"""Write one small scene in every supported layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from .conftest import polygon

SIZE = (40, 30)
Rectangle = tuple[int, int, int, int, int]
"""Class, x, y, width, height; whole px."""
Scene = Mapping[str, list[Rectangle]]
"""Name of an image -> its objects."""
SCENES: dict[str, Scene] = {
    "train": {"a": [(0, 4, 6, 10, 8), (1, 14, 6, 5, 8)], "b": []},
    "val": {"c": [(1, 0, 0, 30, 40)], "d": [(0, 1, 2, 3, 4), (0, 4, 2, 3, 4), (1, 20, 30, 5, 6)]},
}
NAMES = ["disc", "star"]


def change_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def write_images(folder: Path, split: str, suffix: str = ".png") -> None:
    """Write images of noise, seeded by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SCENES[split]:
        pixels = np.random.default_rng(ord(name)).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}{suffix}")


def coco_content(split: str, ids: tuple[int, int], annotated: bool = True) -> dict[str, Any]:
    images = [
        {"id": 10 + place, "file_name": f"{name}.png", "height": SIZE[0], "width": SIZE[1]}
        for place, name in enumerate(SCENES[split])
    ]
    annotations = [
        {
            "image_id": 10 + place,
            "category_id": ids[label],
            "bbox": [x, y, w, h],
            "segmentation": [polygon(x, y, w, h)],
        }
        for place, objects in enumerate(SCENES[split].values())
        for label, x, y, w, h in objects
    ]
    for number, entry in enumerate(annotations):
        entry["id"] = number
    categories = [{"id": number, "name": name} for number, name in zip(ids, NAMES, strict=True)]
    content: dict[str, Any] = {"images": images, "categories": categories}
    return {**content, "annotations": annotations} if annotated else content


def write_plain(folder: Path) -> None:
    for split in SCENES:
        write_images(folder / "images", split)
        (folder / f"{split}.json").write_text(json.dumps(coco_content(split, (3, 90))))


def write_coco(folder: Path) -> None:
    (folder / "annotations").mkdir(parents=True)
    for split in SCENES:
        write_images(folder / f"{split}2017", split)
        content = json.dumps(coco_content(split, (1, 2)))
        (folder / f"annotations/instances_{split}2017.json").write_text(content)


def write_roboflow(folder: Path) -> None:
    for split, name in (("train", "train"), ("val", "valid")):
        write_images(folder / name, split)
        content = coco_content(split, (1, 2))
        for category in content["categories"]:
            category["supercategory"] = "shapes"
        content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})
        (folder / name / "_annotations.coco.json").write_text(json.dumps(content))


def write_yolo(folder: Path) -> None:
    for split, scene in SCENES.items():
        write_images(folder / "images" / split, split)
        for name, objects in scene.items():
            if objects:  # an image without file has no objects
                write_lines(folder / "labels" / split / f"{name}.txt", objects)
    data = {"path": ".", "train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))


def write_lines(file: Path, objects: list[Rectangle]) -> None:
    """Write a text file of polygons, as fractions of the image size."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scale = np.tile([SIZE[1], SIZE[0]], 4)
    lines = [
        " ".join(map(repr, [label, *(np.array(polygon(*box)) / scale).tolist()])) for label, *box in objects
    ]
    file.write_text("\n".join(lines) + "\n")


def write_label_images(
    folder: Path, dtype: type = np.uint16, suffix: str = ".tif", split_first: bool = True
) -> None:
    """Write label images with the labels 5, 10, 15, ..."""
    for split, scene in SCENES.items():
        images, masks = (
            folder / split / kind if split_first else folder / kind / split for kind in ("images", "masks")
        )
        write_images(images, split)
        masks.mkdir(parents=True)
        for name, objects in scene.items():
            labels = np.zeros(SIZE, dtype=dtype)
            for place, (_, x, y, w, h) in enumerate(objects, start=1):
                labels[y : y + h, x : x + w] = 5 * place
            Image.fromarray(labels).save(masks / f"{name}{suffix}")


WRITERS: dict[str, Callable[[Path], None]] = {
    "plain": write_plain,
    "COCO": write_coco,
    "Roboflow": write_roboflow,
    "YOLO": write_yolo,
    "label images": write_label_images,
}
CATEGORY_IDS = {"plain": [3, 90], "COCO": [1, 2], "Roboflow": [1, 2], "YOLO": [0, 1], "label images": [1]}
