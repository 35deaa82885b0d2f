"""Named conversations of one model: the exact tokens of each, and the request that runs in it.

With a session's name a caller continues where its last request ended. The session keeps the token
ids of its last turn, so that the next prompt, which comes as text, continues with the ids that were
sampled and not with what a tokenizer would make of the text: those may differ, and then no stored
row matches. The KV itself is kept by the live tier (``engine.live_sequences``), which drops the
sequences of sessions last, least recently used first; rows of the store then take their place.

Runs on the engine thread; times are monotonic seconds, handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from actors import messages as m
from actors.engine.request import Request
from actors.messages.errors import RequestRefused
from cache.tokens import TokenIds

MAX_SESSIONS: Final = 1024
MAX_TOKENS: Final = 4 << 20
"""Of all sessions together, 16 MiB; beyond either limit the longest unused are forgotten."""
MAX_LISTED: Final = 256
"""In one answer."""
_BUSY = "session {name!r} has a request that is {what}; wait for its end, or cancel it"
_UNKNOWN = (
    "there is nothing to continue: session {name!r} is not known here (it ended, was forgotten, or "
    "its model was restarted); send the whole prompt instead"
)
_NOTHING = "there is nothing to continue: name a session, or the parent_key of an earlier request"


class _Id(NamedTuple):
    """What names a session: the same name with another salt is another session."""

    name: str
    salt: bytes


@dataclass(slots=True)
class _Session:
    tokens: TokenIds = field(default_factory=TokenIds)
    """Prompt and visible reply of its last turn."""
    used_at: float = 0.0
    request: Request | None = None
    ends: bool = False


class Sessions:
    """The sessions of one model."""

    def __init__(self, max_sessions: int = MAX_SESSIONS, max_tokens: int = MAX_TOKENS) -> None:
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._sessions: dict[_Id, _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, request: Request, now: float) -> None:
        """A request arrived: take its session, or RequestRefused when another one has it."""
        name = request.spec.session
        if name is None:
            if request.prompt.follows_parent and request.spec.parent_key is None:
                raise RequestRefused(m.FailReason.INVALID_REQUEST, _NOTHING)
            return
        key = _Id(name, request.cache.namespace.salt)
        session = self._sessions.get(key)
        if session is None or (not session.tokens and session.request is None):
            if request.prompt.follows_parent and request.spec.parent_key is None:
                text = _UNKNOWN.format(name=name)
                raise RequestRefused(m.FailReason.INVALID_REQUEST, text)
            session = self._sessions.setdefault(key, _Session())
        if session.request is not None:
            what = "waiting" if session.request.line.seq is None else "running"
            raise RequestRefused(m.FailReason.SESSION_BUSY, _BUSY.format(name=name, what=what))
        session.request, session.used_at = request, now
        if session.tokens:
            request.cache.continues(session.tokens)

    def leave(self, request: Request, now: float) -> None:
        """A request ended, however: the session is free, and continues from its tokens."""
        key = _Id(request.spec.session or "", request.cache.namespace.salt)
        session = self._sessions.get(key)
        if session is None or session.request is not request:
            return
        session.request, session.used_at = None, now
        line = request.line
        if request.is_finished and line.n_prompt:
            session.tokens = line.ids(line.n_prompt + request.reply.stream.visible_tokens())
        if session.ends or not session.tokens:
            del self._sessions[key]
        self._forget_oldest()

    def end(self, name: str, salt: bytes = b"") -> bool:
        """Forget a session, now or when its request ends; whether it was known."""
        session = self._sessions.get(_Id(name, salt))
        if session is None:
            return False
        if session.request is None:
            del self._sessions[_Id(name, salt)]
        else:
            session.ends = True
        return True

    def is_known(self, name: str, salt: bytes = b"") -> bool:
        session = self._sessions.get(_Id(name, salt))
        return session is not None and not session.ends

    def listed(self, most: int = MAX_LISTED) -> tuple[m.SessionStatus, ...]:
        """Those that were used last, latest first."""
        latest = sorted(self._sessions.items(), key=lambda one: one[1].used_at, reverse=True)
        return tuple(
            m.SessionStatus(key.name, key.salt, len(one.tokens), one.request is not None)
            for key, one in latest[:most]
        )

    def _forget_oldest(self) -> None:
        n_tokens = sum(len(one.tokens) for one in self._sessions.values())
        idle = sorted(
            (key for key, one in self._sessions.items() if one.request is None),
            key=lambda key: self._sessions[key].used_at,
        )
        for key in idle:
            if len(self._sessions) <= self._max_sessions and n_tokens <= self._max_tokens:
                return
            n_tokens -= len(self._sessions.pop(key).tokens)
