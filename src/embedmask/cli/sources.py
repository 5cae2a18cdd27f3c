"""What `predict` is asked to look at: files, folders and patterns become a list of pictures and videos."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedmask.data.formats import is_picture
from embedmask.errors import BadInput

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        path: as the user gave it.
        name: that of its results, without ending; no other file of the run has it.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return is_video(self.path)


def find_sources(given: Sequence[str]) -> list[Source]:
    """Files as given, the pictures and videos of a folder by name, what a pattern matches; each file once.

    Raises:
        BadInput: one of them is none of these, or holds neither picture nor video.
    """
    files = list(dict.fromkeys(path for one in given for path in _files_of(one)))
    return [Source(path, name) for path, name in zip(files, unique_names(files), strict=True)]


def _files_of(given: str) -> list[Path]:
    path = Path(given)
    if path.is_file():
        return [path]
    inside = path.iterdir() if path.is_dir() else map(Path, glob.glob(given, recursive=True))
    found = [file for file in sorted(inside) if file.is_file() and (is_picture(file) or is_video(file))]
    if not found and path.is_dir():
        raise BadInput(f"{given}: a folder without pictures; give files such as .jpg or .png")
    if not found:
        raise BadInput(f"{given}: no such file, folder or pattern with pictures; check the path")
    return found


def is_video(path: Path) -> bool:
    """Whether the name is that of a video, and not of a hidden file."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".")


def unique_names(files: Sequence[Path]) -> list[str]:
    """The stem of each file; where it comes again, in whatever case, `STEM_2` and so on."""
    taken: set[str] = set()
    names = []
    for path in files:
        name, number = path.stem, 2
        while name.casefold() in taken:
            name, number = f"{path.stem}_{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def refuse_overwriting(sources: Sequence[Source], results: Iterable[Path]) -> None:
    """A result must not take the place of a file that it was made from.

    Args:
        results: files, or folders that will be replaced with all that is in them.

    Raises:
        BadInput: one of them is, or holds, a source.
    """
    paths = [source.path.resolve() for source in sources]
    held = {*paths, *(folder for path in paths for folder in path.parents)}
    for result in results:
        if result.resolve() in held:
            raise BadInput(f"{result}: is one of the pictures and would be overwritten; choose another --out")
