"""The command line `embedmask`.

Each command is a function; its signature and docstring define its options and help. Heavy libraries are imported
inside the functions, so that `--help` stays fast. Errors print one line on stderr and set the exit code: 2 for invalid
arguments or input, 1 for any other failure.
"""

from embedmask.cli.entry import main

__all__ = ["main"]
