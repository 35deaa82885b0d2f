"""``cache``: see and tend what is stored, on a running node or in a directory that no node uses.

With ``--cache-dir`` (``ls``, ``show``, ``verify``, ``wipe``) no node is asked; what changes the
directory then refuses one that a node holds. Exit codes: 0 done, and nothing wrong was found; 1 it
failed, or ``verify`` found damage (repaired or not), or rows stayed because requests read them; 2
wrong usage, also an unknown key.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from actors.messages import Removal
from runtime import cache_offline, errors
from runtime.cache_files import RowReport
from runtime.cache_ls import AGE_UNITS, listed, plain_row, print_rows
from runtime.cache_node import CacheTender, Removed, clean_directory
from runtime.cache_stat import show_stat, stat_of
from runtime.flush import flush
from runtime.inspect_command import describe
from runtime.node import Node
from runtime.pressure_command import add_arguments, pressure_command
from runtime.progress import ProgressLine
from runtime.sizes import format_size
from runtime.user_paths import path_flag

ROWS_SHOWN: Final = 50
QUARANTINE_AGE_S: Final = 7 * 86400.0
TEMP_AGE_S: Final = 3600.0


def add_cache_commands(commands: Any) -> None:
    """Add ``cache`` and what it can do to the command line."""
    cache = commands.add_parser("cache", help="see and tend the cache")
    parts = cache.add_subparsers(title="cache commands", required=True, metavar="COMMAND")
    _add(parts, "stat", "sizes, hits, saves, evictions, latencies", _stat)
    listing = _add(parts, "ls", "stored rows", _ls, offline=True)
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
    show = _add(parts, "show", "everything about one row", _show, offline=True)
    show.add_argument("key", metavar="KEY", help="hex, or the beginning of it; a finish_key does")
    verify = _add(parts, "verify", "read every row and check its digest", _verify, offline=True)
    verify.add_argument("--repair", action="store_true", help="quarantine what is damaged")
    gc = _add(parts, "gc", "remove superseded tails, old quarantined files, temp files", _gc)
    gc.add_argument(
        "--quarantine-age", type=_age, default=QUARANTINE_AGE_S, metavar="AGE",
        help="keep younger quarantined files (7d)",
    )  # fmt: skip
    _add(parts, "flush", "write what waits: ends of idle sequences, rows for slow disks", _flush)
    remove = _add(parts, "rm", "remove a row and all that continues it", _rm)
    remove.add_argument("key", metavar="KEY")
    wipe = _add(parts, "wipe", "remove all rows", _wipe, offline=True)
    wipe.add_argument("--model", metavar="NAME", help="only rows of this model")
    add_arguments(
        _add(parts, "pressure", "what memory pressure does to the cache", pressure_command)
    )
    for command in (remove, wipe):
        command.add_argument("--yes", action="store_true", help="do not ask")


def _add(
    parts: Any, name: str, words: str, run: Callable[..., int], *, offline: bool = False
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parts.add_parser(name, help=words)
    command.add_argument("--admin-port", type=int, metavar="N", help="the node's admin port")
    if offline:
        command.add_argument(
            "--cache-dir", type=path_flag, metavar="DIR", help="look here instead of asking a node"
        )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _age(text: str) -> float:
    with contextlib.suppress(ValueError, KeyError, IndexError):
        unit = text[-1] if text[-1] in AGE_UNITS else "s"
        seconds = float(text.removesuffix(unit)) * AGE_UNITS[unit]
        if seconds >= 0:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not an age; write for instance 90s, 12h or 7d")


@contextlib.contextmanager
def _tender(arguments: argparse.Namespace) -> Iterator[CacheTender]:
    with (
        Node.attach(arguments.admin_port) as node,
        contextlib.closing(CacheTender(node.client)) as tender,
    ):
        yield tender


def _print_json(value: object, *, indent: int | None = 2) -> None:
    sys.stdout.write(json.dumps(value, indent=indent, default=str) + "\n")


def _stat(arguments: argparse.Namespace) -> int:
    with _tender(arguments) as tender:
        facts = stat_of(tender.actors)
    if arguments.json:
        _print_json(facts)
    else:
        sys.stdout.write(show_stat(facts))
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    if arguments.cache_dir is not None:
        return print_rows(arguments, cache_offline.listed(arguments))
    with _tender(arguments) as tender:
        return print_rows(arguments, listed(arguments, tender))


# ── show, verify ───────────────────────────────────────────────────────────────────────────────


def _show(arguments: argparse.Namespace) -> int:
    digits = arguments.key.lower()
    if len(digits) < 4:
        raise errors.InvalidRequest("give at least 4 hex digits of a key, as `cache ls` shows them")
    if arguments.cache_dir is not None:
        report, plain = cache_offline.shown(arguments.cache_dir, digits), {}
    else:
        with _tender(arguments) as tender:
            row = tender.find(digits)
            head = tender.head(row)
            report = head or RowReport("no copy could be read", row.row_bytes)
            plain = plain_row(row, {}, head) | {"children": tender.children(row.key)}
            plain["copies"] = dict(row.tiers)
    if arguments.json:
        _print_json(report.to_dict() | plain)
        return 0
    sys.stdout.write(describe(report))
    if plain:
        sys.stdout.write(
            f"copies      {', '.join(plain['tiers'])}; read by {plain['leases']} requests; "
            f"continued by {plain['children']} rows"
            f"{'; superseded by a longer row' if plain['superseded'] else ''}\n"
        )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    with ProgressLine("checking rows") as line:
        if arguments.cache_dir is not None:
            result = cache_offline.verified(
                arguments.cache_dir, line.share, repair=arguments.repair
            )
        else:
            with _tender(arguments) as tender:
                result = _verified(tender, line.share, repair=arguments.repair)
    if arguments.json:
        _print_json(result)
    else:
        for bad in result["damaged"]:
            done = "quarantined" if bad["repaired"] else "left as it is"
            sys.stdout.write(
                f"DAMAGED {bad['tier']} {bad['place']}\n"
                f"        at {bad['damaged_at']}: {bad['damage']}; {done}\n"
            )
        sys.stdout.write(
            f"{result['rows']} rows, {format_size(result['bytes'])}: "
            f"{result['proved']} proved by digest, {len(result['damaged'])} damaged\n"
        )
    return 1 if result["damaged"] else 0


def _verified(
    tender: CacheTender, progress: Callable[[float], None], *, repair: bool
) -> dict[str, Any]:
    result = cache_offline.new_result()
    for checked in tender.verify(progress):
        is_bad = checked.report.damage is not None
        repaired = is_bad and repair and tender.reject(checked)
        cache_offline.count(result, checked.tier, checked.report, repaired=repaired)
    return result


# ── gc, rm, wipe ───────────────────────────────────────────────────────────────────────────────


def _gc(arguments: argparse.Namespace) -> int:
    with _tender(arguments) as tender:
        removed = tender.remove_all(Removal.SUPERSEDED)
        files = {"quarantined_files": 0, "temp_files": 0, "bytes": 0}
        for directory in tender.directories.values():
            for key, value in clean_directory(
                directory, arguments.quarantine_age, TEMP_AGE_S
            ).items():
                files[key] += value
    plain = _plain_removed(removed) | {
        "quarantined_files": files["quarantined_files"],
        "temp_files": files["temp_files"],
        "bytes": removed.nbytes + files["bytes"],
    }
    if arguments.json:
        _print_json(plain)
    else:
        sys.stdout.write(
            f"removed {plain['rows']} superseded rows, {plain['quarantined_files']} quarantined "
            f"and {plain['temp_files']} temp files: {format_size(plain['bytes'])}\n"
        )
    return 0


def _flush(arguments: argparse.Namespace) -> int:
    with Node.attach(arguments.admin_port) as node:
        flush(node.client)
    if arguments.json:
        _print_json({"flushed": True})
    return 0


def _rm(arguments: argparse.Namespace) -> int:
    with _tender(arguments) as tender:
        row = tender.find(arguments.key.lower())
        children = tender.children(row.key)
        words = f"row {row.key.hex()[:16]} and what continues it ({children} rows directly)"
        _confirm(arguments, words)
        return _say_removed(arguments, tender.remove_tree(row.key))


def _wipe(arguments: argparse.Namespace) -> int:
    which = "all rows" if arguments.model is None else f"all rows of {arguments.model}"
    if arguments.cache_dir is not None:
        with cache_offline.held(arguments.cache_dir) as root:
            _confirm(arguments, f"{which} in {root}")
            return _say_removed(arguments, cache_offline.wiped(root, arguments.model))
    with _tender(arguments) as tender:
        tender.forget_live(arguments.model)
        roots = [None] if arguments.model is None else tender.roots_of(arguments.model)
        _confirm(arguments, f"{which}, in every tier of the node")
        total = Removed()
        for namespace in roots:
            removed = tender.remove_all(Removal.ALL, namespace)
            total.rows += removed.rows
            total.nbytes += removed.nbytes
            total.leased += removed.leased
    return _say_removed(arguments, total)


def _confirm(arguments: argparse.Namespace, what: str) -> None:
    """Ask, unless told not to; without a terminal nobody can answer."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise errors.InvalidRequest(f"this would remove {what}; confirm with --yes")
    sys.stderr.write(f"Remove {what}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.LlamaActorsError("nothing was removed")


def _plain_removed(removed: Removed) -> dict[str, Any]:
    return {"rows": removed.rows, "bytes": removed.nbytes, "left_because_read": removed.leased}


def _say_removed(arguments: argparse.Namespace, removed: Removed) -> int:
    if arguments.json:
        _print_json(_plain_removed(removed))
    else:
        left = f"; {removed.leased} stayed, requests read them" if removed.leased else ""
        sys.stdout.write(f"removed {removed.rows} rows, {format_size(removed.nbytes)}{left}\n")
    return 1 if removed.leased else 0
