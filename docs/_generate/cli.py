"""The reference of the command line, from its parser.

Everything that knows which library parses the command line is in this file: ``commands`` describes
each command, ``check`` parses the words of one call without running it. The tests use both.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PROGRAM = "llama-actors"


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
    return list(_argparse_commands())


def check(words: Sequence[str]) -> None:
    """Parse one call; raises ``WrongUsage`` with the parser's message."""
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
