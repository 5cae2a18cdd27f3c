"""Which files are images by their names, which are images that nothing here reads, and what to do with those."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from embedmask.data.problems import OnIssue, Problem

UNREADABLE = ("BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")
"""Formats whose endings Pillow knows, though it cannot read them."""
TIFF_ENDINGS = (".lsm", ".stk", ".btf", ".tf2", ".tf8")
"""TIFF files by another name."""
RAW_ENDINGS = ".3fr .arw .cr2 .cr3 .dng .nef .nrw .orf .pef .raf .raw .rw2 .srw"
UNREAD: dict[str, tuple[str, str]] = {
    ".heic .heif .hif .avif .jxl": ("HEIC or the like", "convert to JPEG or PNG"),
    RAW_ENDINGS: ("camera raw", "develop to TIFF or JPEG"),
    ".czi .lif .nd2 .oib .oif .vsi .ims .svs .ndpi .scn .mrxs .bif .dv .r3d .zvi .flex .zarr .h5 .hdf5 .n5": (
        "microscope format",
        "export as TIFF",
    ),
    ".dcm .dicom .nii .mha .mhd .nrrd": ("medical format", "export as TIFF or PNG"),
    ".npy .npz .mat": ("array", "save as TIFF"),
    ".pdf .svg .ai .wmf .emf": ("document", "export as PNG"),
}
"""Endings of images that are not read: their kind, and what to do."""
_UNREAD = {ending: kind for endings, kind in UNREAD.items() for ending in endings.split()}
BROKEN_LINK = ("broken link", "restore the file it points to")
NUM_NAMED = 3
"""Files of a kind that are named."""


def is_image_file(path: Path) -> bool:
    """Return whether the name is that of an image file, and not of a hidden one."""
    ending = path.suffix.lower()
    known = Image.registered_extensions().get(ending) not in (None, *UNREADABLE)
    return (known or ending in TIFF_ENDINGS) and not path.name.startswith(".")


def is_camera_raw(path: Path) -> bool:
    """Return whether Pillow would take the file's preview for the image."""
    return path.suffix.lower() in RAW_ENDINGS.split()


def advice(path: Path) -> str:
    """Return what to do with an image that is not read, by its name; empty where there is nothing to say."""
    kind = _UNREAD.get(path.suffix.lower())
    return "" if kind is None or is_image_file(path) else kind[1]


def describe_unread(files: Iterable[Path]) -> str | None:
    """Name the files that are images but are not read, in one line; None where there are none.

    Args:
        files: of a folder; images that are read and files of other kinds are passed over.
    """
    kinds: dict[tuple[str, str], list[str]] = {}
    for path in files:
        kind = _unread_kind(path)
        if kind is not None:
            kinds.setdefault(kind, []).append(path.name)
    if not kinds:
        return None
    count = sum(map(len, kinds.values()))
    parts = (f"{name_some(names)} ({kind}: {fix})" for (kind, fix), names in kinds.items())
    return f"{count} image file{'s are' if count > 1 else ' is'} not read: {'; '.join(parts)}"


def report_unread(folders: Iterable[Path], on_issue: OnIssue) -> None:
    """Tell of the images in folders of a data set that are not read."""
    for folder in sorted(folders):
        line = describe_unread(sorted(folder.iterdir()))
        if line is not None:
            on_issue(Problem("unread file", f"{folder}: {line}", fatal=False))


def name_some(names: Sequence[str]) -> str:
    """Name the first few of many files, and say how many more there are."""
    rest = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _unread_kind(path: Path) -> tuple[str, str] | None:
    kind = _UNREAD.get(path.suffix.lower())
    if path.name.startswith(".") or (kind is None and not is_image_file(path)):
        return None
    if path.is_symlink() and not path.exists():
        return BROKEN_LINK
    return None if is_image_file(path) else kind
