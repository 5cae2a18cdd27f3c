"""Sources of `predict`: files, folders and patterns expanded to images, OME-Zarr folders and videos."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedmask.data.formats import describe_unread, is_image_file
from embedmask.data.slides import is_zarr
from embedmask.errors import BadInput, name_some

MAX_NAME_BYTES = 200
"""Maximum length of a result's name; file systems limit names with their endings to 255 bytes."""
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """An image or video file.

    Attributes:
        path: Path as the user specified it.
        name: Name of its result files, without suffix; unique within a run.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Return whether the file is a video."""
        return is_video(self.path)


def find_sources(
    arguments: Sequence[str | Path], report: Callable[[str], None] = lambda line: None
) -> list[Source]:
    """Expand files, folders (images and videos by name) and glob patterns; each file is listed once.

    Args:
        report: Called with a line about unsupported image files in folders and patterns, and one about subfolders with
            images.

    Raises:
        BadInput: An argument does not exist, or contains neither images nor videos.
    """
    unread: list[Path] = []
    known: dict[str, Path] = {}
    for argument in arguments:
        for path in _expand(argument, unread):
            known.setdefault(os.path.abspath(path), path)  # the first of several spellings
    files = list(known.values())
    line = describe_unread(dict.fromkeys(unread))
    if line is not None:
        report(line)
    folders = {path.parent for path in files}
    subfolders = [path for path in dict.fromkeys(unread) if path not in folders and has_sources(path)]
    if subfolders:
        names = name_some([str(path) for path in subfolders])
        report(f"images in subfolders are not read: {names}; to include them pass 'FOLDER/**/*.png'")
    return [Source(path, name) for path, name in zip(files, unique_names(files), strict=True)]


def _expand(argument: str | Path, unread: list[Path]) -> list[Path]:
    """Return the files of one argument; append files that are not read to `unread`."""
    path = Path(argument)
    if path.is_file() or is_zarr(path):
        return [path]
    inside = sorted(path.iterdir() if path.is_dir() else map(Path, glob.glob(str(argument), recursive=True)))
    files: list[Path] = []
    for file in inside:
        (files if is_source(file) else unread).append(file)
    if files:
        return files
    if not inside and not path.is_dir():
        raise BadInput(f"{argument}: no such file, folder or pattern with images; check the path")
    # name known formats that are not supported, else the first files and folders
    names = [path.name for path in inside if not path.is_dir() and not path.name.startswith(".")]
    folders = [f"{path.name}/" for path in inside if path.is_dir()]
    parts = [f"it contains {name_some(some)}" for some in (names, folders) if some]
    hint = "; for images in subfolders pass 'FOLDER/**/*.jpg'" if folders else ""
    contents = describe_unread(inside) or (", and ".join(parts) or "it is empty") + hint
    fault = "a folder without images" if path.is_dir() else "matches no images"
    raise BadInput(
        f"{argument}: {fault}{f': {contents}' if inside else ''}; pass files such as .jpg, .png or .tif"
    )


def is_source(path: Path) -> bool:
    """Return whether a path in a folder is read: an image, a video or an OME-Zarr folder."""
    return is_zarr(path) or (path.is_file() and (is_image_file(path) or is_video(path)))


def has_sources(folder: Path) -> bool:
    """Return whether a path is a readable folder that holds a source; hidden folders and deeper ones do not count."""
    if folder.name.startswith(".") or not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        return False
    return any(map(is_source, folder.iterdir()))


def is_video(path: Path) -> bool:
    """Return whether a file name is that of a video; hidden files are not."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".")


def unique_names(files: Sequence[Path]) -> list[str]:
    """Return the stem of each file, with a suffix `_2`, `_3`, ... for repeated stems (case-insensitive).

    Stems beyond `MAX_NAME_BYTES` are cut, since results have longer endings than images.
    """
    taken: set[str] = set()
    following: dict[str, int] = {}  # next number by stem
    names = []
    for path in files:
        stem = path.stem
        if len(os.fsencode(stem)) > MAX_NAME_BYTES:
            stem = os.fsencode(stem)[:MAX_NAME_BYTES].decode(errors="ignore")
        name, number = stem, following.get(stem.casefold(), 2)
        # file systems may ignore case; a numbered name may itself be taken
        while name.casefold() in taken:
            name, number = f"{stem}_{number}", number + 1
        following[stem.casefold()] = number
        taken.add(name.casefold())
        names.append(name)
    return names


def refuse_overwriting(sources: Sequence[Source], results: Iterable[Path]) -> None:
    """Check that no result replaces a source.

    Args:
        results: Files to write, and folders to replace with all their contents.

    Raises:
        BadInput: A result is a source, or a folder that contains one.
    """
    paths = [source.path.resolve() for source in sources]
    # a folder that is replaced must not be a parent of a source either
    protected = {*paths, *(folder for path in paths for folder in path.parents)}
    for result in results:
        if result.resolve() in protected:
            raise BadInput(f"{result}: is one of the images and would be overwritten; choose another --out")
