"""From the words on the command line to an exit code."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import Namespace

from embedmask.cli.commands import COMMANDS
from embedmask.cli.parser import build_parser, find_command
from embedmask.cli.terminal import DONE
from embedmask.cli.threads import let_threads_sleep
from embedmask.errors import BadInput, TrainingStopped

FAILED, BAD = 1, 2
TRAIN_EXTRA = ("lightning", "matplotlib", "tensorboard")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: what follows the program's name; None: this process's own arguments.

    Returns:
        0 done, 2 bad arguments or bad input, 1 anything else.
    """
    show_any_character()
    if argv is None:
        let_threads_sleep()
        read_any_file_name()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return run([word for word in words if word != "--debug"])
    except SystemExit as stop:  # the help was asked for, or a library gave up
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else FAILED
    except KeyboardInterrupt:
        return fail("interrupted", FAILED)
    except BrokenPipeError:  # who read the output has gone, as head does
        sys.stdout = None  # nobody is left to flush it for
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return fail(
            one_line(error),
            BAD if isinstance(error, (BadInput, ArgumentError, ModuleNotFoundError)) else FAILED,
        )


def show_any_character() -> None:
    """Escape the characters that the encoding of stdout or stderr lacks, so that no message can end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def read_any_file_name() -> None:
    """Start again in UTF-8 mode where Python would take file names for ASCII, as it may in the C locale."""
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def run(words: list[str]) -> int:
    """Parse the words and call the function that they name."""
    parser = build_parser(COMMANDS)
    if not words:
        parser.print_help()
        return DONE
    chosen: Namespace = parser.parse_args([re.sub(r"^--data\.", "--augment.", word) for word in words])
    function, values = find_command(COMMANDS, chosen)
    return function(**values) or DONE


def fail(line: str, code: int) -> int:
    """Print on stderr, as one line, why the command failed."""
    print(f"embedmask: {' '.join(line.splitlines())}", file=sys.stderr)
    return code


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in TRAIN_EXTRA:
        return f"{error.name} is not installed; training needs: pip install 'embedmask[train]'"
    if isinstance(error, (BadInput, TrainingStopped)):
        return worker_message(text)
    if isinstance(error, ArgumentError):
        return argument_message(text)
    return f"{type(error).__name__}: {' '.join(text.split())} (--debug shows where)"


def worker_message(text: str) -> str:
    """A loading process wraps its error in a traceback; the message is what follows the error's name."""
    name = f"{BadInput.__module__}.{BadInput.__qualname__}: "
    return " ".join(text.rpartition(name)[2].split()) if name in text else text


def argument_message(text: str) -> str:
    """The parser's report, shortened to the option, its value and what was expected."""
    missing = re.search(r"arguments are required: (.*)", text)
    if missing is not None:
        return f"missing: {', '.join(name.rpartition('.')[2] for name in missing[1].split(', '))}; see --help"
    group = re.search(r"to be one of \{(.*)\}, but it was not provided", text)
    if group is not None:
        return f"missing: one of {group[1].replace(',', ', ')}; see --help"
    option = re.search(r'Parser key "(?:\w+\.)*(\w+)"', text)
    value = re.search(r"(?:Given value|Got value): (.*)", text)
    if option is None or value is None:
        return " ".join(text.split()) + "; see --help"
    kinds = re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*)\])", text)
    expected = [
        name or f"one of {choices.replace(chr(39), '')}" for name, choices in kinds if name != "NoneType"
    ]
    wanted = f", expected {' or '.join(dict.fromkeys(expected))}" if expected else ""
    return f"--{option[1].replace('_', '-')} cannot be {value[1].strip()!r}{wanted}; see --help"
