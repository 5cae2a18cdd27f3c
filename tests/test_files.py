"""Atomic writes: a reader sees the old file or the new one."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from embedmask.errors import BadInput
from embedmask.files import (
    atomic_folder,
    atomic_write,
    bundled_folder,
    check_writable,
    exclusive,
    is_temporary,
    make_folder,
    remove_temporary,
    write_json,
    write_json_rows,
    write_text,
)


def test_write_replaces_content(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert os.listdir(path.parent) == ["a.txt"]


def test_old_file_remains_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with atomic_write(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
        temporary.write_bytes(b"half")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), BadInput("no")])
def test_failure_leaves_no_trace(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_full_disk_preserves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fill() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BadInput, match=r"a\.txt: cannot be written \(No space left on device\)"):
        fill()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_error_of_another_file_is_reraised(tmp_path: Path) -> None:
    def read_another() -> None:
        with atomic_write(tmp_path / "a.txt"):
            (tmp_path / "missing.txt").read_text()

    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        read_another()
    assert os.listdir(tmp_path) == []


def test_raises_on_folder_or_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "a.txt"):
        with pytest.raises(BadInput, match="cannot be written") as caught:
            write_text(path, "x")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    """The system says that a file exists, or that something is no folder, but not which."""
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BadInput, match=rf"{file} is a file, not a folder"):
        write_text(file / "a.txt", "x")
    for path in (file, file / "a", file / "a" / "b"):
        with pytest.raises(BadInput, match=rf"{file} is a file, not a folder"):
            make_folder(path)
    with pytest.raises(BadInput, match=rf"{file} is a file, not a folder"), atomic_folder(file / "a"):
        pass


def test_files_are_checked_before_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("old")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a.txt", tmp_path / "new/folder/b.txt", Path("a.txt"), Path("c.txt")):
        check_writable(path)
    for path in (tmp_path, tmp_path / "a.txt" / "b.txt"):
        with pytest.raises(BadInput, match=r"is a folder|cannot be written"):
            check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_file_has_the_default_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with atomic_write(tmp_path / "a") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"segm/AP": math.nan, "rows": [1, 0.5, math.inf, "text", None, True], "size": (2, 3)})
    expected = {"segm/AP": None, "rows": [1, 0.5, None, "text", None, True], "size": [2, 3]}
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": "ö"}, 2, None]])
def test_rows_are_written_one_per_line(tmp_path: Path, rows: list[object]) -> None:
    write_json_rows(tmp_path / "a.json", iter(rows))
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == rows
    assert text.count("\n") == max(len(rows), 1)


def test_failing_rows_preserve_the_old_file(tmp_path: Path) -> None:
    write_json_rows(tmp_path / "a.json", [1])
    with pytest.raises(ZeroDivisionError):
        write_json_rows(tmp_path / "a.json", (1 // k for k in (1, 0)))
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_folders_of_a_checkout_without_symbolic_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src/embedmask").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    (tmp_path / "src/embedmask/configs").write_text("../../configs")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path / "src" / package)
    assert bundled_folder("configs").resolve() == tmp_path / "configs"
    assert bundled_folder("models") == tmp_path / "src/embedmask/models"


def test_long_names(tmp_path: Path) -> None:
    write_text(tmp_path / ("細" * 80 + ".jsonl"), "text")
    (written,) = tmp_path.iterdir()
    assert (written.name, written.read_text()) == ("細" * 80 + ".jsonl", "text")
    with pytest.raises(BadInput, match="a: cannot be written"):
        write_text(tmp_path / ("a" * 300), "text")
    assert list(tmp_path.iterdir()) == [written]


def test_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    paths = [
        tmp_path / name
        for name in ("last.ckpt", ".hidden", ".last.202611301658.bak", "a.tmp-0123456789ab.ckpt")
    ]
    for path in paths:
        path.touch()
    with atomic_write(tmp_path / "last.ckpt") as temporary:
        assert is_temporary(temporary)
        copy = temporary.read_bytes()
    temporary.write_bytes(copy)
    assert not any(is_temporary(path) for path in paths)
    remove_temporary(tmp_path)
    assert not temporary.exists()
    assert paths[0].exists()
    assert paths[1].exists()
    assert paths[2].exists()  # a backup with its time


needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no lock of a folder")


@needs_locks
def test_folder_has_one_writer(tmp_path: Path) -> None:
    folder, other = tmp_path / "new" / "run", tmp_path / "other"
    with exclusive(folder), exclusive(other):
        with pytest.raises(BadInput, match=f"{folder}: another run is writing there"), exclusive(folder):
            raise AssertionError
        assert list(folder.iterdir()) == []
    with exclusive(folder):
        pass


@needs_locks
def test_killed_writer_holds_no_lock(tmp_path: Path) -> None:
    code = f"""
import os, time
from importlib import resources
from pathlib import Path
from embedmask.files import exclusive
with exclusive(Path({str(tmp_path)!r})):
    if not os.fork():  # as data loaders do
        print(os.getpid(), flush=True)  # the child runs and has closed the folder
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        try:
            child = int(writer.stdout.readline())
            with pytest.raises(BadInput, match="another run"), exclusive(tmp_path):
                raise AssertionError
        finally:
            writer.send_signal(signal.SIGKILL)
    try:
        with exclusive(tmp_path):
            assert list(tmp_path.iterdir()) == []
    finally:
        os.kill(child, signal.SIGKILL)
