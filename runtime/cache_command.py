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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from actors.messages import Removal
from cache.listing import RowFacts
from runtime import cache_offline, errors
from runtime.cache_files import RowReport
from runtime.cache_node import CacheTender, Removed, clean_directory
from runtime.cache_stat import show_stat, stat_of
from runtime.config import format_size
from runtime.inspect_command import describe
from runtime.node import Node
from runtime.progress import ProgressLine

ROWS_SHOWN: Final = 50
QUARANTINE_AGE_S: Final = 7 * 86400.0
TEMP_AGE_S: Final = 3600.0
_AGE_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


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
    remove = _add(parts, "rm", "remove a row and all that continues it", _rm)
    remove.add_argument("key", metavar="KEY")
    wipe = _add(parts, "wipe", "remove all rows", _wipe, offline=True)
    wipe.add_argument("--model", metavar="NAME", help="only rows of this model")
    for command in (remove, wipe):
        command.add_argument("--yes", action="store_true", help="do not ask")


def _add(
    parts: Any, name: str, words: str, run: Callable[..., int], *, offline: bool = False
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parts.add_parser(name, help=words)
    command.add_argument("--admin-port", type=int, metavar="N", help="the node's admin port")
    if offline:
        command.add_argument(
            "--cache-dir", type=Path, metavar="DIR", help="look here instead of asking a node"
        )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)
    return command


def _age(text: str) -> float:
    with contextlib.suppress(ValueError, KeyError, IndexError):
        unit = text[-1] if text[-1] in _AGE_UNITS else "s"
        seconds = float(text.removesuffix(unit)) * _AGE_UNITS[unit]
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


# ── ls ─────────────────────────────────────────────────────────────────────────────────────────


def _ls(arguments: argparse.Namespace) -> int:
    """Rows as they come, so that a million of them take no memory."""
    if arguments.cache_dir is not None:
        return _print_rows(arguments, cache_offline.listed(arguments))
    with _tender(arguments) as tender:
        return _print_rows(arguments, _listed(arguments, tender))


def _listed(
    arguments: argparse.Namespace, tender: CacheTender
) -> Iterator[tuple[dict[str, Any], int]]:
    names = tender.models()
    roots = _roots(arguments, tender, names)
    one = next(iter(roots)) if roots is not None and len(roots) == 1 else None
    at = arguments.cursor
    limit = arguments.limit or 1 << 16
    for page, cursor in tender.rows(cursor=at, root=one, tier=arguments.tier, limit=limit):
        for row in page:
            if roots is None or row.root in roots:
                yield _plain_row(row, names, tender.head(row)), at
        at = cursor


def _roots(
    arguments: argparse.Namespace, tender: CacheTender, names: dict[bytes, str]
) -> set[bytes] | None:
    """The namespaces that are asked for; None: all."""
    if arguments.model is None and arguments.namespace is None:
        return None
    roots = {namespace.root for namespace in tender.namespaces()}
    if arguments.namespace is not None:
        roots = {root for root in roots if root.hex().startswith(arguments.namespace)}
    if arguments.model is not None:
        roots = {root for root in roots if names.get(root) == arguments.model}
    return roots


def _plain_row(row: RowFacts, names: dict[bytes, str], head: RowReport | None) -> dict[str, Any]:
    created = None if head is None or head.header is None else head.header.created_unix_s
    return {
        "key": row.key.hex(),
        "namespace": row.root.hex(),
        "model": names.get(row.root) or (head.meta.get("model") if head else None),
        "start": row.start,
        "tokens": row.n_tokens,
        "bytes": row.row_bytes,
        "tiers": [tier for tier, _ in row.tiers],
        "reason": row.reason,
        "created_unix_s": created,
        "leases": row.leases,
        "superseded": row.superseded,
    }


def _print_rows(arguments: argparse.Namespace, rows: Iterator[tuple[dict[str, Any], int]]) -> int:
    """One JSON object, or one line, per row; where to go on is said on standard error."""
    shown, now = 0, time.time()
    page = -1
    for row, cursor in rows:
        # A page is shown to its end: a cursor stands between pages.
        if arguments.limit and shown >= arguments.limit and cursor != page:
            sys.stderr.write(f"more rows: go on with --cursor {cursor}\n")
            return 0
        page = cursor
        if not _is_of_age(arguments, row["created_unix_s"], now):
            continue
        if arguments.json:
            _print_json(row, indent=None)
        else:
            sys.stdout.write(_line(row, now, header=not shown))
        shown += 1
    if not shown and not arguments.json:
        sys.stderr.write("no rows\n")
    return 0


def _is_of_age(arguments: argparse.Namespace, created: float | None, now: float) -> bool:
    older, newer = arguments.older_than, arguments.newer_than
    if older is None and newer is None:
        return True
    if not created:
        return False
    age = now - created
    return (older is None or age >= older) and (newer is None or age <= newer)


def _line(row: dict[str, Any], now: float, *, header: bool) -> str:
    words = (
        row["key"][:16],
        f"{row['start']}+{row['tokens']}",
        format_size(row["bytes"]),
        ",".join(row["tiers"]),
        row["reason"] + (" superseded" if row["superseded"] else ""),
        _ago(row["created_unix_s"], now),
        row["model"] or row["namespace"][:12],
    )
    layout = "{:<16}  {:>12}  {:>10}  {:<14}  {:<20}  {:>5}  {}\n"
    first = layout.format("KEY", "TOKENS", "SIZE", "TIERS", "REASON", "AGE", "MODEL")
    return (first if header else "") + layout.format(*words)


def _ago(created: float | None, now: float) -> str:
    if not created:
        return "?"
    age = max(0.0, now - created)
    unit = next((name for name in "dhm" if age >= 2 * _AGE_UNITS[name]), "s")
    return f"{age / _AGE_UNITS[unit]:.0f}{unit}"


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
            plain = _plain_row(row, {}, head) | {"children": tender.children(row.key)}
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
