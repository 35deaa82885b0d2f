"""The cause of a SIGKILL that no process of the node sent, as far as the layer above can find it.

The watch is set in the launcher before anything is forked, so that every process has it.
"""

from __future__ import annotations

import logging
import signal
from dataclasses import replace
from typing import Final, Protocol

from supervision import logs
from supervision.exits import ExitReason

PERHAPS: Final = "killed by SIGKILL, perhaps for lack of memory"
_LOG: Final = logging.getLogger(f"{logs.LOGGER}.kill_watch")


class KillWatch(Protocol):
    """Reads what the kernel counts. Neither method may block."""

    def look(self) -> None:
        """Called about once a second. OSError ends the watch."""

    def cause(self) -> str:
        """Why the kernel killed a process a moment ago, as "by …"; empty if it did not."""
        ...


class _Inherited:
    """By every process of the node, through fork."""

    watch: KillWatch | None = None


def set_watch(watch: KillWatch | None) -> None:
    """Set it for this process and those that it forks from now on."""
    _Inherited.watch = watch


def look() -> None:
    """Let the watch read its counters."""
    if _Inherited.watch is not None:
        try:
            _Inherited.watch.look()
        except OSError as error:
            _LOG.warning("the kernel's counters cannot be read (%s); not looking again", error)
            _Inherited.watch = None


def cause() -> str:
    """The watch's cause for a process that was just killed; empty if it has none."""
    try:
        return "" if _Inherited.watch is None else _Inherited.watch.cause()
    except OSError:
        return ""


def explained(reason: ExitReason) -> ExitReason:
    """The reason of a process that nothing here killed, with the cause of a SIGKILL in its text."""
    if reason.signal != signal.SIGKILL:
        return reason
    by = cause()
    return replace(reason, text=f"killed {by}" if by else PERHAPS)
