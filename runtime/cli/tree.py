"""``tree``: the live tree, once or repeatedly.

On a terminal ``--watch`` redraws in place, on the terminal's second screen, and restores the first
one when it ends. In a pipe it prints one block per refresh; with ``--json`` one object per line.
"""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from runtime import errors
from runtime.cli.options import attached, json_option, node_command, node_options

if TYPE_CHECKING:
    from runtime.client.tree import TreeNode
    from runtime.node import Node
    from runtime.remote.node import RemoteNode

WATCH_S: Final = 2.0


@node_command()
@node_options
@json_option()
@click.option(
    "--watch", "watch_s", type=float, is_flag=False, flag_value=WATCH_S, metavar="[SECONDS]",
    help=f"show it again every so many seconds ({WATCH_S:.0f}) until Ctrl-C",
)  # fmt: skip
def command(*, as_json: bool, watch_s: float | None, **given: Any) -> int:
    if watch_s is None:
        with attached(given) as node:
            tree = node.tree(vitals=True)
        text = json.dumps(tree.to_dict(), indent=2) if as_json else tree.render(_width())
        sys.stdout.write(text + "\n")
        return 0
    if watch_s <= 0:
        raise errors.ConfigError("--watch", f"{watch_s} is not a number of seconds above 0")
    with contextlib.suppress(KeyboardInterrupt), _Watch(given) as watch, _ends_by_signal():
        if as_json:
            _repeat(watch, watch_s, _write_json)
        elif sys.stdout.isatty():
            with _screen() as draw:
                _repeat(watch, watch_s, draw)
        else:
            _repeat(watch, watch_s, _write_block)
    return 0


class _Watch:
    """The node on a port, through all its restarts and absences."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._given = given
        self._node: Node | RemoteNode | None = None

    def look(self) -> tuple[TreeNode | None, str]:
        """The tree, or None and why there is none."""
        try:
            if self._node is None:
                self._node = attached(self._given)
            return self._node.tree(vitals=True), ""
        except errors.LlamaActorsError as error:
            self.close()
            return None, str(error)

    def close(self) -> None:
        """Close the connection to the node."""
        if self._node is not None:
            self._node.close()
            self._node = None

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Show = Callable[["TreeNode | None", str], None]


def _repeat(watch: _Watch, every_s: float, show: Show) -> None:
    while True:
        show(*watch.look())
        sys.stdout.flush()
        select.select([], [], [], every_s)


def _write_json(tree: TreeNode | None, why: str) -> None:
    sys.stdout.write(json.dumps(tree.to_dict() if tree else {"gone": why}) + "\n")


def _write_block(tree: TreeNode | None, why: str) -> None:
    sys.stdout.write((tree.render() if tree else f"no node: {why}") + "\n\n")


@contextlib.contextmanager
def _screen() -> Iterator[Show]:
    """The terminal's second screen, redrawn in place; the first one comes back at the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stdout)

    def draw(tree: TreeNode | None, why: str) -> None:
        width, height = console.size
        lines = (tree.render(width) if tree else f"no node: {why}").splitlines()
        if len(lines) > height:
            lines = [*lines[: height - 1], f"… {len(lines) - height + 1} more lines"]
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        text.highlight_regex(r"^ID .*", "bold")
        text.highlight_regex(r"[│├└─]+", "dim")
        text.highlight_regex(r"\b(killed|abnormal|down|restarting)\b.*", "red")
        live.update(text, refresh=True)

    live = Live(
        console=console, screen=True, auto_refresh=False,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with live:
        yield draw


def _width() -> int | None:
    """Columns of the terminal; None in a pipe, where nothing wraps."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextlib.contextmanager
def _ends_by_signal() -> Iterator[None]:
    """SIGTERM ends a watch as Ctrl-C does, so that the terminal is restored."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
