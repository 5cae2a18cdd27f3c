"""CPU threads: the option --threads, and the OpenMP environment variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import fails

from embedmask.cli import main
from embedmask.cli.threads import OPENMP_SLEEP, OPENMP_VARIABLES, let_threads_sleep

SHOW = "import os; print({name: os.environ.get(name) for name in %r}, 'torch' in __import__('sys').modules)"


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OPENMP_VARIABLES:
        monkeypatch.setenv(name, "x")  # registers the variable, so that it is restored
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("no_choice")
def test_idle_threads_sleep_soon() -> None:
    let_threads_sleep()
    assert {name: os.environ[name] for name in OPENMP_SLEEP} == OPENMP_SLEEP


@pytest.mark.usefixtures("no_choice")
@pytest.mark.parametrize("name", OPENMP_VARIABLES)
def test_environment_of_the_user_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    let_threads_sleep()
    assert {each: os.environ.get(each) for each in OPENMP_VARIABLES} == {
        each: "7" if each == name else None for each in OPENMP_VARIABLES
    }


def run_python(code: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name not in OPENMP_VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_environment_is_set_before_torch_is_imported() -> None:
    code = (
        "import sys; from embedmask.cli import main; sys.argv = ['embedmask', 'convert', '--help']; main(); "
    )
    assert run_python(code + SHOW % (list(OPENMP_SLEEP),)) == f"{OPENMP_SLEEP} False"


def test_import_does_not_change_the_environment() -> None:
    """`test_predicting_needs_no_extra` checks the same of the library."""
    use = "from embedmask.cli import main; main(['--help']); "
    assert run_python(use + SHOW % (list(OPENMP_VARIABLES),)).startswith(str(dict.fromkeys(OPENMP_VARIABLES)))


@pytest.mark.parametrize(
    "command", ["train --config shapes", "eval --weights nuclei", "predict x.png --weights nuclei"]
)
class TestOption:
    def words(self, command: str, tmp_path: Path, threads: int) -> list[str]:
        place = ["--out", str(tmp_path / "out")] if "eval" not in command else []
        data = ["--data", str(tmp_path / "none")] if "predict" not in command else []
        return [*command.split(), *place, *data, "--threads", str(threads)]

    def test_threads_are_set(self, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        requested: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", requested.append)
        assert main(self.words(command, tmp_path, 3)) == 2  # there is no such data
        assert requested == [3]

    def test_raises_on_no_threads(
        self, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = self.words(command, tmp_path, 0)
        assert "--threads must be at least 1, got 0" in fails(capsys, *words)
        assert list(tmp_path.iterdir()) == []
