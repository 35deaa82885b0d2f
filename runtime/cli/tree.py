"""``tree``: the live tree, once or again and again.

On a terminal ``--watch`` redraws in place, on the terminal's second screen, and gives the first one
back when it ends. In a pipe it prints one block per refresh; with ``--json`` one object per line.
"""

from __future__ import annotations

import contextlib
import json
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from typing import Final

from runtime import errors
from runtime.client.tree import TreeNode
from runtime.node import Node

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""The second screen, without a cursor."""
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


def tree_command(port: int | None, *, as_json: bool, watch_s: float | None) -> int:
    """Print the tree; with ``watch_s``, every so many seconds until Ctrl-C."""
    if watch_s is None:
        with Node.attach(port) as node:
            tree = node.tree(vitals=True)
        text = json.dumps(tree.to_dict(), indent=2) if as_json else tree.render(_width())
        sys.stdout.write(text + "\n")
        return 0
    if watch_s <= 0:
        raise errors.ConfigError("--watch", f"{watch_s} is not a number of seconds above 0")
    with contextlib.suppress(KeyboardInterrupt), _Watch(port) as watch, _ends_by_signal():
        _show(watch, watch_s, as_json=as_json)
    return 0


class _Watch:
    """The node on a port, through all its restarts and absences."""

    def __init__(self, port: int | None) -> None:
        self._port = port
        self._node: Node | None = None

    def look(self) -> tuple[TreeNode | None, str]:
        """The tree, or None and why there is none."""
        try:
            if self._node is None:
                self._node = Node.attach(self._port)
            return self._node.tree(vitals=True), ""
        except errors.LlamaActorsError as error:
            self.close()
            return None, str(error)

    def close(self) -> None:
        """Let the node go."""
        if self._node is not None:
            self._node.close()
            self._node = None

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _show(watch: _Watch, every_s: float, *, as_json: bool) -> None:
    on_terminal = sys.stdout.isatty() and not as_json
    with _second_screen() if on_terminal else contextlib.nullcontext():
        while True:
            tree, why = watch.look()
            if as_json:
                sys.stdout.write(json.dumps(tree.to_dict() if tree else {"gone": why}) + "\n")
            else:
                text = tree.render(_width()) if tree else _cut_lines(f"no node: {why}")
                sys.stdout.write(_frame(text) if on_terminal else text + "\n\n")
            sys.stdout.flush()
            select.select([], [], [], every_s)


def _frame(text: str) -> str:
    """One screen, drawn over the one before without blanking it first."""
    lines = text.splitlines()
    height = shutil.get_terminal_size().lines
    if len(lines) > height:
        lines = [*lines[: height - 1], f"… {len(lines) - height + 1} more lines"]
    return _HOME + "\r\n".join(line + _REST_OF_LINE for line in lines) + _REST_OF_SCREEN


def _cut_lines(text: str) -> str:
    width = _width()
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def _width() -> int | None:
    """Columns of the terminal; None in a pipe, where nothing wraps."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


@contextlib.contextmanager
def _second_screen() -> Iterator[None]:
    sys.stdout.write(_ENTER)
    try:
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()


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
