"""Going on with a request whose process died: a model's side of it. Runs on the engine thread.

What the reply was so far comes from the request's journal, or from its caller. It is taken up token
by token exactly as it was generated, only without a model: text, stop strings and the sampler stand
where they stood, and the next token has the index, and with it the randomness, that it would have
had. The KV is restored from the cache like that of any long prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from actors import messages as m
from actors.engine.batch_plan import Slice
from actors.messages.journal import JournalWriter, Noted
from actors.messages.payload import PayloadGone, read_payload
from actors.text.reply_events import merged
from cache import tokens as token_bytes

if TYPE_CHECKING:
    from actors.engine.batch_plan import Admission
    from actors.engine.request import Request
    from native.backend import Backend

STEP_ROWS: Final = 60
"""Tokens of a step that reads replies again. A reply was computed row by row; llama.cpp's attention
computes up to 63 rows exactly so, and from 64 on by tiles, whose sums differ (measured on a Q8_0
model: logits by up to 0.15). That would change near ties, and with them the text."""
PAGE_TOKENS: Final = 4096
PAGE_CHARS: Final = 8192  # at most 4 bytes each; with the tokens well below the 64 KiB of a message


def open_journal(run: m.Run) -> JournalWriter | None:
    """Its journal; None where nobody keeps one (any more): then it cannot be resumed from here."""
    if run.journal is None:
        return None
    try:
        return JournalWriter.open(run.journal)
    except OSError:
        return None


def said_before(asked: m.Complete, noted: Noted, n_vocab: int) -> list[int]:
    """Tokens of the reply that exist already; ValueError when the caller's are none."""
    if noted.prompt:
        return list(noted.accepted)
    try:
        said = token_bytes.unpack(read_payload(asked.delivered))
    except PayloadGone as gone:
        raise ValueError(f"what was delivered before is gone: {gone}") from gone
    for token in said:
        if token >= n_vocab:
            raise ValueError(f"token {token} is not in the vocabulary of {n_vocab} tokens")
    return said


def is_rereading(request: Request) -> bool:
    """Whether it computes again what its reply was before the interruption."""
    return request.n_resumed > 0 and request.n_kv >= request.n_prompt and request.n_pending > 1


def in_small_steps(ready: list[Request], n_batch: int) -> tuple[list[Request], int]:
    """Who takes part in the next step, and its size: replies are read again beside replies only."""
    if not any(map(is_rereading, ready)):
        return ready, n_batch
    few = [one for one in ready if one.is_generating or is_rereading(one)]
    return few, min(n_batch, max(STEP_ROWS, len(few) + 1))


def cut_at_reply(request: Request, part: Slice) -> Slice:
    """End a step where the prompt does, as the one did that read it first."""
    left = request.n_prompt - request.n_kv
    if not request.n_resumed or not 0 < left < part.n_tokens:
        return part
    return Slice(part.index, left, reaches_end=False)


def take_up(request: Request, admission: Admission, backend: Backend) -> None:
    """Put the request where it was when it was interrupted; once, before it takes a sequence.

    If its last token had ended it already, it reads all of its text and then ends again.
    """
    said, request.said_before = request.said_before, []
    if not said:
        return
    request.n_prompt, request.max_tokens = len(request.tokens), admission.max_tokens
    for token in said:
        if request.is_finished:
            break
        request.replay += request.accept(token, backend, 0.0)
    request.n_resumed = request.n_text_tokens
    request.ends_as, request.finish_reason = request.finish_reason, None


def replay(request: Request) -> Iterator[object]:
    """What the caller hears first: that it goes on, and everything from the start, in pages."""
    if not request.is_resumed:
        return
    events, request.replay = request.replay, []
    yield m.Resumed(request.ref, request.n_resumed)
    yield from merged(events, PAGE_CHARS, PAGE_TOKENS)
