"""From what a caller sent to a request that can run, or the reason why it cannot."""

from __future__ import annotations

from actors import messages as m
from actors.engine.clock import Clock
from actors.engine.exactness import level_of
from actors.engine.grammar_text import with_grammar
from actors.engine.prompt_text import PromptText
from actors.engine.prompt_tokens import check_bytes, too_long
from actors.engine.reply import Reply
from actors.engine.request import Request, RequestSpec
from actors.engine.resume import Resume, open_journal, reply_before
from actors.engine.sampling_control import SamplingControl
from actors.engine.speculation_state import SpeculationState, guessing_of
from actors.engine.turn import Turn
from actors.kv.namespace import Namespace
from actors.kv.request_cache import RequestCache
from actors.kv.timeline import Timeline
from actors.messages.errors import InvalidRequest, RequestRefused
from actors.messages.exact import EXACT_NAMES
from actors.messages.journal import JournalWriter, Noted
from actors.messages.logprob_records import LogprobsLog
from actors.messages.payload import Payload, PayloadGone, read_payload
from actors.messages.salt import checked_salt
from actors.text.format_parser import FormatParser
from actors.text.rendered_prompt import Rendered
from actors.text.reply_events import EventEncoder, ReplyRules
from actors.text.reply_format import ReplyFormat
from actors.text.reply_parser import ReplyParser
from cache import tokens as token_bytes
from cache.tokens import TokenIds
from native.backend import Backend


def open_request(
    run: m.Run,
    backend: Backend,
    rules: ReplyRules | None = None,
    model: m.Exact = m.Exact.REPEAT,
    rendered: Rendered | None = None,
    *,
    now: float,
) -> Request:
    """Check a request and make it ready to run, or refuse it with the reason.

    ``model`` is how exact the replies of this model are, unless a request names a level.
    """
    journal = open_journal(run)
    try:
        return _opened(run, backend, rules or ReplyRules(), journal, model, rendered, now)
    except RequestRefused:
        if journal is not None:
            journal.close()
        raise


def _opened(
    run: m.Run,
    backend: Backend,
    rules: ReplyRules,
    journal: JournalWriter | None,
    model: m.Exact,
    rendered: Rendered | None,
    now: float,
) -> Request:
    asked = with_grammar(run.request)
    if asked.max_tokens is not None and asked.max_tokens < 0:
        raise RequestRefused(
            m.FailReason.INVALID_REQUEST,
            f"max_tokens is {asked.max_tokens}; ask for at least one token, for 0 to read the "
            "prompt only, or for none to get what fits",
        )
    if asked.exact is not None and not isinstance(asked.exact, m.Exact):
        names = ", ".join(EXACT_NAMES)
        raise InvalidRequest(f"exact is {asked.exact!r}; ask for one of {names}, or for none")
    exact = level_of(asked.exact, model)
    namespace = Namespace(exact is m.Exact.ALWAYS, checked_salt(asked.salt))
    follows_parent = isinstance(asked.prompt, m.Continuation)
    part = asked.prompt.more if isinstance(asked.prompt, m.Continuation) else asked.prompt
    noted = Noted() if journal is None else journal.noted
    # The exact ids of a prompt that was read before are known; it is not tokenised again.
    is_known = bool(noted.prompt)
    text, tokens = (
        (None, TokenIds(noted.prompt))
        if is_known
        else _read_prompt(part, backend, may_be_empty=follows_parent)
    )
    left = _reply_before(asked, noted, backend)
    guessing = _guessing(asked, len(tokens), backend)
    reply_format = None if rendered is None else rendered.format
    if reply_format is not None and reply_format.grammar and asked.sampling.is_constrained:
        raise InvalidRequest("a required tool call has a grammar of its own; ask for no other")
    call_ids = run.request_id.encode()
    in_thought = rendered is not None and rendered.prompt.in_thought
    stream = rules.stream(
        asked, backend, text, tokens, reply_format, call_ids, in_thought=in_thought
    )
    line = Timeline(tokens)
    parent_key = None if is_known else namespace.exchanged(asked.parent_key)
    return Request(
        RequestSpec(
            request_id=run.request_id,
            ref=asked.ref,
            reply_to=run.reply_to,
            max_tokens=asked.max_tokens,
            parent_key=parent_key,
            parse_special=isinstance(part, m.TextPrompt) and part.parse_special,
            session=asked.session,
            exact=asked.exact,
            queue_events=asked.queue_events,
            drop_live=asked.drop_live,
            trace_id=asked.trace_id,
        ),
        PromptText(text, follows_parent=follows_parent and not is_known),
        line,
        RequestCache(
            line,
            parent_key,
            reads_only=asked.max_tokens == 0,
            namespace=namespace,
        ),
        Reply(
            sampling=asked.sampling,
            stream=stream,
            encoder=EventEncoder(asked.ref, rules, logprobs=LogprobsLog(asked.sampling.n_logprobs)),
            control=_control(rules, reply_format, stream),
            max_tokens=asked.max_tokens or 0,
        ),
        guessing,
        Resume(is_resumed=is_known or bool(left), knows_prompt=is_known, left=left),
        Clock(now, None if asked.timeout_s is None else now + asked.timeout_s),
        Turn(asked.priority),
        exact,
        journal,
    )


def _control(
    rules: ReplyRules, found: ReplyFormat | None, stream: ReplyParser | FormatParser
) -> SamplingControl:
    if found is None:
        return SamplingControl.of(rules.end_of_thought, stream)
    return SamplingControl.of(found.end_of_thought or rules.end_of_thought, stream, found.grammar)


def _guessing(asked: m.Complete, n_prompt: int, backend: Backend) -> SpeculationState:
    guessing = guessing_of(asked, backend.info.n_vocab)
    n_needed, n_ctx = n_prompt + len(guessing.candidates or ()), backend.info.n_ctx
    if guessing.candidates and n_needed > n_ctx:
        raise RequestRefused(
            m.FailReason.PROMPT_TOO_LONG,
            f"prefix and candidates have {n_needed} tokens and the context holds {n_ctx}; judge "
            "fewer candidates or load the model with a larger n_ctx",
            m.FailureFacts(n_prompt=n_needed, n_ctx=n_ctx),
        )
    return guessing


def _reply_before(asked: m.Complete, noted: Noted, backend: Backend) -> list[int]:
    try:
        return reply_before(asked, noted, backend.info.n_vocab)
    except ValueError as error:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error


def _unpacked(raw: bytes) -> TokenIds:
    try:
        return TokenIds.unpacked(raw)
    except ValueError as error:
        raise RequestRefused(
            m.FailReason.INVALID_REQUEST, f"the prompt is no list of token ids: {error}"
        ) from error


def _read_prompt(
    prompt: m.Prompt, backend: Backend, *, may_be_empty: bool
) -> tuple[str | None, TokenIds]:
    """The text of a prompt, or its token ids."""
    match prompt:
        case m.TextPrompt(source):
            raw = source if isinstance(source, str) else _read(source)
            text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
            _check_text(text, backend, may_be_empty=may_be_empty)
            return text, TokenIds()
        case m.TokenPrompt(packed):
            return None, _read_tokens(_read(packed), backend, may_be_empty=may_be_empty)
        case _:
            raise InvalidRequest("the prompt is neither a text nor token ids")


def _check_text(text: str, backend: Backend, *, may_be_empty: bool) -> None:
    if not text and not may_be_empty:
        raise InvalidRequest("the prompt is empty; send some text")
    check_bytes(text, backend.info)


def _read_tokens(raw: bytes, backend: Backend, *, may_be_empty: bool) -> TokenIds:
    n_tokens, n_ctx = len(raw) // token_bytes.TOKEN_BYTES, backend.info.n_ctx
    if n_tokens > n_ctx:
        raise too_long(n_tokens, n_ctx, at_least=may_be_empty)  # then it is a part of the prompt
    tokens = _unpacked(raw)
    n_vocab = backend.info.n_vocab
    if max(tokens, default=0) >= n_vocab:
        unknown = next(token for token in tokens if token >= n_vocab)
        raise InvalidRequest(f"token {unknown} is not in the vocabulary of {n_vocab} tokens")
    if not tokens and not may_be_empty:
        raise InvalidRequest("the prompt is empty; send some text")
    return tokens


def _read(payload: Payload) -> bytes:
    try:
        return read_payload(payload)
    except PayloadGone as gone:
        raise InvalidRequest(f"the prompt is gone: {gone}") from gone
