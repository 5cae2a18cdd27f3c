"""YOLO's segmentation sets: `data.yaml` and a text file of polygons for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.annotations import Content
from embedmask.data.formats import describe_unread, is_image_file, report_unread
from embedmask.data.images import read_header, read_size
from embedmask.data.problems import OnIssue, Problem
from embedmask.errors import BadInput
from embedmask.files import read_text
from embedmask.structures import Size


def read_data_file(file: Path) -> dict[str, Any]:
    """Read `data.yaml`; its `names` become a mapping from class number to name.

    Raises:
        BadInput: not YAML, or without names.
    """
    try:
        text = read_text(file)
        data = yaml.safe_load(text)
        written = yaml.load(text, yaml.BaseLoader)  # text alone: names such as `no` and 007 stay
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(
            f"{file}: cannot be read as YAML ({' '.join(str(error).split())}); correct it"
        ) from None
    names = data.get("names", data.get("nc")) if isinstance(data, dict) else None
    if isinstance(names, int):
        names = [f"class {number}" for number in range(names)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and data.get("names") is not None:
        texts = written["names"]
        names = dict(zip(names, texts.values() if isinstance(texts, dict) else texts, strict=True))
    if not isinstance(names, dict) or not names:
        raise BadInput(f"{file}: has no 'names'; list the names of the classes")
    return {**data, "names": names}


def find_images(data: dict[str, Any], file: Path, split_names: Sequence[str]) -> list[Path] | None:
    """The images of a split; None where the file does not name the split.

    An entry is a folder (with all its subfolders), a text file with an image a line, or a list of those,
    relative to `path`, which is relative to the file; where this does not exist, relative to the file itself.

    Raises:
        BadInput: an entry that does not exist, or without images.
    """
    entry = next((data[name] for name in split_names if data.get(name)), None)
    if entry is None:
        return None
    root = file.parent / str(data.get("path") or "")
    entries = [str(item) for item in (entry if isinstance(entry, list) else [entry])]
    images = [image for item in entries for image in _images_of(_locate(item, root, file))]
    if not images:
        found = (_locate(item, root, file) for item in entries)
        unread = describe_unread(path for folder in found if folder.is_dir() for path in folder.rglob("*"))
        fix = unread or "correct the entry or add them"
        raise BadInput(f"{file}: {', '.join(entries)} holds no images; {fix}")
    return sorted(set(images))


def _locate(entry: str, root: Path, file: Path) -> Path:
    # some exports write ../train/images for what lies beside the file
    plain = entry.replace("\\", "/")  # as Windows writes it
    for base in (root, file.parent):
        for name in (entry, plain, plain.removeprefix("../")):
            if (base / name).exists():
                return base / name
    raise BadInput(f"{root / entry}: no such folder or list, but {file} names it; correct the entry")


def _images_of(path: Path) -> list[Path]:
    if path.is_dir():
        return [image for image in path.rglob("*") if is_image_file(image)]
    lines = read_text(path).replace("\\", "/").splitlines()
    return [path.parent / line.strip() for line in lines if line.strip()]


def label_file(image: Path) -> Path:
    """The text file of an image: in `labels/` where the image is in `images/`, otherwise beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        place = len(parts) - 2 - parts[-2::-1].index("images")
        parts[place] = "labels"
    return Path(*parts).with_suffix(".txt")


def read_yolo(
    paths: Sequence[Path],
    names: dict[Any, Any],
    file: Path,
    on_issue: OnIssue,
    options: ReadOptions = DEFAULT_READING,
    *,
    upright: bool = True,
) -> Content:
    """Read the polygons of image files, in the form of a COCO file.

    The class numbers are the category ids; images are numbered from 1. An image without a text file has no
    objects. A line that is a box is refused: there is no mask to learn from.

    Args:
        paths: image files; their sizes are read.
        names: name of each class number.
        file: the `data.yaml`.
        on_issue: is told of images that cannot be read and of lines that are no polygons.
        options: the page of image files with several.
        upright: coordinates are fractions of the upright image; False: of the image as it is stored.
    """
    images, annotations = [], []
    for number, path in enumerate(paths, start=1):
        try:
            size = read_size(path, options) if upright else read_header(path, options)[0]
        except BadInput as error:
            on_issue(Problem("broken image" if path.exists() else "missing image", f"{file}: {error}"))
            continue
        name = str(path.relative_to(file.parent) if path.is_relative_to(file.parent) else path)
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        annotations += list(_objects(label_file(path), number, size, on_issue))
    _report_orphans(paths, on_issue)
    report_unread({path.parent for path in paths if path.parent.is_dir()}, on_issue)
    categories = [{"id": number, "name": str(name)} for number, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _objects(file: Path, image_id: int, size: Size, on_issue: OnIssue) -> Iterator[dict[str, Any]]:
    try:
        lines = read_text(file).splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        on_issue(Problem("bad record", f"{file}: cannot be read as text ({error}); replace it"))
        return
    for number, line in enumerate(lines, start=1):
        where = f"{file}: line {number}"
        try:
            category, *values = map(float, line.split())
        except ValueError:
            if line.strip():
                on_issue(
                    Problem("bad record", f"{where} is not all numbers; write class x1 y1 x2 y2 x3 y3 ...")
                )
            continue
        if len(values) == 4:
            message = "is a box, which has no mask; write class x1 y1 x2 y2 x3 y3 ... or remove it"
            on_issue(Problem("bad mask", f"{where} {message}"))
            continue
        scale = np.resize((size[1], size[0]), len(values))
        yield {
            "origin": where,
            "image_id": image_id,
            "category_id": int(category) if category.is_integer() else category,
            "segmentation": [(np.array(values) * scale).astype(np.float32)],
        }


def _report_orphans(paths: Sequence[Path], on_issue: OnIssue) -> None:
    folders = {(label_file(path).parent, path.parent) for path in paths}
    for labels, folder in sorted(folder for folder in folders if folder[0] != folder[1]):
        known = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
        for file in sorted(file for file in labels.glob("*.txt") if file.stem not in known):
            message = f"{file}: labels without an image in {folder}; add the image or remove the file"
            on_issue(Problem("labels without image", message, fatal=False))
