"""Find the image files that an annotation file names, even if another tool or machine spelled the names."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from embedmask.data.formats import is_image_file
from embedmask.errors import BadInput

UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")
"""Prefix that Label Studio adds to the name of an uploaded file."""


@dataclass(frozen=True)
class ImageFiles:
    """Locations of the images of an annotation file.

    Attributes:
        folder: folder that `names` are relative to.
        names: file of each image; for a missing image the name in the annotation file.
        respelled: positions of the images whose name is spelled differently in the annotation file.
        uncertain: position -> the existing files, or the other names, that make its file ambiguous.
        missing: positions of the images without a file.
        nearest: position -> the existing file with the most similar name, for the first few missing images.
    """

    folder: Path
    names: list[str]
    respelled: list[int] = field(default_factory=list)
    uncertain: dict[int, list[str]] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    nearest: dict[int, Path] = field(default_factory=dict)

    def common_folder(self) -> Path:
        """Return the deepest folder that contains all images."""
        folders = {os.path.dirname(self.folder / name) for name in self.names}
        return Path(os.path.commonpath([os.path.normpath(path) for path in folders] or [str(self.folder)]))

    @property
    def repeated(self) -> dict[int, int]:
        """Return the positions that name the file of an earlier one, and the first position of that file."""
        left_out = {*self.missing, *self.uncertain}
        first: dict[str, int] = {}
        result: dict[int, int] = {}
        for position, name in enumerate(self.names):
            if position not in left_out:
                path = os.path.normpath(os.path.join(self.folder, name))
                earlier = first.setdefault(path, position)
                if earlier != position:
                    result[position] = earlier
        return result


def find_image_files(names: Sequence[str], images: Path, others: Sequence[Path] = ()) -> ImageFiles:
    """Find the file of each name: the exact path, or else the only file that the name can refer to.

    A name may have backslashes, URL encoding, a different case or Unicode form, leading folders of another machine, or
    Label Studio's upload prefix. A name without its folders matches only if no such folder exists and no other name
    matches the same file.

    Args:
        names: image names in the annotation file.
        images: folder in which the layout places the images; if it has all of them, no other folder is searched.
        others: further folders to search; `images` among them has no precedence.

    Raises:
        BadInput: two of the folders contain all names.
    """
    if images not in others and _all_exist(images, names):
        return ImageFiles(images, list(names))
    folders = [path for path in dict.fromkeys((images, *others)) if path.is_dir()]
    complete = [path for path in folders if names and _all_exist(path, names)]
    if len(complete) > 1:
        # absolute names, names with ../ and linked folders lead to the same files from several folders
        complete = list({_real_paths(path, names): path for path in reversed(complete)}.values())[::-1]
    if len(complete) > 1:
        raise BadInput(
            f"{complete[0] / names[0]}, {complete[1] / names[0]}: all images exist in both folders, so it is "
            "ambiguous which are meant; remove or rename one of the folders"
        )
    if complete:
        return ImageFiles(complete[0], list(names))
    return _match_each(names, folders or [images])


def _all_exist(folder: Path, names: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _real_paths(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(os.path.realpath(folder / name) for name in names)


def _match_each(names: Sequence[str], folders: Sequence[Path]) -> ImageFiles:
    """Match each name on its own, relative to the folder with the largest number of exact matches."""
    counts = [sum((folder / name).is_file() for name in names) for folder in folders]
    folder = folders[counts.index(max(counts))]
    index = _Index(folders)
    result = ImageFiles(folder, list(names))
    owners: dict[Path, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        exact = folder / name
        files = [exact] if exact.is_file() else index.find(name)
        if len(files) == 1:
            owners[files[0]].append(position)
            if files[0] != exact:
                result.names[position] = os.path.relpath(files[0], folder)
                result.respelled.append(position)
        elif files:
            result.uncertain[position] = [str(path) for path in files]
        else:
            result.missing.append(position)
    # several names that match one file: only an exact name is certain
    respelled = set(result.respelled)
    for positions in owners.values():
        clash = respelled.intersection(positions) if len(positions) > 1 else set()
        result.uncertain.update((i, [names[j] for j in positions if j != i]) for i in clash)
    for position in result.missing[:5]:  # each compares with all names
        nearest = index.nearest(names[position])
        if nearest is not None:
            result.nearest[position] = nearest
    return result


class _Index:
    """Image files in some folders and their subfolders, by normalized path relative to each of the folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders: set[str] = set()
        self.files: dict[str, list[Path]] = defaultdict(list)
        for folder in folders:
            for path in _images_below(folder):
                parts = _parts(path.relative_to(folder).as_posix(), decode=False)
                key = _key(parts)
                self.folders.update(_key(parts[:end]) for end in range(1, len(parts)))
                if path not in self.files[key]:  # folders may overlap
                    self.files[key].append(path)

    def find(self, name: str) -> list[Path]:
        """Return the files that a name can refer to: none, or several if it is ambiguous."""
        parts = _parts(name)
        if not parts:
            return []
        plain = UPLOAD_PREFIX.sub("", parts[-1], count=1)
        for spelling in dict.fromkeys((tuple(parts), (*parts[:-1], plain))):
            # a/b/c.png, b/c.png, c.png: the longest tail that exists, but never without a folder that exists
            for start in range(len(spelling)):
                files = self.files.get(_key(spelling[start:]), [])
                if files:
                    # on a case-sensitive file system A.png and a.png are two files
                    tail = "/".join(spelling[start:])
                    return [path for path in files if path.as_posix().endswith(tail)] or files
                if _key(spelling[start:-1]) in self.folders:
                    break
        return []

    def nearest(self, name: str) -> Path | None:
        """Return the file with the most similar name; None if no name is similar."""
        by_name = {PurePosixPath(key).name: key for key in self.files}
        matches = difflib.get_close_matches(_key(_parts(name)[-1:]), by_name, n=1, cutoff=0.5)
        return self.files[by_name[matches[0]]][0] if matches else None


def _images_below(folder: Path) -> Iterator[Path]:
    for place, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith(".")]  # os.walk skips the removed folders
        yield from (path for path in (Path(place, name) for name in sorted(files)) if is_image_file(path))


def has_images(folder: Path) -> bool:
    """Return whether a folder or one of its subfolders contains an image."""
    return next(_images_below(folder), None) is not None


def _parts(name: str, *, decode: bool = True) -> list[str]:
    """Return the components of a path, a URL, or Label Studio's `/data/local-files/?d=PATH`."""
    if decode:
        name = name.partition("?d=")[2] or name
        name = unquote(urlsplit(name).path if "://" in name else name).replace("\\", "/")
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _key(parts: Sequence[str]) -> str:
    # macOS stores decomposed names (NFD), other systems composed ones (NFC)
    return unicodedata.normalize("NFC", "/".join(parts)).casefold()
