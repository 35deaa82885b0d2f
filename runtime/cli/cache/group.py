"""``cache``: inspect and maintain what is stored, on a running node or in an unused directory."""

from __future__ import annotations

from typing import Final

from runtime.cli.lazy_group import HELP_FLAGS, LazyGroup

COMMANDS: Final = {
    "stat": ("runtime.cli.cache.stat", "sizes, hits, saves, evictions, latencies"),
    "ls": ("runtime.cli.cache.ls", "stored rows"),
    "show": ("runtime.cli.cache.show", "everything about one row"),
    "verify": ("runtime.cli.cache.verify", "read every row and check its digest"),
    "gc": (
        "runtime.cli.cache.gc",
        "remove superseded tails, old quarantined files, temp files",
    ),
    "flush": (
        "runtime.cli.cache.flush",
        "write what waits: ends of idle sequences, rows for slow disks",
    ),
    "rm": ("runtime.cli.cache.rm", "remove a row and all that continues it"),
    "wipe": ("runtime.cli.cache.wipe", "remove all rows"),
    "pressure": ("runtime.cli.cache.pressure", "memory pressure and what it does to the cache"),
}

_ABOUT: Final = (
    "With --cache-dir (ls, show, verify, wipe) no node is asked; a command that changes the "
    "directory is refused while a node holds it. Exit codes: 0 done, and nothing wrong was found; "
    "1 it failed, or verify found damage (repaired or not), or rows stayed because requests read "
    "them; 2 wrong usage, also an unknown key."
)

command: Final = LazyGroup("cache", COMMANDS, epilog=_ABOUT, context_settings=HELP_FLAGS)
