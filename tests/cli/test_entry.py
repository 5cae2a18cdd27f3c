"""Behavior common to all commands: help, invalid arguments, exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from command_line import fails
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from embedmask import __version__
from embedmask.cli import main
from embedmask.cli.entry import one_line
from embedmask.config import DataConfig, MaskRCNNConfig, ModelConfig, TrainConfig
from embedmask.errors import BadInput
from embedmask.synthetic.dataset import make_shapes


class TestHelp:
    @pytest.mark.parametrize(
        "command",
        [
            "",
            "train",
            "eval",
            "predict",
            "convert",
            "recipes",
            "data",
            "data shapes",
            "data check",
            "data show",
            "data split",
        ],
    )
    def test_every_command_has_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*command.split(), "--help"]) == 0
        assert "usage: embedmask" in capsys.readouterr().out

    def test_options_have_hyphens(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["predict", "--help"])
        text = capsys.readouterr().out
        assert "--score-threshold" in text
        assert "--score_threshold" not in text

    @pytest.mark.parametrize("word", ["--help", "-h"])
    def test_train_lists_common_fields(self, word: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", word]) == 0
        text = capsys.readouterr().out
        assert "[--data.FIELD VALUE]" in text
        assert "--train.lr " in text
        assert "--train.momentum" not in text
        assert text.endswith("embedmask train --help --all lists every field.\n")

    @pytest.mark.parametrize("words", ["train --help --all", "train --all -h"])
    def test_all_lists_every_field(
        self, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "500")
        assert main(words.split()) == 0
        lines = [
            line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "default: " in line
        ]
        listed = {name: text for name, text in lines if "." in name}
        configs = {"model": (ModelConfig, MaskRCNNConfig), "data": (DataConfig,), "train": (TrainConfig,)}
        expected = {f"--{name}.{f.name}" for name, own in configs.items() for cls in own for f in fields(cls)}
        assert set(listed) == expected
        assert listed["--model.embed_dim"] == (
            "Dimension D of the embeddings (Table 2 e) (a whole number, at least 1; default: 32)"
        )
        assert listed["--model.margin"].endswith("(one of predicted, constant, hinge; default: predicted)")
        assert listed["--data.crop_size"].endswith("(a whole number, at least 32, or null; default: null)")
        assert listed["--train.milestones"].endswith("between 0 and 1; default: [0.666667, 0.888889])")

    def test_all_lists_the_fields_of_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "show", "--help", "--all"]) == 0
        text = capsys.readouterr().out
        assert "--data.min_box_side" in text
        assert "--train." not in text

    def test_all_extends_help_only(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--all" in fails(capsys, "train", "--data", "x", "--all")

    def test_help_needs_no_torch(self) -> None:
        code = "import sys; from embedmask.cli import main; main(['train', '--help', '--all'])"
        code += "; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_package_is_executable(self) -> None:
        words = [sys.executable, "-m", "embedmask", "--version"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"embedmask {__version__}\n")

    def test_closed_stdout_is_no_error(self) -> None:
        words = f"{sys.executable} -m embedmask recipes | head -c 1"
        done = subprocess.run(words, shell=True, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("a", "")

    def test_no_arguments_list_the_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        assert "predict" in capsys.readouterr().out


class TestArguments:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["predikt"], "predikt"),
            (["data"], "shapes, check, show"),
            (["eval", "--weights", "x"], "missing: data"),
            (["predict", "--weights", "x", "--out", "y"], "missing: source"),
            (["eval", "--weights", "x", "--data", "y", "--max-detections", "many"], "--max-detections"),
            (["eval", "--weights", "x", "--data", "y", "--precision", "half"], "bfloat16"),
            (["data", "shapes", "x", "--size", "wide"], "--size"),
            (["train", "--data", "x", "--out", "y", "--speed", "9"], "--speed"),
            (["data", "check", "x", "--data.repeat", "9"], "--data.repeat"),
        ],
    )
    def test_invalid_arguments_are_named(
        self, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert expected in fails(capsys, *words)

    def test_raises_on_unknown_device(
        self, eager: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
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
            == "embedmask: RuntimeError: first line second line (--debug shows the traceback)\n"
        )
        assert main([*words, "--debug"]) == 1
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
    def test_an_interrupted_dry_run_fails(
        self, signal: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Lightning exits on both signals: with SystemExit while it handles Ctrl-C, and with its own subclass."""

        def interrupted(words: list[str]) -> int:
            if signal == "SIGTERM":
                raise SIGTERMException
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sys.exit(1)

        monkeypatch.setattr("embedmask.cli.entry.run", interrupted)
        assert main(["train", "--dry-run"]) == 1
        assert capsys.readouterr().err == "embedmask: interrupted\n"

    def test_error_of_a_loading_process_has_no_traceback(self) -> None:
        wrapped = "Caught in worker 0.\nTraceback:\n  File x\nembedmask.errors.BadInput: a.jpg: cut short\n"
        assert one_line(BadInput(wrapped)) == "a.jpg: cut short"


def raises(error: Exception) -> Callable[..., Any]:
    """Return a function that raises an error."""

    def fail(*args: Any) -> None:
        raise error

    return fail


NAME = "\u5199\u771f"
"""Name that neither Western nor C consoles can show."""


class TestConsoles:
    @pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
    def test_unencodable_characters_are_escaped(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr("sys.stderr", err)
        monkeypatch.setattr("embedmask.cli.entry.run", lambda words: print(f"{NAME} \xb7 \udcff") or 0)
        assert main([]) == 0
        monkeypatch.setattr("embedmask.cli.entry.run", raises(BadInput(f"{NAME} \udcff")))
        assert main([]) == 2
        monkeypatch.undo()
        out.seek(0)
        err.seek(0)
        assert err.read().startswith("embedmask: ")
        assert out.read().replace("\\u5199\\u771f", NAME).replace("\\xb7", "\xb7") == f"{NAME} \xb7 \\udcff\n"

    def test_error_with_a_line_break_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert f"{NAME} x.png" in fails(capsys, "predict", f"{NAME}\nx.png", "--weights", "x", "--out", "y")

    @pytest.mark.slow
    def test_file_names_are_read_in_the_c_locale(self, tmp_path: Path) -> None:
        """Test the C locale, where Python decodes file names as ASCII by default."""
        make_shapes(tmp_path, train=1, val=1, size=64, seed=0)
        content = json.loads((tmp_path / "train.json").read_text())
        image = content["images"][0]
        name = f"{NAME}.png"
        (tmp_path / "images" / image["file_name"]).rename(tmp_path / "images" / name)
        image["file_name"] = name
        (tmp_path / "train.json").write_text(json.dumps(content))
        code = "import sys; from embedmask.cli import main; sys.exit(main())"
        words = [sys.executable, "-c", code, "data", "check", str(tmp_path), "--quick"]
        bare = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(words, env={**os.environ, **bare}, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout


def test_warning_about_large_images_is_not_printed() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([]) == 0
        text = "Image size (100000000 pixels) exceeds limit of 89478485 pixels, could be decompression bomb"
        warnings.warn(text, Image.DecompressionBombWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["another"]
