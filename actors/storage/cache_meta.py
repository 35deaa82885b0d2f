"""The cache index: which rows exist and where, which processes read them and may write them.

Owns: the index and the arena's allocation map; it is their only writer, so that the budgets
hold. Answers: ``LookupPrefix``, ``ResolveParent``, ``ReserveRows``, ``PrefetchPrefix``. Asks: the
writer, the tiers. When it dies, requests run cold for a moment; its successor gets the rows back
from the arena and the directories, which the tiers scan (they restart after it, rest_for_one).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors import messages as m
from actors.messages.actor_ids import actor_of, holder_name, model_of
from actors.messages.payload import PayloadGone, read_payload
from actors.storage.admin_queries import AdminQueries
from actors.storage.copy_ports import CopyPorts
from actors.storage.lookup_stats import LookupStats
from actors.storage.prefetch import Waiting, rows_to_prefetch
from actors.storage.row_import import RowImport
from actors.storage.tier_copies import TierCopies
from cache import refs
from cache.answers import (
    RAM,
    Evicted,
    Match,
    Miss,
    MissReason,
    Refusal,
    RefusalReason,
    RowRequest,
)
from cache.arena import arena_page_bytes, mark_free
from cache.index import CacheIndex
from cache.rows import SaveReason
from cache.text_marks import TextMark, TextMarks
from supervision import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervision import Address, Down, Entry, ExitReason

EXPIRE_EVERY_S = 5.0
_IMPORT = "import"
MAX_TEXT_BLOCKS = 1000  # with their keys 58 KB, under the 64 KiB of a message
GRACE_S = 1.0  # a row is written in milliseconds, and its writer checks before each whether it may


@dataclass(frozen=True, slots=True)
class CacheMetaArgs:
    """Budgets in bytes: the arena's size, and one per file tier, fastest first."""

    arena_path: str | None
    ram_bytes: int
    file_tiers: tuple[tuple[str, int], ...]
    tail_delay_s: float = 0.0
    """Before a tail is copied to files: the block that contains it may come meanwhile."""
    absent_tiers: tuple[tuple[str, str], ...] = ()
    """Tiers that were not turned off and are missing all the same, each with the reason."""


class CacheMetaActor(Worker):
    """Carries questions to the index and carries out its answers."""

    def init(self, args: object) -> None:
        if not isinstance(args, CacheMetaArgs):
            raise TypeError(f"cache_meta is started with CacheMetaArgs, not {args!r}")
        self._arena_path = args.arena_path
        self._absent = dict(args.absent_tiers)
        for name, why in self._absent.items():
            self.log.warning("no %s tier: %s", name, why)
        budgets = {RAM: args.ram_bytes} if args.arena_path else {}
        self._index = CacheIndex(
            budgets=budgets | dict(args.file_tiers),
            page_bytes=arena_page_bytes(),
            tail_delay_s=args.tail_delay_s,
        )
        self._marks = TextMarks()
        self._row_import = RowImport(self._index, self._dispose, self._taken_in, self._marks)
        self._admin_queries = AdminQueries(self._index, self._dispose, self._arena_path)
        self._lookup_stats = LookupStats()
        # Slabs that the scan has not reported yet must not be reserved, nor those that a model is
        # still writing by a grant of the incarnation before this one.
        self._scanned: set[str] = set()
        self._grants_from = time.monotonic() + (GRACE_S if self.incarnation > 1 else 0.0)
        self._holders: set[str] = set()
        self._alive: dict[str, str | None] = {}
        self._copies = TierCopies(
            self._index,
            CopyPorts(self.tell, self._dispose, self._holder_of, self.log),
            [name for name, _ in args.file_tiers],
            ram_bytes=args.ram_bytes,
        )
        self._prefetches: dict[Waiting, m.PrefetchPrefix] = {}
        """Of requests that wait: rows that a scan finds later may be theirs."""
        self._is_importing = False
        self._is_missing_logged = False
        self._rejected = 0
        self._refused_at_start = 0
        self._abandoned = 0
        self._continued = 0
        self._quarantined = 0
        self.after(EXPIRE_EVERY_S, "expire")

    def handle(self, message: object, sender: Address) -> None:
        match message:
            case m.LookupPrefix() | m.ResolveParent() | m.ResolveText():
                with self._lookup_stats.timed():
                    found = self._find(message)
                self.tell(sender, found)
            case m.NoteReply(digest, n_bytes, n_known, parent, start, tail):
                self._marks.add(TextMark(digest, n_bytes, n_known, parent, start, tail))
            case m.ReserveRows():
                self.tell(sender, self._reserve(message))
            case m.ReleaseLease() | m.PrefetchPrefix() | m.PrefetchEnded():
                self._about_readers(message)
                self._pump()
            case m.RowsWritten():
                self._written(message)
            case m.RowRejected():
                self._reject(message)
            case m.RowsFound() | m.TierChanged():
                self._take_in(message)
            case m.ListRows() | m.ShowRow() | m.ListNamespaces() | m.RemoveRows() | m.EvictBytes():
                self.tell(sender, self._admin_queries.answer(time.monotonic(), message))
            case m.PersistNow(ref):
                self.tell(sender, m.PersistState(ref, self._persist_now()))
            case (
                m.RowCopied()
                | m.RowsPromoted()
                | m.CopyFailed()
                | m.FilesDropped()
                | m.WriterStops()
            ):
                self._about_copies(message, sender)
            case _:
                self.log.warning("dropped an unknown %s", type(message).__name__)

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    def _find(
        self, ask: m.LookupPrefix | m.ResolveParent | m.ResolveText
    ) -> m.PrefixResolved | m.TextResolved:
        match ask:
            case m.LookupPrefix():
                return self._look_up(ask)
            case m.ResolveParent():
                return self._resolve_parent(ask)
            case m.ResolveText():
                return self._resolve_text(ask)

    def _look_up(self, ask: m.LookupPrefix) -> m.PrefixResolved:
        self._holders.add(ask.holder)
        try:
            tokens = read_payload(ask.tokens)
        except PayloadGone as gone:
            miss = Miss(MissReason.PAYLOAD_GONE, detail=str(gone))
            return m.PrefixResolved(ask.ref, 0, b"", 0, miss)
        match = self._index.lookup(time.monotonic(), ask.holder, ask.root, tokens)
        self._copies.hit(match.blocks)
        if match.miss is not None and match.miss.reason is MissReason.BEING_WRITTEN:
            self._want_tails()
        return _resolved(ask.ref, match)

    def _about_readers(self, message: m.ReleaseLease | m.PrefetchPrefix | m.PrefetchEnded) -> None:
        match message:
            case m.ReleaseLease(lease):
                self._dispose(self._index.release(lease))
            case m.PrefetchPrefix(ref, holder):
                self._holders.add(holder)
                self._prefetches[Waiting(holder, ref)] = message
                self._prefetch(message)
            case m.PrefetchEnded(ref, holder):
                self._prefetches.pop(Waiting(holder, ref), None)
                self._copies.end_prefetch(Waiting(holder, ref))

    def _prefetch(self, ask: m.PrefetchPrefix) -> None:
        try:
            tokens = read_payload(ask.tokens)
        except PayloadGone:  # the request has started, or its model has ended
            return
        rows = rows_to_prefetch(
            self._index.find(ask.root, tokens),
            n_live=ask.n_live,
            slower=ask.slower,
            links_upto=ask.links_upto,
        )
        self._copies.prefetch(Waiting(ask.holder, ask.ref), rows)

    def _resolve_parent(self, ask: m.ResolveParent) -> m.PrefixResolved:
        self._holders.add(ask.holder)
        match = self._index.lookup_key(time.monotonic(), ask.holder, ask.key)
        if match is None:
            is_late = self._index.is_being_written(ask.key)
            if is_late:
                self._want_tails()
            miss = Miss(MissReason.BEING_WRITTEN, 0) if is_late else Miss(MissReason.PARENT_UNKNOWN)
            return m.PrefixResolved(ask.ref, 0, b"", 0, miss)
        self._copies.hit(match.blocks)
        return _resolved(ask.ref, match, with_keys=True)

    def _resolve_text(self, ask: m.ResolveText) -> m.TextResolved:
        """The longest reply that has a mark and whose full blocks are all stored."""
        self._holders.add(ask.holder)
        for mark in self._marks.find(ask.candidates):
            known = (ask.ref, mark.digest, mark.n_bytes, mark.n_known)
            if not mark.start:
                return m.TextResolved(*known, tail=mark.tail)
            match = self._index.lookup_key(time.monotonic(), ask.holder, mark.parent)
            if match is None:
                continue
            if len(match.blocks) > MAX_TEXT_BLOCKS:
                self._dispose(self._index.release(match.lease))
                continue
            self._copies.hit(match.blocks)
            blocks = refs.pack_blocks(match.blocks, with_keys=True)
            return m.TextResolved(*known, match.n_tokens, blocks, match.lease, mark.tail)
        return m.TextResolved(ask.ref)

    def _reserve(self, ask: m.ReserveRows) -> m.RowsReserved:
        if RAM not in self._scanned or time.monotonic() < self._grants_from:
            refused = tuple((row.key, RefusalReason.STARTING) for row in ask.rows)
            self._refused_at_start += len(refused)
            return m.RowsReserved(ask.ref, self.incarnation, (), refused)
        self._holders.add(ask.holder)
        reason = SaveReason(ask.reason)
        wanted = [RowRequest(row.identity(ask.root), row.row_bytes, reason) for row in ask.rows]
        answers, evicted = self._index.reserve(time.monotonic(), ask.holder, wanted)
        self._dispose(evicted)  # before another row is written there, see cache.answers.Reserved
        offsets: list[tuple[bytes, int]] = []
        refusals: list[tuple[bytes, RefusalReason]] = []
        ends: list[tuple[bytes, bytes]] = []
        for row, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Refusal):
                refusals.append((answer.key, answer.reason))
            elif answer.offset is not None:
                offsets.append((answer.key, answer.offset))
                if packed := self._index.ends_in(row.id):
                    ends.append((answer.key, packed))
        return m.RowsReserved(
            ask.ref, self.incarnation, tuple(offsets), tuple(refusals), tuple(ends)
        )

    def _written(self, done: m.RowsWritten) -> None:
        now = time.monotonic()
        reason = SaveReason(done.reason) if done.reason else None
        for key in done.published:
            self._dispose(self._index.publish(now, done.holder, key, reason=reason).evicted)
        for key in done.continued:
            self._dispose(self._index.abandon_extended(done.holder, key))
        self._continued += len(done.continued)
        self._abandoned += len(done.abandoned)
        for key in done.abandoned:
            self._dispose(self._index.abandon(done.holder, key))
        if reason is SaveReason.SHUTDOWN:
            self._index.queue_late_tails()  # the writer stops soon after the model
        self._pump()

    def _reject(self, rejected: m.RowRejected) -> None:
        self._rejected += 1
        self._copies.drop_bad(rejected.tier, rejected.key)

    def _want_tails(self) -> bool:
        """Have rows written that models hold back; whether any model has reserved some."""
        writers = map(actor_of, self._index.writers())
        models = [child for child in writers if model_of(child) is not None]
        for child in models:
            self.tell(child, m.WriteTails())
        return bool(models)

    def _persist_now(self) -> bool:
        is_held_back = self._want_tails()
        self._index.queue_late_tails()
        self._pump()
        return not is_held_back and self._copies.is_all_persisted

    # ── tiers and the writer ────────────────────────────────────────────────────────────────────

    def _about_copies(
        self,
        message: m.RowCopied | m.RowsPromoted | m.CopyFailed | m.FilesDropped | m.WriterStops,
        sender: Address,
    ) -> None:
        if isinstance(message, m.WriterStops):
            self._writer_stops(message.incarnation, sender)
        else:
            self._copies.handle(time.monotonic(), message)
        self._pump()

    def _writer_stops(self, incarnation: int, writer: Address) -> None:
        """When the node stops, all that waits is still written; on a restart it waits longer."""
        if self._node_stops:
            self._index.queue_late_tails()
        self._copies.writer_stops(incarnation, writer, finish=self._node_stops)

    def _take_in(self, message: m.RowsFound | m.TierChanged) -> None:
        """Import rows that were found, after those found before, a slice at a time."""
        self._row_import.put(message)
        if not self._is_importing:
            self._import_some()

    def _import_some(self) -> None:
        self._is_importing = True
        self._row_import.step()
        self._is_importing = False
        self._pump()

    def _taken_in(self, message: m.RowsFound | m.TierChanged) -> None:
        """All rows of this message, and of those before it, are in the index."""
        if isinstance(message, m.TierChanged):
            self._copies.handle(time.monotonic(), message)
            self._pump()
            return
        self._quarantined += message.quarantined
        if message.last:
            self._scanned.add(message.tier)
            self._copies.scanned(message.tier, message.incarnation)
            for ask in self._prefetches.values():
                self._prefetch(ask)
            self._pump()

    def _pump(self) -> None:
        now = time.monotonic()
        self._copies.pump(now, may_promote=RAM in self._scanned and now >= self._grants_from)
        if not self._is_importing and not self._row_import.is_idle:
            self._is_importing = True
            self.after(0.0, _IMPORT)  # requests that came meanwhile go first

    def _holder_of(self, child: str) -> str | None:
        entry = self.directory.get(child)
        if entry is None or not entry.is_up:
            return None
        holder = holder_name(child, entry.incarnation)
        self._holders.add(holder)
        return holder

    def _dispose(self, evicted: Sequence[Evicted]) -> None:
        """Remove what the index has evicted: no scan may ever find these rows again."""
        files: dict[str, list[bytes]] = {}
        for gone in evicted:
            if gone.tier != RAM:
                files.setdefault(gone.tier, []).append(gone.key)
            elif gone.location is not None and self._arena_path:
                mark_free(self._arena_path, gone.location)
        for tier, keys in files.items():
            self._copies.drop_files(tier, keys)

    # ── timers and processes that end ───────────────────────────────────────────────────────────

    def handle_timer(self, payload: object) -> None:
        if payload == _IMPORT:
            self._import_some()
            return
        self._index.expire(time.monotonic())
        self._copies.close_stalled(time.monotonic())
        self._pump()
        self.after(EXPIRE_EVERY_S, "expire")

    def directory_changed(self, changed: tuple[Entry, ...]) -> None:
        for entry in changed:
            if entry.state == "stopping":  # what it writes until it ends counts: ``handle_down``
                self.monitor(entry.id)
            else:
                self._set_alive(entry.id, entry)
            if entry.id == "models" and not entry.is_up:
                self._index.queue_late_tails()  # no sequence is continued soon
                self._pump()
            if entry.id in ("writer", "ram_tier"):
                self._pump()

    def handle_down(self, down: Down) -> None:
        """A child that was stopping has ended."""
        if down.id == "writer":
            self._log_missing()
        self._set_alive(down.id, self.directory.get(down.id))
        self._pump()

    def _set_alive(self, child: str, entry: Entry | None) -> None:
        """Release what earlier processes of this child had reserved."""
        is_up = entry is not None and entry.is_up
        alive = holder_name(child, entry.incarnation) if entry is not None and is_up else None
        dead = [one for one in self._holders if actor_of(one) == child and one != alive]
        for holder in dead:
            self._holders.discard(holder)
            self._dispose(self._index.holder_exited(holder))
            self._copies.holder_exited(holder)
            for who in [one for one in self._prefetches if one.holder == holder]:
                del self._prefetches[who]
        if self._alive.get(child) != alive:
            self._copies.process_ended(child)
        self._alive[child] = alive

    def terminate(self, reason: ExitReason) -> None:
        del reason
        self._log_missing()

    def _log_missing(self) -> None:
        """Once, at a stop of the node: how much did not reach the files in time."""
        n_missing = self._copies.n_missing
        if n_missing and self._node_stops and not self._is_missing_logged:
            self._is_missing_logged = True
            self.log.warning(
                "%d copies of rows were not written to files before the node stopped: the storage "
                "was too slow; what they hold is computed again when it is needed",
                n_missing,
            )

    @property
    def _node_stops(self) -> bool:
        models = self.directory.get("models")
        return models is None or not models.is_up

    def status(self) -> dict[str, object]:
        snapshot = self._index.snapshot()
        return {
            "rows": snapshot.rows,
            "leases": snapshot.leases,
            "reservations": snapshot.reservations,
            "hits_exact": snapshot.hits_exact,
            "hits_partial": snapshot.hits_partial,
            "hits_resume": snapshot.hits_resume,
            "misses": snapshot.misses,
            **self._lookup_stats.status(),
            "saves": dict(snapshot.saves),
            "evictions": snapshot.evictions,
            "adopted": snapshot.adopted,
            "refused": {
                **snapshot.refused,
                RefusalReason.STARTING.value: self._refused_at_start,
            },
            "rejected": self._rejected,
            "abandoned": self._abandoned,
            "tails_not_written": self._continued,
            "tails_removed": snapshot.tails_removed,
            "replies_known": len(self._marks),
            "quarantined": self._quarantined,
            "lost": snapshot.lost,
            "duplicate_dropped": snapshot.duplicate_dropped,
            "copies_persisted": snapshot.persisted,
            **self._admin_queries.status(),
            **self._copies.status(),
            "scanned": sorted(self._scanned),
            "absent_tiers": dict(self._absent),
            "tiers": {
                name: {
                    "budget_bytes": use.budget_bytes,
                    "used_bytes": use.used_bytes,
                    "pinned_bytes": use.pinned_bytes,
                    "rows": use.rows,
                    "waiting": use.waiting,
                    "evicted": {
                        "room": use.evicted_for_room,
                        "pressure": use.evicted_on_request,
                    },
                    **self._copies.tier_status(name),
                }
                for name, use in snapshot.tiers.items()
            },
        }


def _resolved(ref: str, match: Match, *, with_keys: bool = False) -> m.PrefixResolved:
    blocks = refs.pack_blocks(match.blocks, with_keys=with_keys)
    return m.PrefixResolved(ref, match.n_tokens, blocks, match.lease, match.miss)
