"""The reference of the command line, made from its commands. Imports all of them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import click

from runtime.cli.commands import program
from runtime.cli.main import SCRIPT
from runtime.cli.options import section_of


def markdown() -> str:
    """Every command with its usage, arguments and options, as Markdown."""
    lines = [
        "# Command line",
        "",
        f"`{SCRIPT} COMMAND` and `python -m runtime COMMAND` are the same program. Results go to",
        "standard output, everything else to standard error. Exit codes: 0 done, 1 the work",
        "failed, 2 wrong usage, 130 Ctrl-C.",
        "",
        str(program.epilog),
        "",
    ]
    for context in commands():
        lines += _command(context)
    return "\n".join(lines).rstrip() + "\n"


def commands() -> Iterator[click.Context]:
    """A context for every command, those of groups included, in the order of the help."""
    yield from _below(program, click.Context(program, info_name=SCRIPT))


def _below(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None:
            continue
        own = click.Context(command, info_name=name, parent=context)
        yield own
        if isinstance(command, click.Group):
            yield from _below(command, own)


def _command(context: click.Context) -> list[str]:
    command = context.command
    depth = context.command_path.count(" ") + 1
    lines = [f"{'#' * depth} {context.command_path}", "", _sentence(str(command.help)), ""]
    lines += [part + "\n" for part in (_about(command), _epilog(command)) if part]
    lines += ["```text", context.get_usage().removeprefix("Usage: "), "```", ""]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    records = [(one.human_readable_name, one.help or "") for one in arguments]
    if any(words for _, words in records):
        lines += _table("Argument", records)
    sections: dict[str, list[tuple[str, str]]] = {}
    for one in command.params:
        record = one.get_help_record(context)
        if isinstance(one, click.Option) and record is not None:
            sections.setdefault(section_of(one), []).append(record)
    for title, options in sections.items():
        lines += _table("Option" if title == "Options" else title, options)
    return lines


def _about(command: click.Command) -> str:
    """What the module of the command explains after its first paragraph."""
    module = command.callback.__module__ if command.callback else None
    if module is None:
        return ""
    words = inspect.getdoc(importlib.import_module(module)) or ""
    return words.partition("\n\n")[2].replace("``", "`")


def _epilog(command: click.Command) -> str:
    text = command.epilog or ""
    mark, _, verbatim = text.partition("\b\n")  # click's mark for text that is not wrapped
    return f"```text\n{verbatim.rstrip()}\n```" if verbatim else mark


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:] + "."


def _table(title: str, records: list[tuple[str, str]]) -> list[str]:
    rows = [f"| `{_cell(name)}` | {_cell(words)} |" for name, words in records]
    return [f"| {title} | |", "|---|---|", *rows, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
