"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedmask.errors import BadInput


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path` (made if need be) to write to, of the same suffix.

    On success the file is flushed to the disk and takes the name `path`; on any failure it is removed and
    what stood under that name stays as it was.

    Raises:
        BadInput: the folder or the file cannot be written (permissions, a full disk, a folder of that name).
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make files that nobody else may read
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        # an error that names another file is about that file: the caller read something
        ours = (None, *map(str, (temporary, target, *target.parents)))
        if error.filename not in ours:
            raise
        raise BadInput(
            f"{target}: cannot be written ({error.strerror or error}); nothing was changed{_mend(error)}"
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` to fill; on success it becomes `path`, on any failure it is removed.

    Raises:
        BadInput: `path` is a file or a folder that holds something, or the folder cannot be written.
    """
    given, target = Path(path), Path(path).resolve()
    if given.exists() and not given.is_dir():
        raise BadInput(f"{given}: is a file; name a folder to make")
    if given.is_dir() and any(given.iterdir()):
        raise BadInput(f"{given}: the folder is not empty; name another one or empty it")
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.exists():  # an empty folder is filled: its permissions may be someone's own
            for part in list(unfinished.iterdir()):
                part.replace(target / part.name)
        else:
            unfinished.replace(target)
    except OSError as error:
        raise BadInput(f"{given}: cannot be written ({error.strerror or error}); nothing was kept") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_text(path: Path) -> str:
    """Read text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is in another encoding, or no text.
    """
    content = path.read_bytes()
    return content.decode(json.detect_encoding(content))


@contextmanager
def temporary_folder(near: Path) -> Iterator[Path]:
    """Give a new folder on the disk of `near`, inside it or the nearest folder above that exists, and remove it.

    Raises:
        BadInput: nothing can be written there.
    """
    parent = next(folder for folder in (near.absolute(), *near.absolute().parents) if folder.exists())
    temporary = parent / f".{near.name}.{uuid.uuid4().hex[:12]}"
    make_folder(temporary, near)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path, name: Path | None = None) -> None:
    """Make a folder and those above it, where they are missing.

    Args:
        name: named in the message instead of `path`.

    Raises:
        BadInput: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise BadInput(f"{name or path}: cannot be written ({reason}); choose another folder") from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text by `atomic_write`; lone surrogates (from undecodable file names) are escaped."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON by `atomic_write`; nan and infinities, which JSON has no word for, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def write_json_rows(path: str | Path, rows: Iterable[Any]) -> None:
    """Write a JSON list by `atomic_write`, an item a line, as the items come."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "["
        for row in rows:
            file.write(separator + json.dumps(row, allow_nan=False))
            separator = ",\n"
        file.write("]\n" if separator != "[" else "[]\n")


def is_temporary(path: Path) -> bool:
    """Return whether a name is one that `atomic_write` or `temporary_folder` gives."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}(\.\w+)?", path.name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder; nobody may be writing there."""
    for path in filter(is_temporary, list(folder.iterdir())):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _mend(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "; make room on that disk, or choose another" if full else ""


def _flush(path: Path) -> None:
    # Windows flushes only through a descriptor that may write
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
