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
from actors.journal import JournalWriter, Noted
from actors.payload import PayloadGone, read_payload
from actors.reply_rules import merged
from cache import tokens as token_bytes

if TYPE_CHECKING:
    from actors.model_core import Admission
    from actors.model_request import Request
    from native.backend import Backend

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
