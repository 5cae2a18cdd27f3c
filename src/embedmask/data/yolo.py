"""Read YOLO segmentation data sets: `data.yaml`, and a text file of polygons for each image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedmask.config.reading import DEFAULT_READING, ReadOptions
from embedmask.data.annotations import Content
from embedmask.data.formats import describe_unread, is_image_file, report_unread
from embedmask.data.images import read_header, read_size
from embedmask.data.problems import OnIssue, Problem
from embedmask.errors import BadInput
from embedmask.files import parse_yaml, read_text
from embedmask.structures import Size


def read_data_file(file: Path) -> dict[str, Any]:
    """Read `data.yaml`; convert its `names` to a mapping from class number to name.

    Raises:
        BadInput: the file is not YAML, or has no names.
    """
    try:
        text = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error.__class__.__name__}); replace it") from None
    data, texts = parse_yaml(text, file), parse_yaml(text, file, as_text=True)
    names = data.get("names", data.get("nc")) if isinstance(data, dict) else None
    if isinstance(names, int) and data.get("names") is None:  # only the number of classes
        names = [f"class {number}" for number in range(names)]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and data.get("names") is not None:
        # numbers from the typed values, names from the texts
        texts = texts["names"]
        names = dict(
            zip(map(_class_number, names), texts.values() if isinstance(texts, dict) else texts, strict=True)
        )
    invalid = [key for key in names if type(key) is not int] if isinstance(names, dict) else []
    if invalid:
        raise BadInput(f"{file}: names: {invalid[0]!r} is not a class number; write them as 0: name")
    if not isinstance(names, dict) or not names:
        raise BadInput(f"{file}: has no 'names'; list the names of the classes")
    return {**data, "names": names}


def _class_number(key: Any) -> Any:
    """Return a key of `names` as a number if it is one in quotes."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key


def find_images(data: dict[str, Any], file: Path, split_names: Sequence[str]) -> list[Path] | None:
    """Return the images of a split, sorted; None if the data file has no entry for the split.

    An entry is a folder (searched recursively), a text file with one image per line, or a list of these. It is
    relative to `path`, which is relative to the data file, or else to the data file itself.

    Args:
        split_names: keys of the split, in order of precedence.

    Raises:
        BadInput: an entry does not exist or contains no images.
    """
    entry = next((data[name] for name in split_names if data.get(name)), None)
    if entry is None:
        return None
    root = file.parent / str(data.get("path") or "")
    entries = [str(item) for item in (entry if isinstance(entry, list) else [entry])]
    places: list[Path] = []
    images: set[Path] = set()
    for item in entries:
        # Windows paths have backslashes, and some exports write ../train/images for a folder beside the data file
        plain = item.replace("\\", "/")
        spellings = (item, plain, plain.removeprefix("../"))
        candidates = (base / name for base in (root, file.parent) for name in spellings)
        place = next((path for path in candidates if path.exists()), None)
        if place is None:
            raise BadInput(f"{root / item}: no such folder or list, but {file} names it; correct the entry")
        places.append(place)
        if place.is_dir():
            images.update(path for path in place.rglob("*") if is_image_file(path))
        else:
            images.update(_read_list(place, file))
    if not images:
        unread = describe_unread(path for place in places if place.is_dir() for path in place.rglob("*"))
        fix = unread or "correct the entry or add them"
        raise BadInput(f"{file}: {', '.join(entries)} contains no images; {fix}")
    return sorted(images)


def _read_list(place: Path, file: Path) -> Iterator[Path]:
    """Yield the images that a text file lists, one per line; `file` names it."""
    try:
        lines = read_text(place).replace("\\", "/").splitlines()
    except (OSError, UnicodeDecodeError):
        raise BadInput(
            f"{place}: is not a list of images, but {file} names it; name a folder or a text file of one image per line"
        ) from None
    yield from (place.parent / line.strip() for line in lines if line.strip())


def label_file(image: Path, root: Path) -> Path:
    """Return the text file of an image: in `labels/` if the image is in `images/`, otherwise beside it.

    Args:
        image: image file.
        root: folder of the data set; folders above it are not replaced.
    """
    above, inside = (root, image.relative_to(root)) if image.is_relative_to(root) else (Path(), image)
    parts = list(inside.parts)
    if "images" in parts[:-1]:
        # the last folder named images: its index from the end, counted from the start
        place = len(parts) - 2 - parts[-2::-1].index("images")
        parts[place] = "labels"
    return above.joinpath(*parts).with_suffix(".txt")


def read_yolo(
    paths: Sequence[Path],
    names: dict[Any, Any],
    file: Path,
    on_issue: OnIssue,
    options: ReadOptions = DEFAULT_READING,
    *,
    upright: bool = True,
) -> Content:
    """Read the polygons of image files as the content of a COCO file.

    Class numbers become category ids; images are numbered from 1. An image without a text file has no objects, unless
    no image has one. A line with a box is rejected, because it has no mask.

    Args:
        paths: image files; only their sizes are read.
        names: name of each class number.
        on_issue: receives images that cannot be read, lines that are not polygons, and a split without any text file.
        options: page to read in image files with several pages.
        upright: coordinates are fractions of the upright image; False: of the image as stored.

    Returns:
        Lists of images, annotations and categories; polygons in absolute px.
    """
    images, annotations = [], []
    texts = {path: label_file(path, file.parent) for path in paths}
    if texts and not any(text.exists() for text in texts.values()):
        message = (
            f"{next(iter(texts.values()))}: no such file, and no other image has a text file of its objects"
        )
        fix = "move them there, or write empty ones for images without objects"
        on_issue(Problem("missing mask", f"{message}; {fix}"))
    owners: dict[Path, list[Path]] = defaultdict(list)
    for path, text in texts.items():
        owners[text].append(path)
    for text, sharing in owners.items():
        if len(sharing) > 1 and text.exists():
            message = f"{text}: belongs to {' and '.join(path.name for path in sharing)}"
            on_issue(
                Problem("duplicate id", f"{message}; rename one of them with its text file, or remove it")
            )
    for number, path in enumerate(paths, start=1):
        try:
            size = read_size(path, options) if upright else read_header(path, options)[0]
        except BadInput as error:
            on_issue(Problem("broken image" if path.exists() else "missing image", f"{file}: {error}"))
            continue
        name = str(path.relative_to(file.parent) if path.is_relative_to(file.parent) else path)
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        annotations += list(_objects(texts[path], number, size, on_issue))
    folders = {(text.parent, path.parent) for path, text in texts.items()}
    for labels, folder in sorted(pair for pair in folders if pair[0] != pair[1]):
        stems = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
        for orphan in sorted(path for path in labels.glob("*.txt") if path.stem not in stems):
            message = f"{orphan}: labels without an image in {folder}; add the image or remove the file"
            on_issue(Problem("labels without image", message, fatal=False))
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
        origin = f"{file}: line {number}"
        try:
            category, *values = map(float, line.split())
        except ValueError:
            if line.strip():
                on_issue(
                    Problem("bad record", f"{origin} is not all numbers; write class x1 y1 x2 y2 x3 y3 ...")
                )
            continue
        if len(values) == 4:
            message = "is a box, which has no mask; write class x1 y1 x2 y2 x3 y3 ... or remove it"
            on_issue(Problem("bad mask", f"{origin} {message}"))
            continue
        # fractions to px: width and height in turn, even for an odd number of values, which is reported later
        scale = np.resize((size[1], size[0]), len(values))
        yield {
            "origin": origin,
            "image_id": image_id,
            "category_id": int(category) if category.is_integer() else category,
            "segmentation": [(np.array(values) * scale).astype(np.float32)],
        }
