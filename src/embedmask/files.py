"""Atomic writes of files and folders, and JSON and text files."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from embedmask.errors import BadInput


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` on success.

    The temporary file has the suffix of `path` and lies in its folder, which is created if necessary. On success it is
    flushed to the disk and renamed. On failure it is removed and an existing file at `path` stays unchanged.

    Raises:
        BadInput: the folder or the file cannot be written (permissions, a full disk, a folder of that name).
    """
    target = Path(path)
    # file systems limit names to 255 bytes, so a long stem is cut: a character has at most 4
    temporary = target.with_name(f".{target.stem[:50]}.{_new_tag()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers restrict it to the owner
        # the content must be on the disk before the rename; Windows flushes writable descriptors only
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        # an error that names another file comes from the caller, who may read files within the block
        if error.filename not in (None, *map(str, (temporary, target, *target.parents))):
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "; make room on that disk, or choose another" if is_full else ""
        reason = _reason(error, target.parent)
        raise BadInput(f"{target}: cannot be written ({reason}); nothing was changed{fix}") from error
    finally:
        # the name may be impossible, and an error of it must not hide the first one
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which becomes `path` on success and is removed on failure.

    Raises:
        BadInput: `path` is a file or a folder that is not empty, or the folder cannot be written.
    """
    requested, target = Path(path), Path(path).resolve()
    if requested.exists() and not requested.is_dir():
        raise BadInput(f"{requested}: is a file; choose a new folder")
    if requested.is_dir() and any(requested.iterdir()):
        raise BadInput(f"{requested}: the folder is not empty; choose another one or empty it")
    unfinished = target.with_name(f".{target.name}.{_new_tag()}")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.exists():  # fill an existing empty folder, to preserve its permissions
            for part in list(unfinished.iterdir()):
                part.replace(target / part.name)
        else:
            unfinished.replace(target)
    except OSError as error:
        reason = _reason(error, target)
        raise BadInput(f"{requested}: cannot be written ({reason}); nothing was written") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_text(path: Path) -> str:
    """Read text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it has another encoding, or is not text.
    """
    content = path.read_bytes()
    # recognizes UTF-16 and UTF-32 by their byte order mark or zero bytes
    return content.decode(json.detect_encoding(content))


def parse_yaml(text: str, path: str | Path, *, as_text: bool = False) -> Any:
    """Parse the YAML of a file.

    Args:
        path: file, for messages.
        as_text: keep every scalar as text: `no` is not a bool, 007 not an octal number.

    Raises:
        BadInput: it is not valid YAML, or a key is given twice.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None:
            _refuse_repeated_keys(root, path)
        return yaml.load(text, yaml.BaseLoader if as_text else yaml.SafeLoader)
    except BadInput:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # an impossible date is a ValueError
        raise BadInput(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it") from None


def _refuse_repeated_keys(node: yaml.Node, path: str | Path) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            _refuse_repeated_keys(value, path)
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise BadInput(
                        f"{path}: {key.value!r} is given twice (lines {lines[name]} and {line}); keep one"
                    )
                lines[name] = line


@contextmanager
def temporary_folder(near: Path) -> Iterator[Path]:
    """Yield a new folder in `near` or its nearest existing parent, so on the same disk, and remove it afterwards.

    Raises:
        BadInput: the folder cannot be created.
    """
    parent = next(folder for folder in (near.absolute(), *near.absolute().parents) if folder.exists())
    temporary = parent / f".{near.name}.{_new_tag()}"
    make_folder(temporary, near)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Check, before the work, that a file can be written.

    Raises:
        BadInput: it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; choose the name of a file")
    with temporary_folder(path.parent):
        pass


def bundled_folder(name: str) -> Path:
    """Return a folder of the package, even in a checkout without symbolic links, where a link is a text file."""
    path = Path(str(resources.files("embedmask"))) / name
    return path.parent / path.read_text(encoding="utf-8").strip() if path.is_file() else path


def make_folder(path: Path, name: Path | None = None) -> None:
    """Make a folder and its missing parents.

    Args:
        path: folder to make.
        name: path for the error message; None: `path`.

    Raises:
        BadInput: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = _reason(error, path)
        raise BadInput(f"{name or path}: cannot be written ({reason}); choose another folder") from error


def _reason(error: OSError, folder: Path) -> str:
    """Return why a folder could not be made or written to; the system only says that a file exists."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        for path in (folder, *folder.parents):
            if path.is_file():
                return f"{path} is a file, not a folder"
    return error.strerror or str(error)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Make a folder and hold a lock on it, so that two runs do not mix or delete each other's files.

    The lock is on the folder itself and ends with the process, even if that is killed: forked processes do not hold it.
    There is no lock on Windows and on file systems that do not support it.

    Raises:
        BadInput: another process holds the lock, or the folder cannot be made.
    """
    make_folder(folder)
    if sys.platform == "win32":
        yield
        return
    import fcntl  # not on Windows

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                f"{folder}: another run is writing there; wait until it ends, stop it, or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        _LOCKED.add(descriptor)
        yield
    finally:
        _LOCKED.discard(descriptor)
        os.close(descriptor)


_LOCKED: set[int] = set()
"""Descriptors of the folders that this process holds."""


def _close_locked() -> None:
    """Close the descriptors that a forked process has inherited: they would keep the lock of a killed parent."""
    while _LOCKED:
        os.close(_LOCKED.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_locked)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text by `atomic_write`; lone surrogates (from undecodable file names) are escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON by `atomic_write`; nan and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def write_json_rows(path: str | Path, rows: Iterable[Any], *, head: str = "", tail: str = "") -> None:
    """Write an iterable as a JSON list by `atomic_write`, one item per line, between the texts `head` and `tail`."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_json_rows(rows, head, tail))


def write_zipped_json_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write the text of `write_json_rows` as the only member of a zip file; both have the same name but the suffix."""
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{path.stem}.json", "w", force_zip64=True) as file,
    ):
        file.writelines(line.encode() for line in _json_rows(rows))


def _json_rows(rows: Iterable[Any], head: str = "", tail: str = "") -> Iterator[str]:
    """Yield the text of a JSON list, one item per line."""
    separator = head + "["
    for row in rows:
        yield separator + json.dumps(row, allow_nan=False)
        separator = ",\n"
    yield ("" if separator == ",\n" else separator) + "]" + tail + "\n"


def _new_tag() -> str:
    """Return a random part of a temporary name; `is_temporary` recognizes it."""
    return f"tmp-{uuid.uuid4().hex[:12]}"


def is_temporary(path: Path) -> bool:
    """Return whether a path has a name of `atomic_write`, `atomic_folder` or `temporary_folder`."""
    return re.fullmatch(r"\..*\.tmp-[0-9a-f]{12}(\.\w+)?", path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder; see `exclusive`."""
    for path in filter(is_temporary, list(folder.iterdir())):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
