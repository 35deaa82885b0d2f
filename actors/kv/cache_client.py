"""What a model and cache_meta say to each other about one request, and when to stop waiting.

Runs on the engine thread. A request waits for the cache at most twice: for its prefix before it
starts, and for its tip when it has finished. Both waits are short and bounded, because cache
trouble may cost speed, never service. In between, one offer of new rows at a time may be open.

Methods that may end the wait of a *finished* request return it, for the engine to let it go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from actors import messages as m
from actors.engine.batch_plan import Slice
from actors.engine.request import Request
from actors.kv.deferred_tails import LateTails
from actors.kv.finish_keys import RecentFinishKeys
from actors.kv.store import KvStore
from actors.text.reply_marks import Mark
from cache import tokens as token_bytes
from cache.answers import Miss, MissReason
from cache.rows import SaveReason

LOOKUP_TIMEOUT_S = 1.0  # a lookup takes about a millisecond; past this the cache is in trouble
ASK_AGAIN_S = 0.02  # while rows are being saved; a batch of them takes about so long
SAVE_TIMEOUT_S = 2.0  # a reservation likewise; past this the end of a reply is not stored
PARENT_UNKNOWN = (
    "the parent_key is not in the cache (evicted, or of another model or build); "
    "the prompt was matched by its tokens instead"
)


class CacheDialogue:
    """Asks and hears for the requests of one engine; ``store`` moves the bytes.

    ``settled`` is called with each request whose lookup has ended, whatever it brought.
    """

    def __init__(
        self,
        store: KvStore,
        send: Callable[[object, object], None],
        settled: Callable[[Request], None],
    ) -> None:
        self._store = store
        self._send = send
        self._settled = settled
        self._finish_keys = RecentFinishKeys()
        self.hits_resume = 0
        """Parents that this process knew without asking."""
        self.tails: LateTails | None = None

    @property
    def is_usable(self) -> bool:
        return self._store.is_usable

    def close(self) -> None:
        self._store.close()

    @property
    def logits_memory_bytes(self) -> int:
        return self._store.logits_memory_bytes

    def logits_pay(self, request: Request) -> bool:
        return self._store.logits_pay(request)

    def saw_step(self, n_tokens: int, seconds: float) -> None:
        self._store.rates.saw_step(n_tokens, seconds)

    def forget_finish_keys(self) -> None:
        """Drop the ends of replies that are stored nowhere."""
        self._finish_keys.clear()

    def figures(self) -> dict[str, float]:
        """Learned speeds and what saving cost, for a status report."""
        figures = self._store.rates.figures() | self._store.saved.figures()
        if self.tails is not None:
            figures["tails_not_written"] = self.tails.not_written
        return figures | {"hits_resume": self.hits_resume}

    def prompt_key(self, request: Request) -> bytes:
        return self._store.prompt_key(request)

    # ── the prefix ───────────────────────────────────────────────────────────────────────────

    def resolve_parent(self, request: Request) -> None:
        """Before the prompt is tokenised: which tokens does its ``parent_key`` stand for?"""
        known = self._finish_keys.get(request.parent_key)
        if known is not None:
            self.hits_resume += 1
            request.parent_tokens = known
            return
        if request.parent_key is not None and self._store.is_usable:
            self._ask(request, self._store.parent_lookup(request))

    def resolve_text(self, request: Request, candidates: bytes) -> None:
        """Which stored tokens stand for the beginning of its text? See ``engine.reply_replay``."""
        self._ask(request, self._store.text_lookup(candidates))

    @property
    def keeps_marks(self) -> bool:
        """Whether ends of replies can be stored with rows."""
        return self._store.is_usable and self._store.can_cut

    def mark_end(self, request: Request, mark: Mark) -> None:
        """A reply ended: its end goes into its row, and cache_meta hears of it at once."""
        self._send("cache_meta", self._store.mark_end(request, mark))

    def text_resolved(
        self, found: m.TextResolved, requests: Iterable[Request]
    ) -> tuple[Request, list[int]] | None:
        """Cache_meta answered: who asked, and the tokens if there are any."""
        request = next((r for r in requests if r.awaited_ref == found.ref), None)
        ids: list[int] | None = [] if found.n_bytes else None
        if request is not None:
            request.lookup_ms += 1e3 * (time.monotonic() - request.awaited_since)
            request.awaits_nothing()
            if found.n_tokens:
                rows = m.PrefixResolved(found.ref, found.n_tokens, found.blocks, found.lease, None)
                ids = self._store.read_parent(rows)
        if found.lease:
            self._send("cache_meta", m.ReleaseLease(found.lease))
        if request is None or ids is None:
            return None
        return request, ids + token_bytes.unpack(found.tail)

    def look_up(self, request: Request) -> None:
        """Ask for the longest stored prefix of a request that is about to start."""
        if self._store.is_usable:
            self._ask(request, self._store.lookup(request))
        else:
            why = self._store.unusable_because
            if why is not None and not request.n_live:
                request.missed(Miss(why))
            self._settled(request)

    def _ask(
        self, request: Request, message: m.LookupPrefix | m.ResolveParent | m.ResolveText
    ) -> None:
        now = time.monotonic()
        request.awaited_since = now
        request.awaits(message.ref, until=now + LOOKUP_TIMEOUT_S)
        self._send("cache_meta", message)

    def resolved(self, found: m.PrefixResolved, requests: Iterable[Request]) -> None:
        """Cache_meta answered: restore what it leased, then give the lease back."""
        self._store.answered(found.ref)
        request = next((r for r in requests if r.awaited_ref == found.ref), None)
        if request is not None and self._waits_for_save(request, found):
            self._send("cache_meta", m.ReleaseLease(found.lease))
            return
        if request is not None:  # else it was cancelled, or did not wait any longer
            request.lookup_ms += 1e3 * (time.monotonic() - request.awaited_since)
            request.awaits_nothing()
            if request.seq is None:
                request.parent_tokens = self._store.read_parent(found)
                if request.parent_tokens is None:
                    request.note = PARENT_UNKNOWN
            else:
                for rejected in self._store.restore(request, found):
                    self._send("cache_meta", rejected)
                self._settled(request)
        self._send("cache_meta", m.ReleaseLease(found.lease))

    # ── states ───────────────────────────────────────────────────────────────────────────────

    def cut_at_stop(self, request: Request, part: Slice) -> Slice:
        """End a step where the state of the sequence is to be saved."""
        stop = self._store.next_stop(request)
        if stop is None or request.n_kv + part.n_tokens <= stop:
            return part
        return Slice(part.index, stop - request.n_kv, reaches_end=False)

    def reached(self, request: Request) -> None:
        """A step ended for this request."""
        self._store.reached(request)

    def _waits_for_save(self, request: Request, found: m.PrefixResolved) -> bool:
        """Whether to ask again in a moment, since what is missing is being saved just now."""
        if found.miss is None or found.miss.reason is not MissReason.BEING_WRITTEN:
            return False
        now = time.monotonic()
        if request.save_wait_until is None:
            request.save_wait_until = now + self._store.resume_wait_s
        if now >= request.save_wait_until:
            return False
        request.lookup_ms += 1e3 * (now - request.awaited_since)
        request.awaited_since = now
        request.asks_again = True
        request.awaits(found.ref, until=min(now + ASK_AGAIN_S, request.save_wait_until))
        return True

    def time_is_up(self, request: Request) -> Request | None:
        """What a request waited for did not come in time, or it is time to ask again."""
        if not request.asks_again or request.is_finished:
            return self.give_up(request, MissReason.CACHE_TIMEOUT)
        request.asks_again = False
        request.lookup_ms += 1e3 * (time.monotonic() - request.awaited_since)
        if request.seq is None:
            self.resolve_parent(request)
        else:
            self.look_up(request)
        return None

    # ── saving ───────────────────────────────────────────────────────────────────────────────

    def save_block(self, request: Request) -> None:
        """Offer the block that generation has just completed, if it has."""
        if self._store.completes_block(request):
            self.save(request, SaveReason.CONTINUED, request.n_kv)

    def save_tip(self, request: Request) -> bool:
        """Offer the end of a finished request; whether it has to wait for an answer."""
        request.finish_key = self._store.tip_key(request)
        if not self.save(request, SaveReason.FINISH, request.n_visible):
            return False
        if request.awaited_ref is None and request.save_ref is not None:
            # An earlier offer is still open; its answer leads to that of the tip.
            request.awaits(request.save_ref, until=time.monotonic() + SAVE_TIMEOUT_S)
        return True

    def save(self, request: Request, reason: SaveReason, upto: int) -> bool:
        """Offer what is new below position ``upto``; whether an answer will come."""
        if request.save_ref is not None and not request.is_finished:
            return True  # one offer at a time; the next completed block is offered with what it has
        request.save_reason, request.save_upto = reason, upto
        return request.save_ref is not None or self._offer(request)

    def _offer(self, request: Request) -> bool:
        message = self._store.wanted(request)
        if message is None:
            return False
        request.save_ref = message.ref
        if request.is_finished:
            request.awaits(message.ref, until=time.monotonic() + SAVE_TIMEOUT_S)
        self._send("cache_meta", message)
        return True

    def reserved(self, grants: m.RowsReserved, requests: Iterable[Request]) -> Request | None:
        """Cache_meta granted slabs: write them, and offer the rest if there was more."""
        request = next((r for r in requests if r.save_ref == grants.ref), None)
        if request is None:
            if self.tails is not None and self.tails.granted(grants):
                return None
            if grants.offsets:
                self._send("cache_meta", self._store.abandon(grants))
            return None
        request.save_ref = None
        written = self._store.write(request, grants)
        if request.late_tail is not None:
            self._finish_keys.put(
                request.late_tail.row.key, request.tokens[: request.late_tail.end]
            )
        if written.published or written.abandoned:
            self._send("cache_meta", written)
        if self._offer(request) or not request.is_finished:
            return None
        request.awaits_nothing()
        return request

    # ── no answer ────────────────────────────────────────────────────────────────────────────

    def gone(self, request: Request) -> Request | None:
        """Cache_meta died: nobody will answer what is open."""
        if request.save_ref is not None:
            self._store.forget(request.save_ref)
            request.save_ref = None
        return None if request.awaited_ref is None else self.give_up(request, MissReason.CACHE_DOWN)

    def give_up(self, request: Request, why: MissReason) -> Request | None:
        """Go on without an answer: slower, but on."""
        if request.awaited_ref is not None:
            self._store.answered(request.awaited_ref)
        request.awaits_nothing()
        request.asks_again = False
        if request.is_finished:
            return request
        if request.seq is None:
            request.note = PARENT_UNKNOWN if request.parent_key is not None else None
        else:
            if not request.n_live:
                request.missed(Miss(why))
            self._settled(request)
        return None
