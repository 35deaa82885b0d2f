"""``cache``: see and tend what is stored, on a running node or in a directory that no node uses.

With ``--cache-dir`` (``ls``, ``show``, ``verify``, ``wipe``) no node is asked; what changes the
directory then refuses one that a node holds. Exit codes: 0 done, and nothing wrong was found; 1 it
failed, or ``verify`` found damage (repaired or not), or rows stayed because requests read them; 2
wrong usage, also an unknown key.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any, Final

from runtime.cli.node_flags import add_port
from runtime.settings.user_paths import path_flag

ROWS_SHOWN: Final = 50
AGE_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
QUARANTINE_AGE_S: Final = 7 * 86400.0


def add_cache(cache: argparse.ArgumentParser) -> None:
    """Add what ``cache`` can do."""
    parts = cache.add_subparsers(title="cache commands", required=True, metavar="COMMAND")
    _add(parts, "stat", "sizes, hits, saves, evictions, latencies")
    listing = _add(parts, "ls", "stored rows", offline=True)
    listing.add_argument("--model", metavar="NAME", help="only rows of this model")
    listing.add_argument("--namespace", metavar="HEX", help="only rows of this namespace")
    listing.add_argument("--tier", metavar="NAME", help="only rows that this tier holds")
    listing.add_argument(
        "--older-than", type=_age, metavar="AGE", help="saved before, e.g. 12h, 7d"
    )
    listing.add_argument("--newer-than", type=_age, metavar="AGE", help="saved since")
    listing.add_argument(
        "--limit", type=int, default=ROWS_SHOWN, metavar="N", help=f"rows ({ROWS_SHOWN}); 0: all"
    )
    listing.add_argument("--cursor", type=int, default=0, metavar="C", help="go on from here")
    show = _add(parts, "show", "everything about one row", offline=True)
    show.add_argument("key", metavar="KEY", help="hex, or the beginning of it; a finish_key does")
    verify = _add(parts, "verify", "read every row and check its digest", offline=True)
    verify.add_argument("--repair", action="store_true", help="quarantine what is damaged")
    gc = _add(parts, "gc", "remove superseded tails, old quarantined files, temp files")
    gc.add_argument(
        "--quarantine-age", type=_age, default=QUARANTINE_AGE_S, metavar="AGE",
        help="keep younger quarantined files (7d)",
    )  # fmt: skip
    _add(parts, "flush", "write what waits: ends of idle sequences, rows for slow disks")
    remove = _add(parts, "rm", "remove a row and all that continues it")
    remove.add_argument("key", metavar="KEY")
    wipe = _add(parts, "wipe", "remove all rows", offline=True)
    wipe.add_argument("--model", metavar="NAME", help="only rows of this model")
    _add_pressure(_add(parts, "pressure", "what memory pressure does to the cache"))
    for command in (remove, wipe):
        command.add_argument("--yes", action="store_true", help="do not ask")


def _add(parts: Any, name: str, words: str, *, offline: bool = False) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parts.add_parser(name, help=words)
    add_port(command)
    if offline:
        command.add_argument(
            "--cache-dir", type=path_flag, metavar="DIR", help="look here instead of asking a node"
        )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_run, action=name)
    return command


def _add_pressure(command: argparse.ArgumentParser) -> None:
    command.add_argument("switch", nargs="?", choices=("on", "off"), help="turn it on or off")
    command.add_argument("--source", help="noop, system, nvidia, or package.module:callable")
    command.add_argument(
        "--high", type=float, metavar="SHARE", help="relief begins here, e.g. 0.85"
    )
    command.add_argument("--low", type=float, metavar="SHARE", help="and ends here, e.g. 0.75")
    command.add_argument("--interval", type=float, metavar="SECONDS", help="between two readings")
    command.add_argument("--min-evict", metavar="SIZE", help="a smaller overshoot is left")
    command.add_argument("--tiers", metavar="A,B", help="where to evict, in this order")
    command.add_argument("--check", action="store_true", help="read now, act, and say what came")


def _age(text: str) -> float:
    with contextlib.suppress(ValueError, KeyError, IndexError):
        unit = text[-1] if text[-1] in AGE_UNITS else "s"
        seconds = float(text.removesuffix(unit)) * AGE_UNITS[unit]
        if seconds >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not an age; write for instance 90s, 12h or 7d")


def _run(arguments: argparse.Namespace) -> int:
    from runtime.cli.cache.actions import ACTIONS

    return ACTIONS[arguments.action](arguments)
