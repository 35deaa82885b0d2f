"""Tables: drawn by rich on a terminal, plain aligned columns in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``width`` is the least width in a pipe, so that columns keep their place."""

    heading: str
    width: int = 0
    right: bool = False


def write_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    headings: bool = True,
    markdown: bool = False,
) -> None:
    """Write a table to standard output; ``headings`` and ``markdown`` apply in a pipe."""
    if sys.stdout.isatty():
        _write_rich(columns, rows)
    elif markdown:
        rule = ["-" * (len(column.heading) - 1) + ":-"[not column.right] for column in columns]
        sys.stdout.write(
            "".join(
                f"| {' | '.join(line)} |\n"
                for line in ([column.heading for column in columns], rule, *rows)
            )
        )
    else:
        sys.stdout.write(plain_table(columns, rows, headings=headings))


def plain_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, headings: bool = True
) -> str:
    """The form for a pipe: one line a row, without styles."""
    lines = [[column.heading for column in columns], *rows] if headings else list(rows)
    widths = [
        max([column.width, *(len(line[at]) for line in lines)]) for at, column in enumerate(columns)
    ]
    aligned = (
        GAP.join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        )
        for line in lines
    )
    return "".join(line.rstrip() + "\n" for line in aligned)


def _write_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(file=sys.stdout).print(table)
