"""From what a caller sent to a request that can run, or the reason why it cannot."""

from __future__ import annotations

from actors import messages as m
from actors.engine.clock import Clock
from actors.engine.prompt_text import PromptText
from actors.engine.prompt_tokens import why_too_long
from actors.engine.reply import Reply
from actors.engine.request import Request, RequestSpec
from actors.engine.resume import Resume, open_journal, reply_before
from actors.engine.sampling_control import Steering
from actors.engine.speculation_state import Guessing, guessing_of
from actors.kv.request_cache import RequestCache
from actors.kv.timeline import Timeline
from actors.messages.errors import RequestRefused
from actors.messages.journal import JournalWriter, Noted
from actors.messages.logprob_records import LogprobsLog
from actors.messages.payload import PayloadGone, read_payload
from actors.text.reply_events import EventEncoder, ReplyRules
from cache import tokens as token_bytes
from native.backend import Backend


def open_request(
    run: m.Run, backend: Backend, rules: ReplyRules | None = None, *, now: float
) -> Request:
    """Check a request and make it ready to run, or refuse it with the reason."""
    journal = open_journal(run)
    try:
        return _opened(run, backend, rules or ReplyRules(), journal, now)
    except RequestRefused:
        if journal is not None:
            journal.close()
        raise


def _opened(
    run: m.Run, backend: Backend, rules: ReplyRules, journal: JournalWriter | None, now: float
) -> Request:
    asked = run.request
    if asked.max_tokens < 0:
        raise RequestRefused(
            m.FailReason.INVALID_REQUEST,
            f"max_tokens is {asked.max_tokens}; ask for at least one token, or for 0 to read the "
            "prompt only",
        )
    noted = Noted() if journal is None else journal.noted
    # The exact ids of a prompt that was read before are known: nothing is looked up or cut anew.
    is_known = bool(noted.prompt)
    text, tokens = (None, list(noted.prompt)) if is_known else _read_prompt(asked, backend)
    left = _reply_before(asked, noted, backend)
    guessing = _guessing(asked, len(tokens), backend)
    stream = rules.stream(asked, backend, text, tokens)
    line = Timeline(tokens)
    parent_key = None if is_known else asked.parent_key
    return Request(
        RequestSpec(
            request_id=run.request_id,
            ref=asked.ref,
            reply_to=run.reply_to,
            max_tokens=asked.max_tokens,
            parent_key=parent_key,
            parse_special=asked.parse_special,
            session=asked.session,
        ),
        PromptText(text, follows_parent=asked.continues and not is_known),
        line,
        RequestCache(line, parent_key, reads_only=asked.max_tokens == 0),
        Reply(
            sampling=asked.sampling,
            stream=stream,
            encoder=EventEncoder(asked.ref, rules, logprobs=LogprobsLog(asked.sampling.n_logprobs)),
            control=Steering.of(rules.end_of_thought, stream),
            max_tokens=asked.max_tokens,
        ),
        guessing,
        Resume(is_resumed=is_known or bool(left), knows_prompt=is_known, left=left),
        Clock(now, None if asked.timeout_s is None else now + asked.timeout_s),
        journal,
    )


def _guessing(asked: m.Complete, n_prompt: int, backend: Backend) -> Guessing:
    guessing = guessing_of(asked, backend.info.n_vocab)
    n_needed, n_ctx = n_prompt + len(guessing.candidates or ()), backend.info.n_ctx
    if guessing.candidates and n_needed > n_ctx:
        raise RequestRefused(
            m.FailReason.PROMPT_TOO_LONG,
            f"prefix and candidates have {n_needed} tokens and the context holds {n_ctx}; judge "
            "fewer candidates or load the model with a larger n_ctx",
        )
    return guessing


def _reply_before(asked: m.Complete, noted: Noted, backend: Backend) -> list[int]:
    try:
        return reply_before(asked, noted, backend.info.n_vocab)
    except ValueError as error:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error


def _unpacked(raw: bytes) -> list[int]:
    try:
        return token_bytes.unpack(raw)
    except ValueError as error:
        raise RequestRefused(
            m.FailReason.INVALID_REQUEST, f"the prompt is no list of token ids: {error}"
        ) from error


def _read_prompt(asked: m.Complete, backend: Backend) -> tuple[str | None, list[int]]:
    try:
        raw = asked.prompt if isinstance(asked.prompt, str) else read_payload(asked.prompt)
    except PayloadGone as gone:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, f"the prompt is gone: {gone}") from gone
    if isinstance(raw, str):
        text: str | None = raw
        tokens: list[int] = []
    elif asked.tokens:
        n_tokens, n_ctx = len(raw) // token_bytes.TOKEN_BYTES, backend.info.n_ctx
        if n_tokens > n_ctx:
            raise RequestRefused(
                m.FailReason.PROMPT_TOO_LONG,
                f"the prompt has {n_tokens} tokens and the context holds {n_ctx}, the reply "
                "included; shorten the prompt or load the model with a larger n_ctx",
            )
        text, tokens = None, _unpacked(raw)
        for token in tokens:
            if not 0 <= token < backend.info.n_vocab:
                raise RequestRefused(
                    m.FailReason.INVALID_REQUEST,
                    f"token {token} is not in the vocabulary of {backend.info.n_vocab} tokens",
                )
    else:
        text, tokens = raw.decode("utf-8", "replace"), []
    if not text and not tokens and not asked.continues:
        raise RequestRefused(m.FailReason.INVALID_REQUEST, "the prompt is empty; send some text")
    too_long = why_too_long(text or "", backend.info)
    if too_long is not None:
        raise RequestRefused(m.FailReason.PROMPT_TOO_LONG, too_long)
    return text, tokens
