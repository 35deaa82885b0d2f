"""What reaches the engine of a model through its queue, beside the messages of the tree."""

from __future__ import annotations

from dataclasses import dataclass

from actors import messages as m


@dataclass(frozen=True, slots=True)
class Close:
    """Mailbox → engine: end every request with this failure and stop."""

    reason: m.FailReason
    detail: str


@dataclass(frozen=True, slots=True)
class CacheGone:
    """Mailbox → engine: cache_meta is not up, or is another incarnation; no answer will come."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Mailbox → engine: a question that only the engine can answer."""

    question: object
    reply_to: object
