"""Functions to parsers: every parameter is an option, its docstring entry the option's help."""

from __future__ import annotations

import inspect
from argparse import Action, HelpFormatter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from embedmask import __version__


@dataclass(frozen=True)
class Command:
    """A function and how it is called from the command line.

    Attributes:
        function: returns an exit code, or None for 0.
        positional: its parameter that is given without an option's name.
        epilog: stands under the options in the help.
    """

    function: Callable[..., int | None]
    positional: str | None = None
    epilog: str | None = None

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return docstring_parser.parse(inspect.getdoc(self.function) or "").short_description or ""


Commands = Mapping[str, Union[Command, "Commands"]]

FIELDS = "..."
"""Marks an option that takes a field's name after a dot."""


class Formatter(HelpFormatter):
    """Wide enough for one option a line; a default is shown where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: Action) -> str:
        if action.metavar == FIELDS:
            return f"{action.option_strings[0]}.FIELD VALUE"
        return super()._format_action_invocation(action)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if not action.option_strings or action.default in (None, False, [], "==SUPPRESS=="):
            return text
        return f"{text} (default: {action.default})"


def build_parser(commands: Commands) -> ArgumentParser:
    """The parser of the whole program."""
    parser = ArgumentParser(
        prog="embedmask",
        version=__version__,
        description="EmbedMask: one-stage instance segmentation by coupling pixel and proposal embeddings.",
        epilog="embedmask COMMAND --help says more. --debug shows where an error comes from.",
        exit_on_error=False,
        formatter_class=Formatter,
    )
    _add_commands(parser, commands)
    return parser


def find_command(commands: Commands, chosen: Namespace) -> tuple[Callable[..., int | None], dict[str, Any]]:
    """The function that a parsed command line names, and its arguments."""
    entry, values = commands[chosen.subcommand], chosen[chosen.subcommand]
    if isinstance(entry, Command):
        return entry.function, vars(values)
    return find_command(entry, values)


def _add_commands(parser: ArgumentParser, commands: Commands) -> None:
    subcommands = parser.add_subcommands(required=True, title="commands", metavar="COMMAND")
    for name, entry in commands.items():
        summary = (
            entry.summary
            if isinstance(entry, Command)
            else f"{', '.join(entry)}: see embedmask {name} --help"
        )
        child = ArgumentParser(
            description=summary,
            epilog=entry.epilog if isinstance(entry, Command) else None,
            exit_on_error=False,
            formatter_class=Formatter,
        )
        if isinstance(entry, Command):
            _add_options(child, entry)
        subcommands.add_subcommand(name, child, help=summary)
        if not isinstance(entry, Command):
            _add_commands(child, entry)


def _add_options(parser: ArgumentParser, command: Command) -> None:
    hints = get_type_hints(command.function)
    described = docstring_parser.parse(inspect.getdoc(command.function) or "").params
    helps = {parameter.arg_name: (parameter.description or "").replace("\n", " ") for parameter in described}
    flags = [name for name, hint in hints.items() if hint is bool]
    taken: set[str | int] = set(flags)
    if command.positional is not None:
        taken.add(command.positional)
        many = hints[command.positional] == list[str]
        parser.add_argument(
            command.positional,
            nargs="+" if many else None,
            type=str if many else hints[command.positional],
            metavar=command.positional.upper(),
            help=helps[command.positional],
        )
    for name, parameter in inspect.signature(command.function).parameters.items():
        if name not in taken and get_origin(hints[name]) in (list, tuple):
            taken.add(name)
            _add_words(parser, name, hints[name], parameter.default, helps[name])
    parser.add_function_arguments(command.function, skip=taken, as_positional=False, as_group=False)
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true", help=helps[flag])
    for action in parser._actions:
        _hyphenate(parser, action)
        if "dict" in str(hints.get(action.dest, "")):
            action.metavar = FIELDS


def _add_words(parser: ArgumentParser, name: str, hint: Any, default: Any, text: str) -> None:
    """An option with several values, as words: any number for a list, so many as it has for a tuple."""
    kinds = get_args(hint)
    parser.add_argument(
        f"--{name}",
        nargs="+" if get_origin(hint) is list else len(kinds),
        type=kinds[0],
        default=list(default),
        metavar=("H", "W") if len(kinds) == 2 else None,
        help=text,
    )


def _hyphenate(parser: ArgumentParser, action: Action) -> None:
    """Hyphens in long names, as everywhere on a command line."""
    for option in [option for option in action.option_strings if "_" in option]:
        spelled = option.replace("_", "-")
        parser._option_string_actions[spelled] = action
        action.option_strings = [spelled]
