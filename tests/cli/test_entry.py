"""What every command shares: help, how bad words are told, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import fails

from embedmask.cli import main
from embedmask.cli.entry import one_line
from embedmask.errors import BadInput


class TestHelp:
    @pytest.mark.parametrize(
        "command",
        ["", "train", "eval", "predict", "convert", "data", "data shapes", "data check", "data split"],
    )
    def test_every_command_explains_itself(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*command.split(), "--help"]) == 0
        assert "usage: embedmask" in capsys.readouterr().out

    def test_options_are_spelled_with_hyphens(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["predict", "--help"])
        text = capsys.readouterr().out
        assert "--score-threshold" in text
        assert "--score_threshold" not in text

    def test_train_names_every_field(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["train", "--help"])
        words = capsys.readouterr().out.replace(",", " ").replace(".", " ").split()
        assert {"margin", "short_sides", "warmup_steps", "--model"} <= set(words)

    def test_help_needs_no_torch(self) -> None:
        code = "import sys; from embedmask.cli import main; main(['train', '--help'])"
        code += "; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_no_words_show_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert "predict" in capsys.readouterr().out


class TestArguments:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["predikt"], "predikt"),
            (["data"], "shapes, check, show"),
            (["eval", "--weights", "x"], "missing: data"),
            (["predict", "--weights", "x", "--out", "y"], "missing: source"),
            (["eval", "--weights", "x", "--data", "y", "--max-detections", "many"], "--max-detections"),
            (["eval", "--weights", "x", "--data", "y", "--precision", "half"], "bfloat16"),
            (["data", "shapes", "x", "--size", "wide"], "--size"),
            (["train", "--data", "x", "--out", "y", "--speed", "9"], "--speed"),
        ],
    )
    def test_bad_words_are_named(
        self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert said in fails(capsys, *words)

    def test_unknown_device(self, eager: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = fails(capsys, "eval", "--weights", eager, "--data", shapes, "--device", "abacus")
        assert "abacus" in line

    def test_other_errors_are_one_line_and_exit_1(
        self, eager: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("first line\nsecond line")

        monkeypatch.setattr("embedmask.evaluation.run.evaluate_weights", broken)
        words = ["eval", "--weights", str(eager), "--data", str(shapes)]
        assert main(words) == 1
        assert (
            capsys.readouterr().err
            == "embedmask: RuntimeError: first line second line (--debug shows where)\n"
        )
        assert main([*words, "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err

    def test_message_of_a_loading_process_loses_its_traceback(self) -> None:
        wrapped = "Caught in worker 0.\nTraceback:\n  File x\nembedmask.errors.BadInput: a.jpg: cut short\n"
        assert one_line(BadInput(wrapped)) == "a.jpg: cut short"
