"""Entry point of the command line: from arguments to an exit code."""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Sequence

from jsonargparse import Namespace

from embedmask.cli.commands import COMMANDS
from embedmask.cli.parser import DATA_FIELDS, build_parser, find_command, rename_data_fields
from embedmask.cli.terminal import FAILURE, INVALID_INPUT, SUCCESS
from embedmask.cli.threads import let_threads_sleep
from embedmask.errors import BadInput, TrainingStopped

TRAIN_EXTRA = ("lightning", "matplotlib", "tensorboard")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; None: those of this process.

    Returns:
        Exit code: 0 success, 2 invalid arguments or input, 1 any other failure.
    """
    show_any_character()
    if argv is None:
        let_threads_sleep()
        read_any_file_name()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    # Pillow's warning about images of more than 89 megapixels; beyond 179, one line refuses them
    warnings.filterwarnings("ignore", r"Image size \(\d+ pixels\) exceeds limit")
    try:
        return run([word for word in words if word != "--debug"])
    except SystemExit as stop:  # after --help or --version, or raised by a library
        # Lightning exits in its own way on Ctrl-C and on SIGTERM; `train` explains it, `train --dry-run` does not
        if isinstance(stop.__context__, KeyboardInterrupt) or type(stop) is not SystemExit:
            return fail("interrupted", FAILURE)
        return stop.code if isinstance(stop.code, int) else SUCCESS if stop.code is None else FAILURE
    except KeyboardInterrupt:
        return fail("interrupted", FAILURE)
    except BrokenPipeError:  # the reader of stdout exited, as `head` does
        sys.stdout = None  # Python would flush it at exit and fail again
        return FAILURE
    except Exception as error:
        if debug:
            traceback.print_exc()
        invalid = isinstance(error, (BadInput, ArgumentError, ModuleNotFoundError))
        return fail(one_line(error), INVALID_INPUT if invalid else FAILURE)


def show_any_character() -> None:
    """Escape characters that the encoding of stdout or stderr lacks, so that printing never fails."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def read_any_file_name() -> None:
    """Restart Python in UTF-8 mode where it would decode file names as ASCII, as in the C locale."""
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def run(words: list[str]) -> int:
    """Parse the arguments and call the function of the command."""
    # --help acts as soon as it is read, so the word that extends it is read first
    every_field = "--all" in words and not {"-h", "--help"}.isdisjoint(words)
    parser = build_parser(COMMANDS, every_field=every_field)
    if not words:
        parser.print_help()
        return SUCCESS
    if every_field:
        words = [word for word in words if word != "--all"]
    parsed: Namespace = parser.parse_args(rename_data_fields(words))
    function, values = find_command(COMMANDS, parsed)
    return function(**values) or SUCCESS


def fail(line: str, code: int) -> int:
    """Print the reason of a failure on stderr, in one line; return the exit code."""
    print(f"embedmask: {' '.join(line.splitlines())}", file=sys.stderr)
    return code


def one_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in TRAIN_EXTRA:
        return f"{error.name} is not installed; training and charts need: pip install 'embedmask[train]'"
    if isinstance(error, (BadInput, TrainingStopped)):
        # a data-loading process wraps its error in a traceback: keep the text after the error's name
        name = f"{BadInput.__module__}.{BadInput.__qualname__}: "
        return " ".join(text.rpartition(name)[2].split()) if name in text else text
    if isinstance(error, ArgumentError):
        return argument_message(text)
    return f"{type(error).__name__}: {' '.join(text.split())} (--debug shows the traceback)"


def argument_message(text: str) -> str:
    """Shorten the parser's message to the option, its value and the expected values."""
    # a required option: "the following arguments are required: weights, data"
    missing = re.search(r"arguments are required: (.*)", text)
    if missing is not None:
        return f"missing: {', '.join(name.rpartition('.')[2] for name in missing[1].split(', '))}; see --help"
    # a command without a subcommand
    group = re.search(r"to be one of \{(.*)\}, but it was not provided", text)
    if group is not None:
        return f"missing: one of {group[1].replace(',', ', ')}; see --help"
    # an invalid value: the key is dotted for subcommands, and the value follows one of two phrases
    option = re.search(r'Parser key "(?:\w+\.)*(\w+)"', text)
    value = re.search(r"(?:Given value|Got value): (.*)", text)
    if option is None or value is None:
        return " ".join(text.split()).replace(f"{DATA_FIELDS}.", "--data.") + "; see --help"
    # one entry per member of a union: a class name, or the choices of a Literal
    types = re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*)\])", text)
    expected = [
        name or f"one of {choices.replace(chr(39), '')}" for name, choices in types if name != "NoneType"
    ]
    hint = f", expected {' or '.join(dict.fromkeys(expected))}" if expected else ""
    return f"--{option[1].replace('_', '-')} cannot be {value[1].strip()!r}{hint}; see --help"
