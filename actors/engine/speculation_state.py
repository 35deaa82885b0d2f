"""What one request guesses, how its guesses do, and which of somebody else's it judges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors import messages as m
from actors.engine.speculation_policy import CopyGuesser, DraftPace
from actors.messages.errors import InvalidRequest
from actors.messages.speculation import CANDIDATES_LIMIT
from cache import tokens as token_bytes

if TYPE_CHECKING:
    from actors.engine.request import Request

NOT_CUT = "no speculation: wrong guesses cannot be removed from this model's memory"


class BadCandidates(InvalidRequest):
    """What is to be judged makes no sense."""


@dataclass(slots=True)
class Guessing:
    """State of one request; ``actors.engine.speculative_decoding`` moves it on."""

    method: m.Speculation = m.Speculation.OFF
    candidates: list[int] | None = None
    """To be judged: the request ends where the model says something else."""
    guesses: list[int] = field(default_factory=list)
    """Those of the present step."""
    n_ahead: int = 0
    """Cells of the sequence beyond ``n_kv``: guesses that are not proved, or wrong."""
    copies: CopyGuesser | None = None
    pace: DraftPace | None = None
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def is_on(self) -> bool:
        return self.method is not m.Speculation.OFF or self.candidates is not None


def guessing_of(asked: m.Complete, n_vocab: int) -> Guessing:
    """What a request asks for, or ``BadCandidates``."""
    if asked.candidates is None:
        return Guessing(asked.speculation)
    n = asked.max_tokens - 1
    if n < 1:
        raise BadCandidates(f"k is {n}; judge at least one candidate")
    if len(asked.candidates) % 4 or len(asked.candidates) > 4 * CANDIDATES_LIMIT:
        raise BadCandidates(f"candidates are u32-le token ids, at most {CANDIDATES_LIMIT}")
    candidates = token_bytes.unpack(asked.candidates)[:n]
    for token in candidates:
        if not 0 <= token < n_vocab:
            raise BadCandidates(f"candidate {token} is not in the vocabulary of {n_vocab} tokens")
    return Guessing(candidates=candidates)


def n_guessable(request: Request) -> int:
    """Guesses that could all be right: the last token of a reply needs no cell."""
    if request.guessing.candidates is not None:
        return request.n_cells - len(request.tokens)
    return request.max_tokens - request.n_text_tokens - 1


def unjudged(request: Request) -> list[int]:
    """Candidates that follow what was said so far."""
    return (request.guessing.candidates or [])[request.n_text_tokens :]


def judge(request: Request, now: float) -> None:
    """A token was said and is the last of the request: is it what was expected?"""
    candidates, at = request.guessing.candidates or [], request.n_text_tokens - 1
    if at >= len(candidates) or request.tokens[-1] != candidates[at]:
        request.finish(m.FinishReason.STOP, now)


def verified(request: Request) -> m.Verified:
    """What came of the candidates."""
    said = request.tokens[len(request.tokens) - request.n_text_tokens :]
    candidates = request.guessing.candidates or []
    n_same = 0
    while n_same < min(len(said), len(candidates)) and said[n_same] == candidates[n_same]:
        n_same += 1
    return m.Verified(
        request.ref,
        n_same,
        said[n_same] if n_same < len(said) else None,
        request.finish_reason or m.FinishReason.CANCELLED,
        request.n_reused,
    )
