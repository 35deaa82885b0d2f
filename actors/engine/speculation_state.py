"""What one request guesses, how its guesses do, and which candidates of its caller it judges."""

from __future__ import annotations

from dataclasses import dataclass, field

from actors import messages as m
from actors.engine.speculation_policy import CopyGuesser, DraftPace
from actors.messages.errors import InvalidRequest
from actors.messages.speculation import CANDIDATES_LIMIT
from cache import tokens as token_bytes

NOT_CUT = "no speculation: wrong guesses cannot be removed from this model's memory"


class BadCandidates(InvalidRequest):
    """The candidates to verify are invalid."""


@dataclass(slots=True)
class SpeculationState:
    """State of one request; ``actors.engine.speculative_decoding`` changes it."""

    method: m.Speculation = m.Speculation.OFF
    candidates: list[int] | None = None
    """To be judged: the request ends where the model samples something else."""
    guesses: list[int] = field(default_factory=list)
    """Those of the present step."""
    n_ahead: int = 0
    """Cells of the sequence beyond ``n_kv``: guesses that are not proved, or wrong."""
    copies: CopyGuesser | None = None
    pace: DraftPace | None = None
    n_drafted: int = 0
    n_accepted: int = 0
    note: str | None = None
    """Something to report to its caller."""

    @property
    def is_on(self) -> bool:
        return self.method is not m.Speculation.OFF or self.candidates is not None

    def unjudged(self, n_reply: int) -> list[int]:
        """Candidates behind the first ``n_reply`` tokens of the reply."""
        return (self.candidates or [])[n_reply:]

    def is_as_expected(self, n_reply: int, token: int) -> bool:
        """Whether the last of ``n_reply`` tokens is the candidate at its place."""
        candidates = self.candidates or []
        return n_reply <= len(candidates) and token == candidates[n_reply - 1]

    def turn_off(self) -> None:
        """Guesses cannot be taken back here: the request runs without them, with a note."""
        if self.method is not m.Speculation.OFF:
            self.method, self.note = m.Speculation.OFF, NOT_CUT


def guessing_of(asked: m.Complete, n_vocab: int) -> SpeculationState:
    """What a request asks for, or ``BadCandidates``."""
    if asked.candidates is None:
        return SpeculationState(asked.speculation)
    n = (asked.max_tokens or 0) - 1
    if n < 1:
        raise BadCandidates(f"k is {n}; judge at least one candidate")
    if len(asked.candidates) % 4 or len(asked.candidates) > 4 * CANDIDATES_LIMIT:
        raise BadCandidates(f"candidates are u32-le token ids, at most {CANDIDATES_LIMIT}")
    candidates = token_bytes.unpack(asked.candidates)[:n]
    for token in candidates:
        if not 0 <= token < n_vocab:
            raise BadCandidates(f"candidate {token} is not in the vocabulary of {n_vocab} tokens")
    return SpeculationState(candidates=candidates)
