"""Parsers built from functions: each parameter becomes an option, its docstring entry the help."""

from __future__ import annotations

import inspect
import re
from argparse import Action, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

from embedmask import __version__
from embedmask.cli.field_help import describe_sections
from embedmask.errors import BadInput


@dataclass(frozen=True)
class Command:
    """Function that is called from the command line.

    Attributes:
        function: Implementation; returns an exit code, or None for 0.
        positional: Parameter that is passed without an option name.
        sections: Sections of a recipe whose fields the command can change; its help lists them.
    """

    function: Callable[..., int | None]
    positional: str | None = None
    sections: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return the first line of the docstring."""
        return docstring_parser.parse(inspect.getdoc(self.function) or "").short_description or ""


Commands = Mapping[str, Union[Command, "Commands"]]

FIELDS = "..."
"""Metavar of options that take a field name after a dot, such as --model.FIELD."""
DATA_FIELDS = "--augment"
"""Option of the fields of `data` inside the parser, and an alias of --data.FIELD: --data itself is the folder."""


class Formatter(HelpFormatter):
    """Help formatter with a wide column of options, which shows defaults."""

    def __init__(self, prog: str, column: int = 32) -> None:
        super().__init__(prog, max_help_position=column)

    def _expand_help(self, action: Action) -> str:
        text = super()._expand_help(action)
        if not action.option_strings or action.default in (None, False, [], "==SUPPRESS=="):
            return text
        return f"{text} (default: {action.default})"


class CommandParser(ArgumentParser):
    """Parser of one command, whose help also describes config fields.

    Attributes:
        sections: see `Command`.
        every_field: describe every field, not only the common ones.
    """

    sections: tuple[str, ...] = ()
    every_field = False

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Return the help of the command and of the fields that it can change."""
        for action in self._actions:
            if action.metavar == FIELDS:  # for display only: parsing needs the option without a field
                (option,) = action.option_strings
                shown = "--data" if option == DATA_FIELDS else option
                action.option_strings, action.metavar = [f"{shown}.FIELD"], "VALUE"
        text = super().format_help(formatter)
        if not self.sections:
            return text
        command = self.prog.replace("[options] ", "")
        more = "" if self.every_field else f"\n{command} --help --all lists every field.\n"
        fields = describe_sections(self.sections, Formatter(self.prog, column=36), every=self.every_field)
        return f"{text}\n{fields}{more}"


def rename_data_fields(words: Sequence[str]) -> list[str]:
    """Replace `--data.FIELD` by the name of the option inside the parser.

    Raises:
        BadInput: a field is given as `--data.FIELD` and `--augment.FIELD`.
    """
    fields = {
        prefix: {word.removeprefix(prefix).partition("=")[0] for word in words if word.startswith(prefix)}
        for prefix in ("--data.", f"{DATA_FIELDS}.")
    }
    twice = set.intersection(*fields.values())
    if twice:
        name = min(twice)
        raise BadInput(f"--data.{name} and --augment.{name} are the same option; give --data.{name} only")
    return [re.sub(r"^--data\.", f"{DATA_FIELDS}.", word) for word in words]


def build_parser(commands: Commands, *, every_field: bool = False) -> ArgumentParser:
    """Build the parser of all commands; their help lists every config field or the common ones."""
    parser = ArgumentParser(
        prog="embedmask",
        version=__version__,
        description="EmbedMask: one-stage instance segmentation by coupling pixel and proposal embeddings.",
        epilog="embedmask COMMAND --help lists the options. --debug shows the traceback of an error.",
        exit_on_error=False,
        formatter_class=Formatter,
    )
    _add_commands(parser, commands, every_field)
    return parser


def find_command(commands: Commands, parsed: Namespace) -> tuple[Callable[..., int | None], dict[str, Any]]:
    """Return the function that a parsed command line selects, and its arguments."""
    entry, values = commands[parsed.subcommand], parsed[parsed.subcommand]
    if isinstance(entry, Command):
        return entry.function, vars(values)
    return find_command(entry, values)


def _add_commands(parser: ArgumentParser, commands: Commands, every_field: bool) -> None:
    """Add a subparser for each command, recursively for groups of commands."""
    subcommands = parser.add_subcommands(required=True, title="commands", metavar="COMMAND")
    for name, entry in commands.items():
        summary = (
            entry.summary
            if isinstance(entry, Command)
            else f"{', '.join(entry)}: see embedmask {name} --help"
        )
        child = CommandParser(description=summary, exit_on_error=False, formatter_class=Formatter)
        if isinstance(entry, Command):
            child.sections, child.every_field = entry.sections, every_field
            _add_options(child, entry)
        # jsonargparse requires an outer level to be added before its inner ones
        subcommands.add_subcommand(name, child, help=summary)
        if not isinstance(entry, Command):
            _add_commands(child, entry, every_field)


def _add_options(parser: ArgumentParser, command: Command) -> None:
    """Add the options of a command.

    jsonargparse reads lists as YAML and booleans as `--flag true`. Positionals, lists, tuples and flags are therefore
    added one by one, and only the remaining parameters from the signature.
    """
    hints = get_type_hints(command.function)
    described = docstring_parser.parse(inspect.getdoc(command.function) or "").params
    helps = {parameter.arg_name: (parameter.description or "").replace("\n", " ") for parameter in described}
    flags = [name for name, hint in hints.items() if hint is bool]
    added: set[str | int] = set(flags)
    if command.positional is not None:
        added.add(command.positional)
        many = hints[command.positional] == list[str]
        parser.add_argument(
            command.positional,
            nargs="+" if many else None,
            type=str if many else hints[command.positional],
            metavar=command.positional.upper(),
            help=helps[command.positional],
        )
    for name, parameter in inspect.signature(command.function).parameters.items():
        if name not in added and get_origin(hints[name]) in (list, tuple):
            added.add(name)
            _add_sequence(parser, name, hints[name], parameter.default, helps[name])
    parser.add_function_arguments(command.function, skip=added, as_positional=False, as_group=False)
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true", help=helps[flag])
    for action in parser._actions:
        # argparse cannot rename an option: register the hyphenated spelling, the old one stays accepted
        spelled = [option.replace("_", "-") for option in action.option_strings]
        parser._option_string_actions |= dict.fromkeys(spelled, action)
        action.option_strings = spelled
        # a dict is filled field by field
        if "dict" in str(hints.get(action.dest, "")):
            action.metavar = FIELDS


def _add_sequence(parser: ArgumentParser, name: str, hint: Any, default: Any, text: str) -> None:
    """Add an option with several values: any number for a list, the exact number for a tuple."""
    types = get_args(hint)
    parser.add_argument(
        f"--{name}",
        nargs="+" if get_origin(hint) is list else len(types),
        type=types[0],
        default=list(default),
        metavar=("H", "W") if len(types) == 2 else None,
        help=text,
    )
