"""A request whose process died: what is known of its reply. Runs on the engine thread.

What the reply was so far comes from the request's journal, or from its caller. ``Request.take_up``
accepts it token by token exactly as it was generated, only without a model: text, stop strings and
the sampler stand where they stood, and the next token has the index, and with it the randomness,
that it would have had. The KV is restored from the cache like that of any long prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from actors import messages as m
from actors.engine.reply import PAGE_CHARS, PAGE_TOKENS
from actors.messages.journal import JournalWriter, Noted
from actors.messages.payload import PayloadGone, read_payload
from actors.text.reply_events import Event, merged
from cache import tokens as token_bytes


@dataclass(slots=True)
class Resume:
    """The interruption of one request, if there was one."""

    is_resumed: bool = False
    knows_prompt: bool = False
    """Whether the tokens of its prompt come from its journal."""
    left: list[int] = field(default_factory=list)
    """Reply tokens that exist already and were not taken up yet."""
    events: list[Event] = field(default_factory=list)
    """What its caller receives once more, from the start."""
    n_tokens: int = 0
    """Reply tokens that were taken up."""
    ends_as: m.FinishReason | None = None
    """Its last token had ended it; whether its caller was notified is not known."""

    def take_left(self) -> list[int]:
        """Reply tokens to take up now, once."""
        left, self.left = self.left, []
        return left

    def replay(self, ref: str) -> Iterator[object]:
        """Messages for the caller: that the reply resumes, and all of it so far, in pages."""
        if not self.is_resumed:
            return
        events, self.events = self.events, []
        yield m.Resumed(ref, self.n_tokens)
        yield from merged(events, PAGE_CHARS, PAGE_TOKENS)


def open_journal(run: m.Run) -> JournalWriter | None:
    """The request's journal; ``None`` where none is kept, so that it cannot resume from here."""
    if run.journal is None:
        return None
    try:
        return JournalWriter.open(run.journal)
    except OSError:
        return None


def reply_before(asked: m.Complete, noted: Noted, n_vocab: int) -> list[int]:
    """Tokens of the reply that exist already; ValueError when the caller's are no tokens."""
    if noted.prompt:
        return list(noted.accepted)
    try:
        ids = token_bytes.unpack(read_payload(asked.delivered))
    except PayloadGone as gone:
        raise ValueError(f"what was delivered before is gone: {gone}") from gone
    for token in ids:
        if token >= n_vocab:
            raise ValueError(f"token {token} is not in the vocabulary of {n_vocab} tokens")
    return ids
