"""Completions: between callers, inflight and models."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from typing import TYPE_CHECKING, Final

from actors.messages.exact import Exact
from actors.messages.finish_reasons import FailReason, FailureFacts, FinishReason, Limit
from actors.messages.payload import Payload
from actors.messages.prompts import Prompt
from actors.messages.text_kind import TextKind
from native.sampling_params import SamplingParams
from supervision.frozen import frozen

if TYPE_CHECKING:
    from actors.messages.questions import Ask
    from cache.answers import Miss
    from supervision import Address

MAX_SALT_BYTES: Final = 64
"""Of one request: as many as a digest has at most."""

# ── what a completion can come to ───────────────────────────────────────────────────────────────


class Speculation(Enum):
    """How tokens are guessed, so that one step can prove several. Never changes the text."""

    OFF = "off"
    NGRAM = "ngram"
    """What followed the last tokens when they occurred before (prompt lookup)."""
    DRAFT = "draft"
    """What a small model of the same vocabulary generates; the model must be loaded with one."""


class Priority(Enum):
    """Which requests step aside for which. Among equals, who came first is first."""

    INTERACTIVE = "interactive"
    """Its caller waits for it."""
    BACKGROUND = "background"
    """It runs when no interactive request needs the model, or beside those that generate."""


class HitKind(Enum):
    """How much of the prompt the cache held."""

    EXACT = "exact"
    PARTIAL = "partial"
    COLD = "cold"
    STICKY = "sticky"


@frozen
class Usage:
    """Token counts; ``prompt_tokens`` includes ``cached_tokens``, as OpenAI counts them."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int = 0
    """Guesses that were computed."""
    accepted_tokens: int = 0
    """Of those, tokens of the reply: each saved a step."""


@frozen
class Divergence:
    """The first part of a conversation that differs from the nearest earlier one of its model."""

    part: str
    """``messages[4].content``, ``messages[4]``, ``tools[2]``, ``tools``, ``documents``,
    ``template`` for what the chat template writes by itself, ``reply`` for what it writes last."""
    at_char: int | None
    """Characters of this part before the place; ``None``: somewhere in it."""
    prompt_char: int
    """Characters of the whole rendered prompt before the place, or before the part."""
    prompt_token: int | None
    """The same in tokens; ``None`` if not known."""
    lost_tokens: int | None
    """Tokens behind it that both prompts have room for: what could have been warm, had nothing
    differed. ``None``: only the reply differs from what was generated, or it is not known."""
    lost_chars: int | None
    """The same in characters."""

    def __str__(self) -> str:
        where = "" if self.at_char is None else f" from character {self.at_char} on"
        lost = "" if self.lost_tokens is None else f": {self.lost_tokens} tokens were not warm"
        return f"{self.part} differs{where}{lost}"

    def to_dict(self) -> dict[str, object]:
        """Its part of a completion's JSON object."""
        return {
            "part": self.part,
            "at_char": self.at_char,
            "prompt_char": self.prompt_char,
            "prompt_token": self.prompt_token,
            "lost_tokens": self.lost_tokens,
            "lost_chars": self.lost_chars,
        }


@frozen
class CacheReport:
    """What the cache did for one request, and if it did nothing, why."""

    hit: HitKind
    source: str
    """``live | ram | ram_file | disk | none``: the slowest tier that something was read from."""
    restore_ms: float
    miss: Miss | None
    """Why no more of the prompt was warm; ``None`` when the whole prompt was held."""
    lookup_ms: float = 0.0
    note: str | None = None
    """Something the caller should be aware of, such as a ``parent_key`` that was not found."""
    exact: Exact = Exact.REPEAT
    """How exact the reply is: at least what was asked for."""
    diverged: Divergence | None = None
    """Of a conversation that was not wholly warm: which part of it differs from an earlier one."""

    @property
    def miss_reason(self) -> str | None:
        """``miss`` as text: a short code and, after a colon, its detail."""
        return None if self.miss is None else str(self.miss)


@frozen
class Timings:
    """Milliseconds, by the model process's clock; ``ttft_ms`` runs from the request's arrival."""

    queue_ms: float
    ttft_ms: float
    prefill_ms: float
    decode_ms: float
    """From the first token to the last, without the time aside."""
    tokens_per_second: float
    aside_ms: float = 0.0
    """How long it had stepped aside for others: it kept its place and had no sequence."""


# ── inflight, and every model ──────────────────────────────────────────────────────────────────


@frozen
class Grammar:
    """The rules that a reply must follow. Those of real tools are 100 KB and more."""

    rules: Payload
    """GBNF in UTF-8, its first rule named ``root``."""
    option: str = "grammar"
    """The option that it was made of, for error texts: ``grammar`` or ``json_schema``."""


@frozen
class Complete:
    """Caller → inflight, or a model's own address: generate.

    Answered by one ``Accepted``, then ``PrefillProgress`` and ``TokensDelivered`` as they come, and
    exactly one ``Completed`` or ``CompletionFailed`` at the end. Of ``PrefillProgress`` there is at
    least one, before anything of the prompt is computed.
    """

    ref: str
    model: str
    prompt: Prompt
    max_tokens: int | None = None
    """``None``: as many as fit into the context. 0 only reads the prompt into the cache; the finish
    reason is then ``prefilled``."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """A grammar or schema in it must fit into the message; see ``grammar``."""
    stop: tuple[str, ...] = ()
    parent_key: bytes | None = None
    timeout_s: float | None = None
    session: str | None = None
    """Name of a sticky sequence of this model: the next request of the same session continues it,
    as far as the prompts agree. One request of a session runs at a time."""
    speculation: Speculation = Speculation.OFF
    candidates: bytes | None = None
    """Judge these instead of generating: see ``Verify``, which makes such a request."""
    thinking: bool = False
    """Separate what the model thinks from its text. Without it, a thought is ordinary text."""
    thinking_budget_tokens: int | None = None
    """A thought that gets so long is ended for the model."""
    tool_calls: bool = False
    """Separate tool calls from text; a chat with tools does so where the model has markers.
    The structure of a call is sampled greedily."""
    exact: Exact | None = None
    """How exact the reply must be; ``None``: as the model was loaded."""
    priority: Priority = Priority.INTERACTIVE
    delivered: Payload = b""
    """u32-le ids of the reply that the caller has already, from an attempt whose end it did not
    receive: the reply continues after them."""
    grammar: Grammar | None = None
    """What the reply must follow, of any size, in place of one in ``sampling``."""
    thinking_is_optional: bool = False
    """With ``thinking``: a model that shows no thoughts is no error."""
    salt: bytes = b""
    """Separates requests: what is cached for those with one salt is neither used nor reported for
    those with another, and sessions and finish keys of one are unknown with another. Empty: the
    node's own namespace. At most 64 bytes."""
    queue_events: bool = False
    """Send ``Queued`` while it waits for its turn."""
    load_events: bool = False
    """Send ``ModelLoading`` while its model is loaded for it."""
    drop_live: bool = False
    """Its sequence leaves the context when it ends; its rows stay in the cache. For one that no
    other continues: it takes no place of a sequence that is continued."""
    traceparent: str = ""
    """Of W3C's Trace Context: where logs and reports of crashes name this request, they name its
    trace too."""

    @property
    def trace_id(self) -> str:
        """32 hex digits; empty: it has none."""
        from actors.messages.traceparent import trace_id_of  # here: commands start without it

        return trace_id_of(self.traceparent)

    def __str__(self) -> str:
        trace = f", trace {self.trace_id}" if self.trace_id else ""
        return f"Complete({self.ref}, {self.model}{trace})"


@frozen
class Cancel:
    """Caller → inflight: stop this request. The finish reason is then ``cancelled``."""

    request_id: str
    awaits_end: bool = True
    """False: the caller reads no more of it, perhaps nothing at all any more."""


@frozen
class Accepted:
    """Inflight → caller: the request has an id and is queued or running."""

    ref: str
    request_id: str


@frozen
class Queued:
    """Model → caller: it cannot start yet. Only for requests with ``queue_events``.

    Once it waits, and when its place has changed, once a second at most. Nothing is sent when it
    starts: ``PrefillProgress`` follows. The queue is that of the model's engine: a request whose
    model is away, whose text is being made tokens or whose grammar is compiled, is in none.
    """

    ref: str
    place: int
    """How many of the requests that wait start, or continue, before it: 0 is the next one."""


@frozen
class PrefillProgress:
    """Model → caller: ``done`` of ``total`` prompt tokens are read, ``reused`` of them warm.

    The first one of a request comes when it has started and is known how much is warm, before
    anything is computed; then one for each step that does not read the rest. ``reused`` may still
    grow where another request reads the same prompt.
    """

    ref: str
    done: int
    total: int
    reused: int


@frozen
class TokensDelivered:
    """Model → caller: new tokens. ``index`` numbers the first of them, from 0, without gaps."""

    ref: str
    index: int
    tokens: bytes
    """u32-le token ids."""
    text: str
    """Text that became final with these tokens; may be empty, never a cut character."""
    at: int = 0
    """Characters of the reply before ``text``: a client drops by it what it has already."""
    kind: TextKind = TextKind.TEXT
    """Of all the text and of the first byte of each token. Markers are not shown, but tokens of
    them are there."""
    logprobs: bytes = b""
    """Where they were asked for: one record for each token, see ``messages.logprob_records``."""


@frozen
class SpanEnded:
    """Model → caller: a thinking block or tool call is complete, after its deltas. In pages.

    Exactly one of ``last`` per block, also where the reply ended inside it. Join the pages' content
    and tokens.
    """

    ref: str
    number: int
    """Of the blocks of this reply, from 0; with ``page``, a client drops by it what it has."""
    kind: TextKind
    page: int
    content: bytes
    """The exact bytes, markers included; control tokens as they are written."""
    tokens: bytes
    """u32-le ids of all tokens that hold a byte of it."""
    n_start: int
    """Bytes of the start marker; 0 where the prompt had written it."""
    n_end: int
    """Bytes of the end marker; 0 where the reply ended before it."""
    signature: bytes
    """HMAC-SHA256 of a thought without its markers, by a key of this node; see
    ``VerifyThinking``."""
    last: bool
    is_closed: bool = False
    """Whether it is complete; False where the reply ended inside it."""


@frozen
class ToolCallDelivered:
    """Model → caller: more of a tool call as a value. The first of a call has its name."""

    ref: str
    number: int
    """Of the calls of this reply, from 0."""
    id: str
    name: str
    at: int
    """Characters of the arguments before ``arguments``: a client drops by it what it has."""
    arguments: str
    """A piece of JSON."""
    is_end: bool
    is_whole: bool
    """At the end: all pieces together are a JSON object."""


@frozen
class Resumed:
    """Model → caller: the process that ran this request died, and the reply continues.

    All of it that is noted, ``n_tokens``, is sent again from index 0, since it is not known what
    of it arrived; then new tokens.
    """

    ref: str
    n_tokens: int


@frozen
class StillRunning:
    """Inflight → caller: nothing new. Sent every few seconds, to notice that a caller has ended."""

    ref: str


@frozen
class Completed:
    """Model → caller: the end of a request that has a result."""

    ref: str
    request_id: str
    finish_reason: FinishReason
    finish_key: bytes | None
    """Key of the KV rows that hold prompt and visible reply: a later ``parent_key``, with the same
    salt. For a request with a salt it is another key than that of the row."""
    stop_sequence: str | None
    usage: Usage
    cache: CacheReport
    timings: Timings
    limit: Limit | None = None
    """What the reply had reached, if ``finish_reason`` is ``length``."""
    note: str | None = None
    """Why a part of the reply came as text that is not in the format of the model's template."""


@frozen
class CompletionFailed:
    """Model or inflight → caller: the end of a request that has no result, and what to do."""

    ref: str
    reason: FailReason
    detail: str
    facts: FailureFacts | None = None


@frozen
class Submit:
    """Model → inflight: this was sent to the model itself; register it like any other."""

    request: Complete | Ask
    reply_to: Address


@frozen
class Run:
    """Inflight → model: run this request and answer ``reply_to``."""

    request_id: str
    reply_to: Address
    request: Complete
    journal: str | None = None
    """Path of a memory file, see ``messages.journal``: note the reply there, and continue the one
    that is there already."""

    def __str__(self) -> str:
        trace = f", trace {self.request.trace_id}" if self.request.trace_id else ""
        return f"Run({self.request_id}, {self.request.model}{trace})"


@frozen
class CancelRun:
    """Inflight → model: stop this request."""

    request_id: str
    awaits_end: bool = True
    """False: it has ended as soon as the model has done with it; no caller reads its end."""


@frozen
class CallerGone:
    """Model → inflight: what was sent to this address did not arrive; stop what it asked for."""

    caller: Address


@frozen
class RequestEnded:
    """Model → inflight: forget this request or question, its caller has the answer."""

    request_id: str
