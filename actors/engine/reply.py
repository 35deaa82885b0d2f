"""The reply of one request: what chooses its tokens, what reads them, and what its caller gets."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Final

from actors import messages as m
from actors.engine.room_policy import Admission
from actors.engine.sampling_control import SamplingControl
from actors.kv.timeline import Timeline
from actors.messages.errors import RequestRefused
from actors.text.format_parser import FormatParser
from actors.text.reply_events import Event, EventEncoder, merged
from actors.text.reply_parser import ReplyParser
from native.backend import Backend
from native.errors import InvalidParam, InvalidToken
from native.params import SamplingParams

PAGE_TOKENS: Final = 4096
PAGE_CHARS: Final = 8192  # at most 4 bytes each; with the tokens well below the 64 KiB of a message


@dataclass(slots=True, eq=False)
class Reply:
    """The reply of one request while it grows."""

    sampling: SamplingParams
    stream: ReplyParser | FormatParser
    encoder: EventEncoder
    control: SamplingControl
    max_tokens: int
    """Tokens that it may have: what was asked for, or what fits into the context."""
    is_cut: bool = False
    """Whether that is less than was asked for."""
    finish_reason: m.FinishReason | None = None
    held: list[Event] = field(default_factory=list)
    """Events of one token each that are sent together."""

    def admitted(self, admission: Admission) -> None:
        """So many tokens it may have."""
        self.max_tokens, self.is_cut = admission.max_tokens, admission.is_cut

    @property
    def limit(self) -> m.Limit | None:
        """What it has reached, if that is why it ended."""
        if self.finish_reason is not m.FinishReason.LENGTH:
            return None
        return m.Limit.CONTEXT if self.is_cut else m.Limit.MAX_TOKENS

    # ── choosing a token ────────────────────────────────────────────────────────────────────────

    def make_sampler(self, backend: Backend, line: Timeline) -> None:
        """Once the prompt is known; RequestRefused for a grammar that cannot be used."""
        if self.control.has_begun:
            return
        prompt, before = line.tokens[: line.prompt_end], line.tokens[line.prompt_end :]
        try:
            self.control.begin(backend, self.sampling, prompt, before, self.stream)
        except (InvalidParam, InvalidToken) as error:
            raise RequestRefused(m.FailReason.INVALID_REQUEST, str(error)) from error

    def sample(self, backend: Backend, row: int, index: int) -> int:
        """The token of this index, from the logits of ``row`` of the last decode."""
        token = self.control.choose(backend, row, index, self.stream)
        n = self.sampling.n_logprobs
        if n is not None:
            self.encoder.logprobs.note(backend.logprobs(row, token, n))
        return token

    def sample_known(self, backend: Backend, logits: array[float], index: int) -> int:
        """The token of this index, from logits that were kept."""
        token = self.control.choose_from(backend, logits, index)
        n = self.sampling.n_logprobs
        if n is not None:
            self.encoder.logprobs.note(backend.logprobs_from(logits, token, n))
        return token

    # ── what its caller gets ────────────────────────────────────────────────────────────────────

    def end_with(self, token: int, backend: Backend) -> None:
        """A token ends the text that is not part of it."""
        self.stream.end_with(backend.piece(token, special=True))

    def take(self, token: int, n_reply: int, backend: Backend) -> list[Event]:
        """A token is the ``n_reply``-th of the reply.

        Returns what to deliver for it; empty while a stop string or a marker may still match.
        """
        self.encoder.logprobs.reach(n_reply)
        parts = self.stream.feed(token, *self._bytes_of(token, backend))
        self.control.appended(token, backend, self.stream)
        if self.stream.stopped_by is not None:
            self.finish_reason = m.FinishReason.STOP
        elif n_reply >= self.max_tokens:
            self.finish_reason = m.FinishReason.LENGTH
        return self.encoder.events(parts)

    def _bytes_of(self, token: int, backend: Backend) -> tuple[bytes, bytes]:
        """What a token shows, and what is written for one that shows nothing."""
        shown = backend.piece(token)
        if shown or not self.stream.looks_for_markers:
            return shown, b""
        return shown, backend.piece(token, special=True)

    def finish(self, reason: m.FinishReason) -> None:
        """No token follows."""
        self.finish_reason = reason

    def reopen(self) -> m.FinishReason | None:
        """It ends later after all; the reason why it had ended, if it had."""
        reason, self.finish_reason = self.finish_reason, None
        return reason

    def hold(self, events: list[Event]) -> None:
        """Deliver these with later ones, in fewer messages."""
        self.held += events

    def take_held(self) -> list[Event]:
        """What was held, in as few events as possible."""
        if not self.held:
            return []
        held, self.held = self.held, []
        return merged(held, PAGE_CHARS, PAGE_TOKENS)

    def close_text(self) -> list[Event]:
        """The rest of the text, now that nothing follows it."""
        return self.encoder.events(self.stream.finish())
