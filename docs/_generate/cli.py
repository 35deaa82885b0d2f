"""The reference of the command line, from its parser.

Everything that depends on the library that parses the command line is in this file: ``commands``
describes each command, ``check`` parses the words of one call without running it. The tests use
both. Where the code has a reference of its own (``runtime.cli.reference``), that is the page.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

PROGRAM = "llama-actors"
USES_CLICK = importlib.util.find_spec("runtime.cli.reference") is not None


class WrongUsage(ValueError):
    """The parser refuses these words; the text is its message."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One flag or argument of a command."""

    usage: str
    """As it is written, for instance ``--max-tokens N``."""
    purpose: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command, by the words that call it, for instance ``cache ls``."""

    name: str
    purpose: str
    parameters: tuple[Parameter, ...] = field(default=())
    has_subcommands: bool = False


def commands() -> list[Command]:
    """Every command and subcommand, in the order of the program's help."""
    return list(_click_commands() if USES_CLICK else _argparse_commands())


def check(words: Sequence[str]) -> None:
    """Parse one call; raises ``WrongUsage`` with the parser's message."""
    if USES_CLICK:
        _click_check(words)
        return
    parser = _argparse_parser(next((word for word in words if word[:1] != "-"), ""))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(list(words))
    except SystemExit as end:
        if end.code not in (None, 0):
            raise WrongUsage(errors.getvalue().strip()) from None


def reference() -> str:
    """The page's Markdown: one section for each command."""
    if USES_CLICK:
        page: str = importlib.import_module("runtime.cli.reference").markdown()
        return page[page.index("\n## ") + 1 :]
    return "\n".join(_section(command) for command in commands())


def _section(command: Command) -> str:
    lines = [f"## {PROGRAM} {command.name}", "", f"{_sentence(command.purpose)}", ""]
    if command.parameters:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{_cell(one.usage)}` | {_cell(one.purpose)} |" for one in command.parameters]
        lines.append("")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".") if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# click


def _click_commands() -> Iterator[Command]:
    for context in importlib.import_module("runtime.cli.reference").commands():
        command = context.command
        records = [
            Parameter(usage, help_)
            for one in command.params
            for usage, help_ in [_click_record(one, context)]
            if usage
        ]
        name = context.command_path.removeprefix(f"{PROGRAM} ")
        yield Command(name, command.help or "", tuple(records), hasattr(command, "commands"))


def _click_record(one: Any, context: Any) -> tuple[str, str]:
    if one.param_type_name == "argument":
        return one.human_readable_name, getattr(one, "help", "") or ""
    return one.get_help_record(context) or ("", "")


def _click_check(words: Sequence[str]) -> None:
    import click

    program: Any = importlib.import_module("runtime.cli.commands").program
    command, name, rest, parent = program, PROGRAM, list(words), None
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


# argparse


def _argparse_parser(named: str) -> argparse.ArgumentParser:
    from runtime.cli.main import _parser

    return _parser(named)


def _argparse_commands() -> Iterator[Command]:
    subparsers = _subparsers(_argparse_parser(""))
    assert subparsers is not None
    for choice in subparsers._choices_actions:
        whole = _subparsers(_argparse_parser(choice.dest))
        assert whole is not None
        yield from _described(choice.dest, choice.help or "", whole.choices[choice.dest])


def _described(name: str, purpose: str, parser: argparse.ArgumentParser) -> Iterator[Command]:
    below = _subparsers(parser)
    parameters = tuple(
        Parameter(_usage(action), action.help or "")
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
    )
    yield Command(name, purpose, parameters, below is not None)
    if below is not None:
        for choice in below._choices_actions:
            yield from _described(
                f"{name} {choice.dest}", choice.help or "", below.choices[choice.dest]
            )


def _subparsers(
    parser: argparse.ArgumentParser,
) -> argparse._SubParsersAction[argparse.ArgumentParser] | None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action
    return None


def _usage(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    value = action.metavar or (
        "|".join(str(choice) for choice in action.choices)
        if action.choices
        else action.dest.upper()
    )
    value = value if isinstance(value, str) else " ".join(value)
    return f"{', '.join(action.option_strings)} {value}".strip()
