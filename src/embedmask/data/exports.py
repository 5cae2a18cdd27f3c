"""COCO files as annotation tools export them: found by name and content, wherever the tool puts them."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedmask.errors import BadInput

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "data", "jpegimages")
ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")
SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing")
COCO_KEYS = ("images", "annotations", "categories")
MAX_JSON_FILES = 20
"""A folder with more JSON files than this, each beside no image, has one for each image."""
TOOLS = {
    "instances_": "CVAT/Datumaro COCO export",
    "result": "Label Studio COCO export",
    "labels": "FiftyOne COCO export",
    "via_": "VIA COCO export",
}
"""Beginning of the file's name -> what it is recognised as."""


def find_export(folder: Path, split_names: Sequence[str]) -> Path | None:
    """Return the COCO file of a split, or with no `split_names` that of a folder without splits; None without one.

    A file belongs to a split by a word of its name or by its folder. It is known as a COCO file by its content.

    Raises:
        BadInput: there are several.
    """
    inside = [folder, *subfolders(folder, ANNOTATION_FOLDERS)]
    if split_names:
        own = [path for place in inside for path in subfolders(place, split_names)]
        own += [path for place in own for path in subfolders(place, ANNOTATION_FOLDERS)]
        found = [path for place in inside for path in _json_files(place) if _is_of(path, split_names)]
        found += [path for place in own for path in _json_files(place)]
    else:
        found = [path for place in inside for path in _json_files(place) if not _split_words(path)]
    files = [path for path in dict.fromkeys(found) if _is_coco(path)]
    instances = [path for path in files if "instances" in path.stem.casefold()]  # not keypoints, not panoptic
    files = instances or files
    if len(files) > 1:
        raise BadInput(f"{files[0]}, {files[1]}: both are COCO files of the same images; keep one of them")
    return files[0] if files else None


def export_layout(file: Path, folder: Path) -> str:
    """Return what a COCO file was recognised as."""
    tools = (tool for begin, tool in TOOLS.items() if file.stem.casefold().startswith(begin))
    return f"{next(tools, 'COCO export')}, {file.relative_to(folder).as_posix()}"


def image_folders(file: Path, folder: Path, split_names: Sequence[str]) -> list[Path]:
    """Return the folders that the images of a COCO file may be in."""
    tags = (*split_names, file.stem, file.stem.partition("_")[2])
    bases = [
        path
        for path in dict.fromkeys((folder, file.parent.parent, file.parent))
        if path.is_relative_to(folder)
    ]
    containers = [path for base in bases for path in (base, *subfolders(base, IMAGE_FOLDERS))]
    tagged = [path for place in containers for path in subfolders(place, tags)]
    return list(
        dict.fromkeys(
            (*tagged, *(p for place in tagged for p in subfolders(place, IMAGE_FOLDERS)), *containers)
        )
    )


def subfolders(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders inside a folder that have one of the names, in any letter case."""
    known = {name.casefold() for name in names}
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.casefold() in known and path.is_dir())


def _split_words(file: Path) -> set[str]:
    return set(re.findall(r"[a-z]+", file.stem.casefold())).intersection(SPLIT_WORDS)


def _is_of(file: Path, split_names: Sequence[str]) -> bool:
    words = _split_words(file)
    return bool(words) and words <= set(split_names)


def _json_files(folder: Path) -> Iterator[Path]:
    """Yield the JSON files of a folder that do not belong to an image beside them."""
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            stems.setdefault(path.stem, []).append(path)
    files = [paths[0] for paths in stems.values() if [path.suffix.lower() for path in paths] == [".json"]]
    return iter(files if len(files) <= MAX_JSON_FILES else filter(_split_words, files))


def _is_coco(file: Path) -> bool:
    """Return whether a file has COCO's keys; it is searched, not parsed."""
    if not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(
            all(content.find(f'"{key}"'.encode(encoding)) >= 0 for key in COCO_KEYS)
            for encoding in ("utf-8", "utf-16-le", "utf-16-be")
        )
