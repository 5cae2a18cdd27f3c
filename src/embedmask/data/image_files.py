"""Find the image files that an annotation file names, also where another tool or machine spelled the names."""

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
"""Label Studio puts this before the name of an uploaded file."""


@dataclass(frozen=True)
class ImageFiles:
    """Where the images of an annotation file are.

    Attributes:
        folder: folder that `names` are relative to.
        names: file of each image; of a missing image, as the annotation file has it.
        respelled: positions of the images whose name is spelled differently in the annotation file.
        uncertain: position -> the existing files, or the other names, that make its file uncertain.
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
        """Return the deepest folder that holds all the images."""
        folders = {os.path.dirname(self.folder / name) for name in self.names}
        return Path(os.path.commonpath([os.path.normpath(path) for path in folders] or [str(self.folder)]))


def find_image_files(names: Sequence[str], images: Path, others: Sequence[Path] = ()) -> ImageFiles:
    """Find the file of each name: as it is written, otherwise the one file that it can only mean.

    A name may have backslashes, URL encoding, another letter case or Unicode form, folders of another machine in front,
    or Label Studio's prefix of an upload. A name without its folders is accepted only where no such folder exists and
    no other name leads to the same file.

    Args:
        names: of the images, as the annotation file has them.
        images: folder that the layout puts the images in; where all of them are there, no other folder is looked at.
        others: more folders that they may be in; `images` among them has no precedence.

    Raises:
        BadInput: all names exist in two of the folders.
    """
    if images not in others and _all_exist(images, names):
        return ImageFiles(images, list(names))
    folders = [path for path in dict.fromkeys((images, *others)) if path.is_dir()]
    complete = [path for path in folders if names and _all_exist(path, names)]
    if len(complete) > 1:
        raise BadInput(
            f"{complete[0] / names[0]}, {complete[1] / names[0]}: all images exist in both folders, so it is not "
            "certain which are meant; remove or rename one of the folders"
        )
    if complete:
        return ImageFiles(complete[0], list(names))
    return _match_each(names, folders or [images])


def _all_exist(folder: Path, names: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _match_each(names: Sequence[str], folders: Sequence[Path]) -> ImageFiles:
    """Match name by name, in the folder that holds most of them."""
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
    respelled = set(result.respelled)
    for positions in owners.values():
        clash = respelled.intersection(positions) if len(positions) > 1 else set()
        result.uncertain.update((i, [names[j] for j in positions if j != i]) for i in clash)
    for position in result.missing[:5]:  # a search among all names for each
        near = index.nearest(names[position])
        if near is not None:
            result.nearest[position] = near
    return result


class _Index:
    """The image files in and below some folders, by their normalized path relative to each of them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders: set[str] = set()
        self.files: dict[str, list[Path]] = defaultdict(list)
        for folder in folders:
            for path in _images_below(folder):
                parts = _parts(path.relative_to(folder).as_posix(), decode=False)
                key = _key(parts)
                self.folders.update(_key(parts[:end]) for end in range(1, len(parts)))
                if path not in self.files[key]:
                    self.files[key].append(path)

    def find(self, name: str) -> list[Path]:
        """Return the files that a name can mean; none, or several where it is not certain."""
        parts = _parts(name)
        if not parts:
            return []
        plain = UPLOAD_PREFIX.sub("", parts[-1], count=1)
        for spelled in dict.fromkeys((tuple(parts), (*parts[:-1], plain))):
            # the longest tail of the path that exists; folders that exist are never left out
            for start in range(len(spelled)):
                files = self.files.get(_key(spelled[start:]), [])
                if files:
                    tail = "/".join(spelled[start:])
                    same_case = [path for path in files if path.as_posix().endswith(tail)]
                    return same_case or files
                if _key(spelled[start:-1]) in self.folders:
                    break
        return []

    def nearest(self, name: str) -> Path | None:
        """Return the file whose name is most similar, or None."""
        by_name = {PurePosixPath(key).name: key for key in self.files}
        wanted = _key(_parts(name)[-1:])
        near = difflib.get_close_matches(wanted, by_name, n=1, cutoff=0.5)
        return self.files[by_name[near[0]]][0] if near else None


def _images_below(folder: Path) -> Iterator[Path]:
    for place, inside, files in os.walk(folder):
        inside[:] = [name for name in inside if not name.startswith(".")]
        yield from (path for path in (Path(place, name) for name in sorted(files)) if is_image_file(path))


def has_images(folder: Path) -> bool:
    """Return whether an image is in or below a folder."""
    return next(_images_below(folder), None) is not None


def _parts(name: str, *, decode: bool = True) -> list[str]:
    """Return the components of a path, a URL, or Label Studio's `/data/local-files/?d=PATH`."""
    if decode:
        name = name.partition("?d=")[2] or name
        name = unquote(urlsplit(name).path if "://" in name else name).replace("\\", "/")
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _key(parts: Sequence[str]) -> str:
    return unicodedata.normalize("NFC", "/".join(parts)).casefold()
