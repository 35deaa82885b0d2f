"""The ledger of the gateway: what must be the same whichever HTTP worker a client has reached.

Owns: the uses of keys and what replies have cost (``accounts``), stored responses, digests of
answered requests, what open pages show. Answers: HTTP workers. Asks: no other actor. It has no
HTTP, so that nothing which a client sends can end it. What it owns, but for the digests and the
pages, lies in memory files on the launcher's shelf: its next process goes on with them, and its
askers ask again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from actors.messages.payload import INLINE_LIMIT_BYTES, PayloadGone, read_payload
from runtime.gateway import ledger_messages as lm
from runtime.gateway.accounts import Accounts, Running
from runtime.gateway.answered import Answered
from runtime.gateway.keys import Key
from runtime.gateway.responses_log import ResponsesLog
from runtime.gateway.responses_store import ResponseStore, Stored
from runtime.gateway.shelf_log import ShelfLog
from runtime.gateway.watch_messages import NoteRequests, NoteSnapshot
from runtime.gateway.watched import Watched
from runtime.gateway.wire.failure import Refused
from runtime.gateway.wire.series import packed
from runtime.settings.gateway import LedgerArgs
from supervision import Address, Entry, Worker
from supervision.node_file import RuntimeDir
from supervision.shelf import ShelfClient

ACCOUNTS: Final = "gateway/accounts"
"""Name of their log on the shelf."""
ACCOUNTS_SLACK_BYTES: Final = 1 << 20


class LedgerActor(Worker):
    """Counts for all workers, and keeps what clients refer to."""

    def init(self, args: object) -> None:
        if not isinstance(args, LedgerArgs):
            raise TypeError(f"the ledger is started with LedgerArgs, not {args!r}")
        folder = Path(args.node_dir)
        shelf = ShelfClient(folder, RuntimeDir(folder).cookie() or b"")
        self._log = ShelfLog(shelf, ACCOUNTS, ACCOUNTS_SLACK_BYTES)
        self._accounts = Accounts(self._write)
        try:
            self._accounts.restore(self._log.found)
        except (msgspec.DecodeError, ValueError) as error:  # of another version: nothing is known
            self.log.warning("what was counted before cannot be read, and is dropped: %s", error)
            self._accounts = Accounts(self._write)
        stored = ResponsesLog(shelf)
        self._store = ResponseStore(args.store_bytes)
        self._store.begin_log(stored, stored.found)
        self._answered = Answered()
        self._watched = Watched(time.monotonic_ns())

    def _write(self, name: str, value: bytes | None) -> None:
        if value is None:
            self._log.drop(name)
        else:
            self._log.put(name, value)

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case lm.BeginUse():
                self.tell(sender, self._begun(message))
            case lm.ReportWorker():
                self.tell(sender, self._reported(message))
            case lm.ReadTotals(ref):
                self.tell(sender, self._totals(ref))
            case lm.KeepResponse(ref, content):
                try:
                    self._store.keep(msgspec.msgpack.decode(read_payload(content), type=Stored))
                except PayloadGone:
                    return  # the asker has ended
                self.tell(sender, lm.ResponseKept(ref))
            case lm.FindResponse():
                self._find(message, sender)
            case lm.ForgetResponse(ref, name, owner):
                gone = self._store.forget(name, owner)
                running_at = gone.number if gone is not None and gone.is_running else None
                self.tell(sender, lm.ResponseForgotten(ref, gone is not None, running_at))
            case lm.NoteParts(owner, answer_id, parts):
                self._answered.put(Key(owner), answer_id, parts)
            case lm.FindParts(ref, owner, answer_id):
                found = self._answered.find(Key(owner), answer_id)
                self.tell(sender, lm.PartsFound(ref, found))
            case NoteRequests():
                self.tell(sender, self._watched.noted(message, time.monotonic()))
            case NoteSnapshot(snapshot):
                self._watched.looked(snapshot)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    def _begun(self, asked: lm.BeginUse) -> lm.UseBegun | lm.UseRefused:
        accounts, now = self._accounts, time.monotonic()
        accounts.end(asked.ended, now)
        running = Running(asked.who, asked.key, asked.turn)
        try:
            rates = accounts.begin(asked.use, running, now, is_checked=asked.is_checked)
            return lm.UseBegun(asked.ref, rates)
        except Refused as refused:
            failure = replace(refused.failure, rates=accounts.rates(asked.key, now))
            return lm.UseRefused(asked.ref, failure, accounts.is_busy(asked.key))
        finally:
            self._log.tidy(accounts.records())

    def _reported(self, report: lm.ReportWorker) -> lm.WorkerReported:
        accounts, now = self._accounts, time.monotonic()
        accounts.end(report.ended, now)
        accounts.keep_only(report.who, report.turn, report.uses, now)
        accounts.count(report.who, report.counts, report.now, report.series)
        if report.continued is not None:
            self._store.fail_left(report.who, report.continued)
        self._log.tidy(accounts.records())
        is_watched = self._watched.is_watched(now)
        return lm.WorkerReported(report.ref, accounts.running(but=report.who.number), is_watched)

    def _totals(self, ref: str) -> lm.TotalsRead:
        accounts = self._accounts
        return lm.TotalsRead(
            ref,
            accounts.total(),
            accounts.running(),
            accounts.connections(),
            packed(accounts.series()),
            accounts.restarts.all(),
        )

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for one in changed:
            reason = "unknown" if one.last_exit is None else one.last_exit.kind.value
            self._accounts.note_restarts(one.id, one.restarts, reason)
        self._log.tidy(self._accounts.records())

    def _find(self, asked: lm.FindResponse, sender: Address) -> None:
        if asked.has_history:
            found, missing = self._store.chain(asked.name, asked.owner)
        else:
            one = self._store.find(asked.name, asked.owner)
            found, missing = ([], asked.name) if one is None else ([one], None)
        packed = msgspec.msgpack.encode(found)
        content = packed
        if len(packed) > INLINE_LIMIT_BYTES:
            content = b""
            try:
                with open(asked.room, "wb") as room:
                    room.write(packed)
            except OSError as error:  # the asker has ended, or there is no memory
                self.log.warning("an answer of %d bytes was dropped: %s", len(packed), error)
                return
        self.tell(sender, lm.ResponseFound(asked.ref, content, len(packed), missing))

    def status(self) -> dict[str, object]:
        return {
            "running": self._accounts.running(),
            "responses": len(self._store),
            "response_bytes": self._store.n_bytes,
            "requests": len(self._watched.board),
        }
