"""Questions to an engine beside completions: sessions, the live tier, what is warm.

Runs on the engine thread, between two steps. Every question is answered exactly once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

from actors import messages as m
from actors.engine.live_sequences import LiveSequences
from actors.engine.sessions import Sessions
from actors.kv.namespace import Namespace
from actors.kv.store import KvStore
from actors.messages.payload import PayloadGone, read_payload
from actors.messages.salt import checked_salt
from cache import tokens as token_bytes


class ControlQueries:
    """Answers questions about one engine's sessions and cache."""

    def __init__(
        self,
        live: LiveSequences,
        sessions: Sessions,
        store: KvStore,
        send: Callable[[object, object], None],
        *,
        is_apart: bool = False,
    ) -> None:
        """``is_apart``: all requests of this model are always exact."""
        self._is_apart = is_apart
        self._live = live
        self._sessions = sessions
        self._store = store
        self._send = send
        self._matching: dict[str, tuple[m.MatchPrefix, object, int]] = {}

    def handle(self, question: object, reply_to: object) -> None:
        """Answer, or raise RequestRefused."""
        match question:
            case m.EndSession(ref, session):
                salt = checked_salt(question.salt)
                was_known = self._sessions.is_known(session, salt)
                self._sessions.end(session, salt)
                self._live.end_session(session, salt)
                self._send(reply_to, m.SessionEnded(ref, was_known))
            case m.ListSessions(ref):
                listed = self._sessions.listed()
                self._send(reply_to, m.SessionsListed(ref, listed, len(self._sessions)))
            case m.EvictLive(ref):
                counts = self._live.counts()
                self._live.drop_idle()
                self._send(
                    reply_to, m.LiveEvicted(ref, counts["idle_sequences"], counts["idle_cells"])
                )
            case m.MatchPrefix():
                self._match(question, reply_to)
            case _:
                raise TypeError(f"the mailbox queued {question!r}: a bug in it")

    def _match(self, question: m.MatchPrefix, reply_to: object) -> None:
        namespace = Namespace(self._is_apart, checked_salt(question.salt))
        try:
            packed = read_payload(question.tokens)
        except PayloadGone as gone:
            detail = f"the prompt is gone: {gone}"
            refused = m.TextRefused(question.ref, m.FailReason.INVALID_REQUEST, detail)
            self._send(reply_to, refused)
            return
        if len(packed) % token_bytes.TOKEN_BYTES:
            detail = f"{len(packed)} bytes are not whole 4-byte token ids; send u32-le ids"
            refused = m.TextRefused(question.ref, m.FailReason.INVALID_REQUEST, detail)
            self._send(reply_to, refused)
            return
        live = self._live.longest_match(packed, namespace)
        if not self._store.is_usable:
            self._send(reply_to, m.PrefixMatched(question.ref, live, 0))
            return
        ref = uuid.uuid4().hex
        self._matching[ref] = (question, reply_to, live)
        asked = self._store.match(ref, question.tokens, namespace)
        self._send("cache_meta", asked)

    def resolved(self, found: m.PrefixResolved) -> bool:
        """Cache_meta answered; whether the question came from here."""
        asked = self._matching.pop(found.ref, None)
        if asked is None:
            return False
        self._send("cache_meta", m.ReleaseLease(found.lease))
        question, reply_to, live = asked
        self._send(reply_to, m.PrefixMatched(question.ref, live, found.n_tokens))
        return True

    def cache_gone(self) -> None:
        """No answer will come: then nothing is stored that could be used now."""
        for question, reply_to, live in self._matching.values():
            self._send(reply_to, m.PrefixMatched(question.ref, live, 0))
        self._matching.clear()
