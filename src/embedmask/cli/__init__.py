"""The command line: `embedmask train | eval | predict | convert | data`.

A command is a function in `commands`: its signature and docstring are its options and its help. Heavy
libraries are imported inside the functions, so that `--help` answers at once. Errors become one line on
stderr: exit code 2 for bad arguments and bad input, 1 for anything else, 0 when done.
"""

from embedmask.cli.entry import main

__all__ = ["main"]
