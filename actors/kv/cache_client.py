"""What a model asks cache_meta about one request, and when it stops waiting for the answer.

Runs on the engine thread; times are seconds on its clock, passed in. A request waits for the cache
when it starts, for its prefix, and when it ends or steps aside, for its tip. All waits are short
and bounded, because cache trouble may cost speed, never service. In between, one offer of new rows
at a time may be open.

Methods that may end the wait of a request that is *ending* return it, for the engine to release it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Final

from actors import messages as m
from actors.kv.deferred_tails import DeferredTails
from actors.kv.finish_keys import FinishKeys
from actors.kv.prompt_logits import logits_memory
from actors.kv.request_cache import RequestCache
from actors.kv.restore_cost import Speeds
from actors.kv.store import KvStore
from actors.text.reply_marks import Mark
from cache.answers import Miss, MissReason
from cache.rows import SaveReason
from cache.tokens import TokenIds

LOOKUP_TIMEOUT_S: Final = 1.0
"""A lookup takes about a millisecond; past this the cache is in trouble."""
ASK_AGAIN_S: Final = 0.02
"""While rows are being saved; a batch of them takes about so long."""
SAVE_TIMEOUT_S: Final = 2.0
"""A reservation takes no longer than a lookup; past this the end of a reply is not stored."""
PARENT_UNKNOWN: Final = (
    "the parent_key is not in the cache (evicted, or of another model or build); "
    "the prompt was matched by its tokens instead"
)


class CacheClient:
    """Asks cache_meta for the requests of one engine, and takes its answers.

    ``store`` moves the bytes. ``settled`` is called with each request whose lookup has ended,
    whatever it found.
    """

    def __init__(
        self,
        store: KvStore,
        send: Callable[[object, object], None],
        settled: Callable[[RequestCache], None],
        tails: DeferredTails,
    ) -> None:
        self._store = store
        self._send = send
        self._settled = settled
        self._tails = tails
        self._finish_keys = FinishKeys()
        self._logits = logits_memory(store.policy.logits.memory_bytes)
        self.hits_resume = 0
        """Parents that this process knew without asking."""

    @property
    def is_usable(self) -> bool:
        return self._store.is_usable

    def close(self) -> None:
        self._store.close()

    def record_step(self, n_tokens: int, seconds: float, *, singly: bool = False) -> None:
        """A step computed so many tokens, ``singly`` or not; restoring is compared with that."""
        self._store.rates.record_step(n_tokens, seconds, singly=singly)

    def speeds(self) -> Speeds | None:
        """What computing a token takes, as far as it was measured."""
        return self._store.rates.speeds()

    def n_again(self, n_reply: int) -> int:
        """Of a reply of so many tokens, those that are not stored at some moment: at most."""
        policy = self._store.policy
        in_blocks = self.is_usable and self._store.can_cut and policy.save_while_generating
        return min(n_reply, policy.block_tokens) if in_blocks else n_reply

    def forget_unstored(self) -> None:
        """Forget what is known here only: ends of replies, and logits of prompts."""
        self._finish_keys.clear()
        self._logits.clear()

    def figures(self) -> dict[str, float]:
        """Learned speeds and what saving cost, for a status report."""
        return {
            **self._store.rates.figures(),
            **self._store.writer.saved.figures(),
            "tails_not_written": self._tails.not_written,
            "hits_resume": self.hits_resume,
        }

    # ── the prefix ──────────────────────────────────────────────────────────────────────────────

    def resolve_parent(self, request: RequestCache, now: float) -> None:
        """Before the prompt is tokenised: which tokens does its ``parent_key`` stand for?"""
        known = self._finish_keys.get(request.parent_key)
        if known is not None:
            self.hits_resume += 1
            request.continues(known)
            return
        if request.parent_key is not None and self._store.is_usable:
            self._ask(request, self._store.parent_lookup(request), now)

    def resolve_text(self, request: RequestCache, candidates: bytes, now: float) -> None:
        """Which stored tokens stand for the beginning of its text? See ``engine.reply_replay``."""
        self._ask(request, self._store.text_lookup(request, candidates), now)

    def text_resolved(
        self, found: m.TextResolved, requests: Iterable[RequestCache], now: float
    ) -> tuple[RequestCache, TokenIds] | None:
        """Cache_meta answered: the request that waits for it, and the tokens if there are any."""
        request = _waiting_for(found.ref, requests)
        ids = TokenIds() if found.n_bytes else None
        if request is not None:
            request.lookup_took(now)
            request.awaits_nothing()
            if found.n_tokens:
                rows = m.PrefixResolved(found.ref, found.n_tokens, found.blocks, found.lease, None)
                ids = self._store.read_parent(rows)
        if found.lease:
            self._send("cache_meta", m.ReleaseLease(found.lease))
        if request is None or ids is None:
            return None
        return request, ids + TokenIds.unpacked(found.tail)

    def look_up(self, request: RequestCache, now: float) -> None:
        """Ask for the longest stored prefix of a request that is about to start."""
        if self._store.is_usable:
            self._ask(request, self._store.lookup(request), now)
        else:
            why = self._store.unusable_because
            if why is not None and not request.line.n_live:
                request.missed(Miss(why))
            self._settled(request)

    def _ask(
        self,
        request: RequestCache,
        message: m.LookupPrefix | m.ResolveParent | m.ResolveText,
        now: float,
    ) -> None:
        request.awaited_since = now
        request.awaits(message.ref, until=now + LOOKUP_TIMEOUT_S)
        self._send("cache_meta", message)

    def resolved(
        self, found: m.PrefixResolved, requests: Iterable[RequestCache], now: float
    ) -> None:
        """Cache_meta answered: restore what it leased, then give the lease back."""
        self._store.answered(found.ref)
        request = _waiting_for(found.ref, requests)
        if request is not None and self._waits_for_save(request, found, now):
            self._send("cache_meta", m.ReleaseLease(found.lease))
            return
        if request is not None:  # else it was cancelled, or did not wait any longer
            request.lookup_took(now)
            request.awaits_nothing()
            if request.line.seq is None:
                request.continues(self._store.read_parent(found))
                if request.parent_tokens is None:
                    request.note = PARENT_UNKNOWN
            else:
                self._restore(request, found)
        self._send("cache_meta", m.ReleaseLease(found.lease))

    def _restore(self, request: RequestCache, found: m.PrefixResolved) -> None:
        restored = self._store.rows.restore(request, found)
        request.was_restored(restored)
        if restored.read:
            self._store.rates.record_restore(restored.read, restored.read_seconds)
        for rejected in restored.refused:
            self._send("cache_meta", rejected)
        self._settled(request)

    def _waits_for_save(self, request: RequestCache, found: m.PrefixResolved, now: float) -> bool:
        """Whether to ask again in a moment, since what is missing is being saved just now."""
        if found.miss is None or found.miss.reason is not MissReason.BEING_WRITTEN:
            return False
        if request.save_wait_until is None:
            request.save_wait_until = now + self._store.policy.session_resume_wait_ms / 1e3
        if now >= request.save_wait_until:
            return False
        request.lookup_took(now)
        request.asks_again = True
        request.awaits(found.ref, until=min(now + ASK_AGAIN_S, request.save_wait_until))
        return True

    def time_is_up(self, request: RequestCache, now: float) -> RequestCache | None:
        """What a request waited for did not come in time, or it is time to ask again."""
        if not request.asks_again or request.is_ending:
            return self.abandon(request, MissReason.CACHE_TIMEOUT)
        request.asks_again = False
        request.lookup_took(now)
        if request.line.seq is None:
            self.resolve_parent(request, now)
        else:
            self.look_up(request, now)
        return None

    # ── states of models that cannot be cut ─────────────────────────────────────────────────────

    def next_stop(self, request: RequestCache) -> int | None:
        """Position at which reading is interrupted, since the sequence's state is saved there."""
        return self._store.rows.next_stop(request)

    def reached(self, request: RequestCache) -> None:
        """A step ended for this request."""
        self._store.rows.reached(request)

    # ── the logits of a prompt ──────────────────────────────────────────────────────────────────

    def find_logits(self, request: RequestCache) -> None:
        """Take the logits of its prompt's last position from an earlier request, if known."""
        if request.first_logits is None and self._store.can_cut and request.may_use_logits:
            request.first_logits = self._logits.get(self._store.plan.prompt_key(request))

    def keep_logits(self, request: RequestCache, logits: Callable[[], array[float]]) -> None:
        """Keep those of the prompt's last position: an exact repeat then needs no decode.

        ``logits`` returns them; it is called only if they are of use.
        """
        if self._store.can_cut:
            request.tip_logits = logits()
            self._logits.put(self._store.plan.prompt_key(request), request.tip_logits)

    # ── ends of replies ─────────────────────────────────────────────────────────────────────────

    @property
    def keeps_marks(self) -> bool:
        """Whether ends of replies can be stored with rows."""
        return self._store.is_usable and self._store.can_cut

    def mark_end(self, request: RequestCache, mark: Mark) -> None:
        """A reply ended: its end goes into its row, and cache_meta is notified at once."""
        self._send("cache_meta", self._store.plan.mark_end(request, mark))

    # ── saving ──────────────────────────────────────────────────────────────────────────────────

    def save_prompt(self, request: RequestCache, now: float) -> None:
        """Offer what was read of the prompt."""
        self._save(request, request.prompt_save_reason, request.line.n_prompt, now)

    def save_block(self, request: RequestCache, now: float) -> None:
        """Offer the block that generation has just completed, if it has."""
        if self._store.rows.completes_block(request):
            self._save(request, SaveReason.CONTINUED, request.line.n_kv, now)

    def save_tip(self, request: RequestCache, n_visible: int, now: float) -> bool:
        """Offer the end of a finished request; whether it has to wait for an answer.

        Its first ``n_visible`` tokens are worth keeping.
        """
        request.is_finished = True
        request.finish_key = self._store.tip_key(request, n_visible)
        request.save_reason, request.save_upto = SaveReason.FINISH, n_visible
        if request.seq is not None:
            self._store.rows.ends(request)
        if request.save_ref is None:
            return self._offer(request, now)
        if request.awaited_ref is None:
            # An earlier offer is still open; its answer leads to that of the tip.
            request.awaits(request.save_ref, until=now + SAVE_TIMEOUT_S)
        return True

    def save_all(self, request: RequestCache, now: float) -> bool:
        """Offer all that is in the context of a request that steps aside, its end too.

        Whether it has to wait for an answer. What it waited for before does not matter any more.
        """
        if request.awaited_ref is not None:
            self._store.answered(request.awaited_ref)
            request.awaits_nothing()
        request.leaves()
        if request.line.n_kv:
            self._store.rows.leaves(request)
        if request.save_ref is None:
            return self._offer(request, now)
        # An earlier offer is still open; its answer leads to that of the rest.
        request.awaits(request.save_ref, until=now + SAVE_TIMEOUT_S)
        return True

    def _save(self, request: RequestCache, reason: SaveReason, upto: int, now: float) -> None:
        """Offer what is new below position ``upto``."""
        if request.save_ref is None:  # one offer at a time; the next one takes up what it missed
            request.save_reason, request.save_upto = reason, upto
            self._offer(request, now)

    def _offer(self, request: RequestCache, now: float) -> bool:
        """Offer what is new; whether an answer will come. A request that ends waits for it."""
        message = self._store.offer(request)
        if message is None:
            return False
        request.save_ref = message.ref
        if request.is_ending:
            request.awaits(message.ref, until=now + SAVE_TIMEOUT_S)
        self._send("cache_meta", message)
        return True

    def reserved(
        self, grants: m.RowsReserved, requests: Iterable[RequestCache], now: float
    ) -> RequestCache | None:
        """Cache_meta granted memory: write the rows, and offer the rest if there is more."""
        request = next((one for one in requests if one.save_ref == grants.ref), None)
        if request is None:
            if not self._tails.granted(grants) and grants.offsets:
                self._send("cache_meta", self._store.abandon(grants))
            return None
        request.save_ref = None
        written = self._store.write(request, grants)
        tail = request.deferred_tail
        if tail is not None:
            self._finish_keys.put(tail.row.key, request.line.packed(0, tail.end))
        if written.published or written.abandoned:
            self._send("cache_meta", written)
        if self._offer(request, now) or not request.is_ending:
            return None
        request.awaits_nothing()
        return request

    # ── no answer ───────────────────────────────────────────────────────────────────────────────

    def gone(self, request: RequestCache) -> RequestCache | None:
        """Cache_meta has ended: what is open will not be answered."""
        if request.save_ref is not None:
            self._store.forget(request.save_ref)
            request.save_ref = None
        if request.awaited_ref is None:
            return None
        return self.abandon(request, MissReason.CACHE_DOWN)

    def abandon(self, request: RequestCache, why: MissReason) -> RequestCache | None:
        """Continue without the answer, which costs speed only."""
        if request.awaited_ref is not None:
            self._store.answered(request.awaited_ref)
        request.awaits_nothing()
        request.asks_again = False
        if request.is_ending:
            return request
        if request.line.seq is None:
            request.note = PARENT_UNKNOWN if request.parent_key is not None else None
        else:
            if not request.line.n_live:
                request.missed(Miss(why))
            self._settled(request)
        return None


def _waiting_for(ref: str, requests: Iterable[RequestCache]) -> RequestCache | None:
    return next((one for one in requests if one.awaited_ref == ref), None)
