"""What a supervisor reads from its children's pages: hangs, vitals, the last messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from supervision.effects import Child, State
from supervision.messages import Vitals
from supervision.process import cpu_wait_s
from supervision.pulse import Heartbeats, Page, Reading, Sign
from supervision.spec import ChildSpec

LOOK_S: Final = 1.0
"""Between two looks at the children, unless a heartbeat is so short that this is too long."""
_SHORTEST_LOOK_S: Final = 0.02
_LOOKS_PER_HEARTBEAT: Final = 4


def look_interval_s(limits_s: Iterable[float | None]) -> float:
    """How often to look, so that no heartbeat is noticed much too late."""
    shortest = min((one for one in limits_s if one), default=LOOK_S * _LOOKS_PER_HEARTBEAT)
    return min(LOOK_S, max(_SHORTEST_LOOK_S, shortest / _LOOKS_PER_HEARTBEAT))


def page_for(heartbeat_s: float | None) -> Page:
    """A page for a process that is expected to show life so often."""
    return Page((heartbeat_s or 0.0) / _LOOKS_PER_HEARTBEAT)


class Pulses:
    """The pages of one supervisor's children, by pid."""

    def __init__(self) -> None:
        self.interval_s = LOOK_S
        """How often to call ``hung``; children with short heartbeats make it shorter."""
        self._pages: dict[int, Page] = {}
        self._given_up: set[int] = set()
        self._heartbeats = Heartbeats(self.interval_s)

    def add(self, pid: int, page: Page, spec: ChildSpec) -> None:
        """A child was forked with this page."""
        self._pages[pid] = page
        wanted_s = look_interval_s((spec.heartbeat_s, spec.engine_heartbeat_s))
        self.interval_s = self._heartbeats.interval_s = min(self.interval_s, wanted_s)

    def take(self, pid: int) -> Reading | None:
        """A child is gone: the last reading of its page, which is unmapped."""
        page = self._pages.pop(pid, None)
        self._given_up.discard(pid)
        if page is None:
            return None
        last = page.read()
        page.close()
        return last

    def hung(self, children: Iterable[tuple[int, Child]], now: float) -> list[tuple[Child, str]]:
        """Of these children, those that are up and show no life, each with a description.

        Each is returned once: killing it may take the kernel a while.
        """
        known: dict[str, tuple[int, Child]] = {}
        signs: dict[str, Sign] = {}
        for pid, child in children:
            page = self._pages.get(pid)
            if page is not None and child.state is State.UP and pid not in self._given_up:
                known[child.id] = (pid, child)
                spec = child.spec
                signs[child.id] = sign_of(pid, page, now, spec.heartbeat_s, spec.engine_heartbeat_s)
        hung: list[tuple[Child, str]] = []
        for one, what in self._heartbeats.look(now, signs):
            pid, child = known[one]
            self._given_up.add(pid)
            hung.append((child, f"hung: {describe_silence(self._pages[pid], what, now)}"))
        return hung

    def vitals(self, children: Iterable[tuple[int, Child]], now: float) -> tuple[Vitals, ...]:
        """How each of these children is."""
        return tuple(
            vitals_of(child.id, child.incarnation, pid, self._pages[pid].read(), now)
            for pid, child in children
            if pid in self._pages
        )


class RootPulse:
    """The page of the root supervisor, which only the launcher watches."""

    def __init__(self, heartbeat_s: float | None) -> None:
        """Make the page; the root takes it along when it is forked."""
        self._heartbeat_s = heartbeat_s
        self.interval_s = look_interval_s((heartbeat_s,)) if heartbeat_s else None
        self._heartbeats = Heartbeats(self.interval_s or LOOK_S)
        self._page = Page.to_inherit = page_for(heartbeat_s)

    def hung(self, pid: int, now: float) -> str:
        """A description of how the root hangs; empty when it does not."""
        sign = sign_of(pid, self._page, now, self._heartbeat_s)
        hangs = self._heartbeats.look(now, {"root": sign})
        return describe_silence(self._page, "hook", now) if hangs else ""

    def close(self) -> None:
        """Unmap the page."""
        self._page.close()


def sign_of(
    pid: int, page: Page, now: float, limit_s: float | None, engine_limit_s: float | None = None
) -> Sign:
    """Look at one child. Its wait for a CPU is read only when it has been silent for long."""
    alive, engine = page.signs()
    is_quiet = limit_s is not None and now - alive > limit_s / 2
    waited_s = cpu_wait_s(pid) if is_quiet else None
    return Sign(limit_s, alive, engine_limit_s, engine, waited_s)


def describe_silence(page: Page, what: str, now: float) -> str:
    """``no sign of life for 30.4 s, in Complete for 30.1 s``."""
    last = page.read()
    if what == "engine":
        return f"its engine is in a step and has not beaten for {now - last.engine:.1f} s"
    where = f"in {last.doing} for {now - last.since:.1f} s" if last.doing else "between messages"
    return f"no sign of life for {now - last.alive:.1f} s, {where}"


def vitals_of(child_id: str, incarnation: int, pid: int, last: Reading, now: float) -> Vitals:
    """The page of one process, as the message that reports it."""
    busy_s = max(0.0, now - last.since) if last.doing else None
    silent_s = max(0.0, now - last.alive)
    return Vitals(
        child_id, incarnation, pid, last.turns, last.mailbox, silent_s, busy_s, last.doing
    )
