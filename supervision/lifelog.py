"""What a supervisor writes into the log: one record per event of a life, a report per crash."""

from __future__ import annotations

import logging
import time

from supervision import logs
from supervision.core import SupervisorCore
from supervision.effects import Crashed, Happened, State
from supervision.exits import FAILURES, ExitKind, ExitReason
from supervision.pulse import Reading, Turn


def write_event(
    log: logging.Logger, core: SupervisorCore, event: Happened, pid: int | None
) -> None:
    """A child came up, went down, is restarted, or is given up."""
    action = action_after(core, event.id) if event.what == "down" else None
    text = f"{event.what} {event.id} incarnation {event.incarnation} pid {pid or '-'}"
    text += f" {event.text}" if event.text else ""
    text += f"; action: {action}" if action else ""
    is_bad = event.what in ("restart", "give_up") or (
        event.reason is not None and event.reason.kind in FAILURES
    )
    logs.event(
        log, logging.WARNING if is_bad else logging.INFO, event.what, text,
        child=event.id, incarnation=event.incarnation, child_pid=pid, action=action,
        reason=event.reason or event.text or None,
    )  # fmt: skip


def write_kill(log: logging.Logger, child_id: str, incarnation: int, pid: int, why: str) -> None:
    """This supervisor kills a child."""
    logs.event(
        log, logging.WARNING, "kill", f"killing {child_id} (pid {pid}): {why}",
        child=child_id, incarnation=incarnation, child_pid=pid, reason=why,
    )  # fmt: skip


def write_crash(  # the parts of one report
    log: logging.Logger, core: SupervisorCore, crash: Crashed, pid: int, uptime_s: float,
    last: Reading,
) -> None:  # fmt: skip
    """Report a child that failed or was killed, from the page that it left."""
    child, incarnation, reason = crash.child, crash.incarnation, crash.reason
    action = action_after(core, child.id)
    stack = logs.take_faults()
    now = time.monotonic()
    text = f"crash report of {child.id} incarnation {incarnation} pid {pid}: {reason}"
    text += f"; action: {action}\n{crash_text(last, uptime_s, now)}"
    logs.event(
        log, logging.ERROR, "crash_report", f"{text}\n{stack}" if stack else text,
        child=child.id, incarnation=incarnation, child_pid=pid, reason=reason, action=action,
        stack=stack, **crash_fields(last, uptime_s, now),
    )  # fmt: skip


def write_stopped(log: logging.Logger, child_id: str, incarnation: int, reason: ExitReason) -> None:
    """This supervisor ends."""
    logs.event(
        log, logging.INFO, "stopped", f"stopped: {reason}",
        child=child_id, incarnation=incarnation, reason=reason,
    )  # fmt: skip


def action_after(core: SupervisorCore, child_id: str) -> str:
    """What follows the end of this child: ``restart | give_up | stopping | none``."""
    if core.stopping is not None:
        return "give_up" if core.stopping.kind is ExitKind.ABNORMAL else "stopping"
    child = core.children.get(child_id)
    comes_back = child is not None and child.state in (State.RESTARTING, State.STARTING)
    return "restart" if comes_back else "none"


def crash_text(last: Reading, uptime_s: float, now: float) -> str:
    """The lines of a crash report about what the process did last."""
    lines = [f"up for {uptime_s:.1f} s, {last.turns} messages handled, {last.mailbox} waiting"]
    lines += ["  " + _turn_line(turn, now) for turn in last.last]
    return "\n".join(lines)


def crash_fields(last: Reading, uptime_s: float, now: float) -> dict[str, object]:
    """The same as plain values."""
    return {
        "uptime_s": round(uptime_s, 3),
        "turns": last.turns,
        "mailbox": last.mailbox,
        "last": [
            {
                "message": turn.name,
                "age_s": round(now - turn.began, 6),
                "took_s": None if turn.took_s is None else round(turn.took_s, 6),
            }
            for turn in last.last
        ],
    }


def _turn_line(turn: Turn, now: float) -> str:
    took = "it was in this one" if turn.took_s is None else f"took {turn.took_s * 1000:.3f} ms"
    return f"{turn.name}, {now - turn.began:.3f} s ago, {took}"
