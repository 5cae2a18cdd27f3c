"""What `predict` is asked to look at: files, folders and patterns become a list of images and videos."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedmask.data.formats import describe_unread, is_image_file, name_some
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


def find_sources(given: Sequence[str], say: Callable[[str], None] = lambda line: None) -> list[Source]:
    """Files as given, the images and videos of a folder by name, what a pattern matches; each file once.

    Args:
        say: is told in one line of image files in folders and patterns that are not read.

    Raises:
        BadInput: one of them is none of these, or holds neither image nor video.
    """
    unread: list[Path] = []
    files = list(dict.fromkeys(path for one in given for path in _files_of(one, unread)))
    line = describe_unread(dict.fromkeys(unread))
    if line is not None:
        say(line)
    return [Source(path, name) for path, name in zip(files, unique_names(files), strict=True)]


def _files_of(given: str, unread: list[Path]) -> list[Path]:
    """The files that `given` means; what is no image that is read is added to `unread`."""
    path = Path(given)
    if path.is_file():
        return [path]
    inside = sorted(path.iterdir() if path.is_dir() else map(Path, glob.glob(given, recursive=True)))
    found = [file for file in inside if file.is_file() and (is_image_file(file) or is_video(file))]
    unread += [file for file in inside if file not in found]
    if found:
        return found
    seen = f": {describe_unread(inside) or _seen(inside)}" if inside else ""
    if path.is_dir():
        raise BadInput(f"{given}: a folder without images{seen}; give files such as .jpg, .png or .tif")
    if inside:
        raise BadInput(f"{given}: matches no images{seen}; give files such as .jpg, .png or .tif")
    raise BadInput(f"{given}: no such file, folder or pattern with images; check the path")


def _seen(paths: Sequence[Path]) -> str:
    """What is there instead of images."""
    folders = [f"{path.name}/" for path in paths if path.is_dir()]
    files = [path.name for path in paths if not path.is_dir() and not path.name.startswith(".")]
    parts = [f"it holds {name_some(names)}" for names in (files, folders) if names]
    inner = "; for the images inside give 'FOLDER/**/*.jpg'" if folders else ""
    return (", and ".join(parts) or "it is empty") + inner


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
            raise BadInput(f"{result}: is one of the images and would be overwritten; choose another --out")
