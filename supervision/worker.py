"""The base of every actor: one process, one mailbox thread, one hook at a time.

When its process is killed, its supervisor starts the next incarnation within milliseconds. When a
hook raises, the process ends once, with the traceback in the log and the reason at the supervisor:
no hook runs a second time for the same message, and no actor keeps running half changed.

Subclasses override hooks and call services; both run on the mailbox thread only. No hook may
block: an actor that must do something long owns a thread (``engine.py``).
"""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from supervision import logs
from supervision.address import Address
from supervision.dead_letters import DeadLetterLog, refusal_of
from supervision.exits import NORMAL, SHUTDOWN, ExitKind, ExitReason
from supervision.logs import LOGGER
from supervision.mailbox import Mailbox
from supervision.messages import (
    Addressed,
    ChildStarted,
    DirectoryChanged,
    Down,
    Entry,
    Exiting,
    Init,
    InitDone,
    InitFailed,
    InitProgress,
    ReportStatus,
    Shutdown,
    StatusReported,
    WrongIncarnation,
    new_ref,
)
from supervision.monitors import Due, Monitors, merge_directory


class _Later(enum.Enum):
    """Timers of the base class: hooks that may not be called inside of another hook."""

    DOWNS = "downs"
    DEAD_LETTERS = "dead letters"


class Worker:
    """The base class of workers: subclasses override hooks and call services."""

    id: str = ""
    incarnation: int = 0
    parent_id: str = ""
    args: object = None
    directory: dict[str, Entry]
    log: logging.Logger

    _mailbox: Mailbox
    _parent: Address
    _deferred = False
    _is_ready = False
    _ending: ExitReason | None = None
    _monitors: Monitors
    _dead_letters: list[tuple[Address | str, object]]
    _dead_letter_log: DeadLetterLog

    def __init_subclass__(cls) -> None:
        """Refuse a subclass that redefines a private name: the base would break in obscure ways."""
        super().__init_subclass__()
        if cls.__module__.startswith("supervision."):
            return
        for name in vars(cls):
            if name.startswith("_") and not name.startswith("__") and hasattr(Worker, name):
                raise TypeError(
                    f"{cls.__module__}.{cls.__qualname__} defines {name}, which belongs to Worker; "
                    "choose another name"
                )

    # ── hooks ────────────────────────────────────────────────────────────────

    def init(self, args: object) -> None:
        """Get ready. An exception makes the start fail with that reason.

        May call ``defer_ready()``, and then ``ready()`` or ``fail()`` from a later hook; messages
        are handled meanwhile. Stay below the spec's ``init_timeout_s`` either way.
        """

    def handle(self, message: object, sender: Address) -> None:
        """Take one message. An exception ends the actor."""

    def handle_timer(self, payload: object) -> None:
        """Take what ``after`` was given."""

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        """These entries came up, went down, or were restarted since the last call."""

    def directory_removed(self, removed: tuple[Entry, ...]) -> None:
        """These have ended and are not in the directory any more; after ``directory_changed``."""

    def handle_down(self, down: Down) -> None:
        """A process that ``monitor`` watches has ended; called once per monitor.

        The directory has been updated with what became of the target since. To keep watching,
        monitor again: here if the directory has a process of it, else when ``directory_changed``
        has one.
        """
        self.log.warning(
            "%s ended (%s); this class does not override handle_down", down.id, down.reason
        )

    def undelivered(self, target: Address | str, message: object) -> None:
        """A message to ``target`` is not known to have arrived.

        If another process got it and refused it, ``message`` is its WrongIncarnation instead, with
        the ``ref`` of what was sent. Unless overridden, a line in the log, without the content.
        """
        self._dead_letter_log.write(self.log, target, message)

    def stop_asked(self, reason: ExitReason) -> None:
        """The supervisor asks this process to stop. Unless overridden, it ends after this hook.

        An override calls ``stop(reason)`` when it is done, within its spec's ``shutdown`` seconds;
        messages and timers are handled until then. It may be called more than once.
        """
        self.stop(reason)

    def terminate(self, reason: ExitReason) -> None:
        """Clean up before an orderly end; not called after a crash, whose state is suspect."""

    def status(self) -> dict[str, object]:
        """Plain values for the answer to ReportStatus."""
        return {}

    # ── services ─────────────────────────────────────────────────────────────

    @property
    def address(self) -> Address:
        """Where this process listens."""
        return self._mailbox.address

    def tell(
        self,
        target: Address | str,
        message: object,
        then: Callable[[], None] | None = None,
    ) -> bool:
        """Send, without an answer. False: no child of this id is up, and nothing was sent.

        True does not mean that it was handled: the target may die first. If it does not even
        arrive, ``undelivered`` is called, in a later turn. ``then`` is called in a later turn,
        when the other process has the message, or when it is certain that it does not get it;
        not at all where nothing was sent.
        """
        address, sent = target, message
        if isinstance(address, str):
            entry = self.directory.get(address)
            if entry is None or not entry.is_up or entry.address is None:
                return False
            address, sent = entry.address, Addressed(entry.id, entry.incarnation, message)

        def done(arrived: bool) -> None:
            if not arrived:
                if not self._dead_letters:
                    self._mailbox.after(0.0, _Later.DEAD_LETTERS)
                self._dead_letters.append((target, message))
            if then is not None:
                then()

        self._mailbox.send(address, sent, done, prompt=then is not None)
        return True

    def monitor(self, child_id: str) -> str:
        """Watch the present incarnation of a child of the tree; the ``ref`` of its Down.

        ``handle_down`` is called exactly once, in a later turn: when that incarnation has ended,
        or soon if it has ended already or no such child is known (``NOPROC``).
        """
        ref = new_ref()
        self._monitors.add(ref, child_id, self.directory.get(child_id))
        if self._monitors.due_refs():
            self._mailbox.after(0.0, _Later.DOWNS)
        return ref

    def demonitor(self, ref: str) -> None:
        """Stop watching: ``handle_down`` is not called for this ``ref`` any more."""
        self._monitors.remove(ref)

    def backlog(self, target: Address | str) -> int:
        """Messages to this target that it has not accepted yet; for flow control."""
        if isinstance(target, Address):
            return self._mailbox.backlog(target)
        entry = self.directory.get(target)
        return 0 if entry is None or entry.address is None else self._mailbox.backlog(entry.address)

    def after(self, seconds: float, payload: object) -> None:
        """Call ``handle_timer(payload)`` in so many seconds. Timers cannot be cancelled."""
        self._mailbox.after(seconds, payload)

    def stop(self, reason: ExitReason = NORMAL) -> None:
        """End in order when the current hook has returned."""
        if self._ending is None:
            self._ending = reason

    def defer_ready(self) -> None:
        """From ``init``: not ready when it returns; ``ready()`` or ``fail()`` will follow."""
        self._deferred = True

    def ready(self) -> None:
        """Init is done: the supervisor may start the next child."""
        if not self._is_ready:
            self._is_ready = True
            self._mailbox.send(self._parent, InitDone(self.id, self.incarnation, os.getpid()))

    def progress(self, detail: object) -> None:
        """While starting: report progress to the processes that asked for it with StartChild."""
        if not self._is_ready:
            self._mailbox.send(self._parent, InitProgress(self.id, self.incarnation, detail))

    def fail(self, detail: str, error: object | None = None) -> None:
        """End before being ready; ``error`` is a small frozen value for the process that asked.

        Does not return: the process ends.
        """
        if self._is_ready:
            self._crash(detail)
        logs.event(
            self.log, logging.ERROR, "init_failed", f"init failed: {detail}",
            child=self.id, incarnation=self.incarnation, reason=detail,
        )  # fmt: skip
        self._refuse(detail, error)

    # ── what the door calls ──────────────────────────────────────────────────

    def _begin(self, mailbox: Mailbox, init: Init, parent: Address, failure: str | None) -> None:
        self._mailbox = mailbox
        self._parent = parent
        self.id, self.incarnation, self.parent_id = init.id, init.incarnation, init.parent_id
        self.args = init.args
        self.directory = {entry.id: entry for entry in init.directory}
        self.log = logging.getLogger(f"{LOGGER}.{init.id}")
        self._monitors = Monitors()
        self._dead_letters = []
        self._dead_letter_log = DeadLetterLog()
        if failure is not None:
            self._crash(failure)
        self.prepare(init)
        self.init(init.args)
        if not self._deferred:
            self.ready()

    def prepare(self, init: Init) -> None:
        """For behaviours: set up before ``init`` runs."""

    def _receive(self, message: object, sender: Address) -> None:
        if isinstance(message, Addressed):
            if (message.id, message.incarnation) != (self.id, self.incarnation):
                self._refuse_message(message, sender)
                return
            message = message.message
        match message:
            case Shutdown(reason):
                self._shutdown(reason)
            case DirectoryChanged(changed, removed):
                self._apply_directory(changed, removed)
            case ReportStatus(ref):
                answer = StatusReported(
                    ref, self.id, os.getpid(), self.incarnation, self.status()
                )  # fmt: skip
                self.tell(sender, answer)
            case ChildStarted(_, entry):
                # The root may publish it a moment later; the asker may use the name at once.
                if not self._monitors.has_ended(entry):
                    self._apply_directory((entry,), ())
                self.handle(message, sender)
            case WrongIncarnation():
                self.undelivered(message.id, message)
            case _:
                self.handle(message, sender)

    def _refuse_message(self, message: Addressed, sender: Address) -> None:
        """Refuse a message that is for another process, or for an earlier incarnation."""
        is_namesake = message.id == self.id and self._ending is None
        refusal = refusal_of(message, self.incarnation if is_namesake else None)
        if refusal is not None:
            self._mailbox.send(sender, refusal)
        self.log.warning(
            "refused a %s for %s, incarnation %s",
            type(message.message).__name__, message.id, message.incarnation,
        )  # fmt: skip

    def _timer(self, payload: object) -> None:
        match payload:
            case _Later.DOWNS:
                self._deliver_downs()
            case _Later.DEAD_LETTERS:
                letters, self._dead_letters = self._dead_letters, []
                for target, message in letters:
                    self.undelivered(target, message)
            case _:
                self.handle_timer(payload)

    def _deliver_downs(self) -> None:
        """Deliver what is due now; what a hook makes due is delivered in a later turn."""
        for ref in self._monitors.due_refs():
            due = self._monitors.take(ref)
            if due is not None:  # else a hook before it has removed it
                self._deliver_down(due)

    def _deliver_down(self, due: Due) -> None:
        self.handle_down(due.down)

    def _readable(self, ready: Sequence[int] = ()) -> None:
        """These watched descriptors are readable."""

    def _child_exited(self, pid: int, code: int | None) -> None:
        """A child process has ended."""

    def _shutdown(self, reason: ExitReason) -> None:
        self.stop_asked(reason)

    def _end_if_asked(self) -> None:
        if self._ending is not None:
            self.terminate(self._ending)
            self._leave(self._ending, 0)

    def _leave(self, reason: ExitReason, code: int) -> NoReturn:
        self._mailbox.send(self._parent, Exiting(self.id, self.incarnation, reason))
        self._mailbox.exit(code)

    def _crash(self, text: str) -> NoReturn:
        """End now, as a failure; the supervisor gets the reason, the log all of it.

        The reason is the last line of a traceback.
        """
        last_line = text.strip().splitlines()[-1] if text.strip() else "no reason given"
        what, when = ("crashed",) * 2 if self._is_ready else ("init_failed", "failed in init")
        story = f"{when} (incarnation {self.incarnation}): {text.rstrip()}"
        logs.event(
            self.log, logging.ERROR, what, story,
            child=self.id, incarnation=self.incarnation, reason=last_line,
        )  # fmt: skip
        if not self._is_ready:
            self._refuse(last_line, None)
        self._leave(ExitReason(ExitKind.ABNORMAL, last_line), 1)

    def _refuse(self, detail: str, error: object | None) -> NoReturn:
        self._mailbox.send(self._parent, InitFailed(self.id, self.incarnation, detail, error))
        self._mailbox.exit(1)

    def _apply_directory(self, changed: tuple[Entry, ...], removed: tuple[Entry, ...]) -> None:
        known = [entry for entry in removed if entry.id in self.directory]
        news = merge_directory(self.directory, changed, removed)
        self._monitors.observe(changed, removed)
        self._deliver_downs()
        if news:
            self.directory_changed(news)
        gone = tuple(entry for entry in known if entry.id not in self.directory)
        if gone:
            self.directory_removed(gone)


def shutdown_reason(why: str) -> ExitReason:
    """The reason of a shutdown, with a text."""
    return ExitReason(SHUTDOWN.kind, why)
