"""What is known of one request, as a value: sent between processes, shown, logged. No texts."""

from __future__ import annotations

from supervision.frozen import frozen

WAITING, QUEUED, PREFILL, DECODE, DONE = "waiting", "queued", "prefill", "decode", "done"


@frozen
class ReplyRecord:
    """One reply of a request. Milliseconds run from the request's arrival at the gateway."""

    index: int
    phase: str = WAITING
    """``waiting | queued | prefill | decode | done``."""
    place: int | None = None
    """In the queue of its model, when that was reported last."""
    prompt_tokens: int = 0
    read_tokens: int = 0
    """Of the prompt, in the context."""
    cached_tokens: int = 0
    generated_tokens: int = 0
    accepted_at_ms: float | None = None
    """When the first sign of the model came."""
    first_at_ms: float | None = None
    """When the first token came."""
    last_at_ms: float | None = None
    """When the last token came."""
    pauses: tuple[tuple[float, float], ...] = ()
    """Where a process ended and another continued: when that was over, and how long it took."""
    finish_reason: str | None = None
    queue_ms: float = 0.0
    """This and the following are by the model's clock, and of a reply that has ended."""
    lookup_ms: float = 0.0
    restore_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    aside_ms: float = 0.0
    drafted_tokens: int = 0
    draft_hits: int = 0
    hit: str | None = None
    """``exact | partial | cold …``: kind of the hit."""
    source: str | None = None
    """``live | ram | ram_file | disk | none``: the slowest tier that something was read from."""
    miss_reason: str | None = None
    """Why no more was warm: a short code."""
    part: str | None = None
    """``messages | tools | documents | template | reply``: where the conversation differs from an
    earlier one."""
    miss_at: int | None = None
    """Tokens of the prompt before the first that was not warm."""
    diverged: str | None = None
    """``part`` more exactly: ``messages[4].content``."""
    diverged_token: int | None = None
    """Tokens of the prompt before the place where it differs."""
    lost_tokens: int | None = None
    """Tokens behind it that could have been warm."""


@frozen
class RequestRecord:
    """One HTTP request."""

    id: str
    """``x-request-id`` of its answer."""
    at: float
    """Unix time of its arrival."""
    worker: int
    method: str
    route: str
    """The pattern of its path."""
    api: str
    key: str
    """Name of its key; empty without keys."""
    client: str
    """Beginning of its ``User-Agent``."""
    took_ms: float
    """Until its end, or until this was made."""
    answer_id: str = ""
    model: str | None = None
    is_stream: bool = False
    status: int = 0
    """Of HTTP; 0: nothing was sent."""
    outcome: str | None = None
    """``ok | failed | client_gone | broken | stopped``; None: it runs."""
    error: str | None = None
    """Kind of the failure."""
    n_taken: int = 0
    """How often another worker went on with it because its own was killed."""
    rules: tuple[str, ...] = ()
    """Canonical rules that have changed it."""
    replies: tuple[ReplyRecord, ...] = ()
