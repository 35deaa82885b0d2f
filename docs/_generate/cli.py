"""The command line, for its reference page and for the tests of documents.

Everything that depends on the library that parses the command line is in this file: ``commands``
describes each command, ``check`` parses the words of one call without running it. The page itself
is ``runtime.cli.reference``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from runtime.cli import reference as code_reference
from runtime.cli.commands import program
from runtime.cli.main import SCRIPT


class WrongUsage(ValueError):
    """The parser refuses these words; the text is its message."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One option or argument of a command."""

    usage: str
    """As it is written, for instance ``--max-tokens N``."""
    purpose: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command, by the words that call it, for instance ``cache ls``."""

    name: str
    purpose: str
    parameters: tuple[Parameter, ...]


def reference() -> str:
    """The page's Markdown without its heading: one section for each command."""
    page = code_reference.markdown()
    return page[page.index("\n## ") + 1 :]


def commands() -> list[Command]:
    """Every command and subcommand, in the order of the program's help."""
    return [
        Command(
            context.command_path.removeprefix(f"{SCRIPT} "),
            context.command.help or "",
            tuple(_parameters(context)),
        )
        for context in code_reference.commands()
    ]


def _parameters(context: click.Context) -> Iterator[Parameter]:
    for one in context.command.params:
        if isinstance(one, click.Argument):
            yield Parameter(one.human_readable_name, one.help or "")
        elif record := one.get_help_record(context):
            yield Parameter(*record)


def check(words: Sequence[str]) -> None:
    """Parse one call; raises ``WrongUsage`` with the parser's message."""
    command: Any = program
    name, rest, parent = SCRIPT, list(words), None
    try:
        while True:
            context = command.make_context(name, rest, parent=parent)
            if not isinstance(command, click.Group):
                return
            left = [*context._protected_args, *context.args]
            name, command, rest = command.resolve_command(context, left)
            parent = context
    except click.exceptions.Exit:
        return  # --help
    except click.ClickException as error:
        raise WrongUsage(error.format_message()) from None
