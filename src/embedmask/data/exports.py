"""Find the COCO files of annotation tools by name and content."""

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
"""A folder with more JSON files than this, none of them beside an image, has one per image."""
TOOLS = {
    "instances_": "CVAT/Datumaro COCO export",
    "result": "Label Studio COCO export",
    "labels": "FiftyOne COCO export",
    "via_": "VIA COCO export",
}
"""Beginning of the file name -> description of the layout."""


def find_export(folder: Path, split_names: Sequence[str]) -> Path | None:
    """Find the COCO file of a split, or without `split_names` that of a folder without splits.

    A file belongs to a split by a word of its name or by its folder, and is recognized as a COCO file by its content.

    Args:
        split_names: names of the split.

    Raises:
        BadInput: there are several such files.
    """
    places, split_folders = annotation_folders(folder, split_names)
    if split_names:
        # every split word of the name must be one of this split: instances_train_val.json is neither
        files = [
            path
            for place in places
            for path in _json_files(place)
            if (words := _split_words(path)) and words <= set(split_names)
        ]
        files += [path for place in split_folders for path in _json_files(place)]
    else:
        files = [path for place in places for path in _json_files(place) if not _split_words(path)]
    files = [path for path in dict.fromkeys(files) if has_coco_keys(path)]
    # COCO's captions and keypoints beside the instances have the same keys
    files = [path for path in files if "instances" in path.stem.casefold()] or files
    if len(files) > 1:
        raise BadInput(f"{files[0]}, {files[1]}: both are COCO files of the same images; keep one of them")
    return files[0] if files else None


def export_layout(file: Path, folder: Path) -> str:
    """Return the description of a COCO file: the tool that wrote it, if recognized, and its path."""
    tools = (tool for begin, tool in TOOLS.items() if file.stem.casefold().startswith(begin))
    return f"{next(tools, 'COCO export')}, {file.relative_to(folder).as_posix()}"


def image_folders(file: Path, folder: Path, split_names: Sequence[str]) -> list[Path]:
    """Return the folders that may contain the images of a COCO file, the most specific first.

    Args:
        split_names: names of the split; empty without splits.
    """
    tags = (*split_names, file.stem, file.stem.partition("_")[2])
    bases = dict.fromkeys((folder, file.parent.parent, file.parent))
    # {folder, annotations/.., annotations} and {images, ...} in each
    containers = [
        path
        for base in bases
        if base.is_relative_to(folder)
        for path in (base, *subfolders(base, IMAGE_FOLDERS))
    ]
    # {container}/{split or file name}, and {images, ...} in it
    tagged = [path for place in containers for path in subfolders(place, tags)]
    inner = [path for place in tagged for path in subfolders(place, IMAGE_FOLDERS)]
    return list(dict.fromkeys((*tagged, *inner, *containers)))


def subfolders(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the folders in a folder that have one of the names, case-insensitively."""
    known = {name.casefold() for name in names}
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.casefold() in known and path.is_dir())


def annotation_folders(folder: Path, split_names: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Return the folders that may contain annotation files: those of all splits, and those of one split."""
    places = [folder, *subfolders(folder, ANNOTATION_FOLDERS)]
    split_folders = [path for place in places for path in subfolders(place, split_names)]
    return places, split_folders + [
        path for place in split_folders for path in subfolders(place, ANNOTATION_FOLDERS)
    ]


def _split_words(file: Path) -> set[str]:
    return set(re.findall(r"[a-z]+", file.stem.casefold())).intersection(SPLIT_WORDS)


def _json_files(folder: Path) -> Iterator[Path]:
    """Yield the JSON files of a folder that do not annotate an image beside them."""
    stems: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith("."):
            stems.setdefault(path.stem, []).append(path)
    files = [paths[0] for paths in stems.values() if [path.suffix.lower() for path in paths] == [".json"]]
    return iter(files if len(files) <= MAX_JSON_FILES else filter(_split_words, files))


def has_coco_keys(file: Path) -> bool:
    """Return whether a file contains COCO's keys; it is searched, not parsed."""
    if not file.is_file() or not file.stat().st_size:
        return False
    # searched, not parsed: annotation files reach gigabytes
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(
            all(content.find(f'"{key}"'.encode(encoding)) >= 0 for key in COCO_KEYS)
            for encoding in ("utf-8", "utf-16-le", "utf-16-be")
        )
