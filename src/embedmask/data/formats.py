"""Recognize image files by name, and advise on images in formats that cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from embedmask.data.problems import OnIssue, Problem
from embedmask.errors import name_some

UNREADABLE = ("BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")
"""Formats whose suffixes Pillow registers, although it cannot read them."""
TIFF_ENDINGS = (".lsm", ".stk", ".btf", ".tf2", ".tf8", ".svs", ".ndpi", ".scn", ".bif")
"""Other suffixes of TIFF files."""
RAW_ENDINGS = ".3fr .arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .raw .rw2 .srw"
UNREAD: dict[str, tuple[str, str]] = {
    ".heic .heif .hif .avif .jxl": ("HEIC or the like", "convert to JPEG or PNG"),
    RAW_ENDINGS: ("camera raw", "develop to TIFF or JPEG"),
    ".czi .lif .nd2 .oib .oif .vsi .ims .mrxs .dv .r3d .zvi .flex .zarr .h5 .hdf5 .n5": (
        "microscope format",
        "export as OME-TIFF or OME-Zarr",
    ),
    ".dcm .dicom .nii .mha .mhd .nrrd": ("medical format", "export as TIFF or PNG"),
    ".npy .npz .mat": ("array", "save as TIFF"),
    ".pdf .svg .ai .wmf .emf": ("document", "export as PNG"),
}
"""Suffixes of images that cannot be read -> their type, and a fix."""
_UNREAD = {ending: unread for endings, unread in UNREAD.items() for ending in endings.split()}
BROKEN_LINK = ("broken link", "restore the file it points to")


def is_image_file(path: Path) -> bool:
    """Return whether the name is that of an image file, and not hidden."""
    ending = path.suffix.lower()
    known = Image.registered_extensions().get(ending) not in (None, *UNREADABLE)
    return (known or ending in TIFF_ENDINGS) and not path.name.startswith(".")


def is_camera_raw(path: Path) -> bool:
    """Return whether the file is a camera raw file, of which Pillow would read the preview."""
    return path.suffix.lower() in RAW_ENDINGS.split()


def advice(path: Path) -> str:
    """Return a fix for an image that cannot be read, by its name; empty if none is known."""
    unread = _UNREAD.get(path.suffix.lower())
    return "" if unread is None or is_image_file(path) else unread[1]


def describe_unread(files: Iterable[Path]) -> str | None:
    """Describe in one line the files that are images but cannot be read; None if there are none.

    Args:
        files: files of a folder; readable images and files of other types are ignored.
    """
    types: dict[tuple[str, str], list[str]] = {}
    for path in files:
        unread, is_image = _UNREAD.get(path.suffix.lower()), is_image_file(path)
        if path.name.startswith(".") or (unread is None and not is_image):
            continue
        if path.is_symlink() and not path.exists():
            types.setdefault(BROKEN_LINK, []).append(path.name)
        elif unread is not None and not is_image:
            types.setdefault(unread, []).append(path.name)
    if not types:
        return None
    count = sum(map(len, types.values()))
    parts = (f"{name_some(names)} ({name}: {fix})" for (name, fix), names in types.items())
    return f"{count} image file{'s are' if count > 1 else ' is'} not read: {'; '.join(parts)}"


def report_unread(folders: Iterable[Path], on_issue: OnIssue) -> None:
    """Report the images in folders of a data set that cannot be read."""
    for folder in sorted(folders):
        line = describe_unread(sorted(folder.iterdir()))
        if line is not None:
            on_issue(Problem("unread file", f"{folder}: {line}", fatal=False))
