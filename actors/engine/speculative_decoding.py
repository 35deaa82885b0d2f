"""Several tokens of one request in a step: guesses go in, and only those that are sampled stay.

Runs on the engine thread. A token's randomness depends on the request's seed and the token's index
alone, so guesses are verified exactly: the rows of a request are sampled one after another, as if
each had been a step, for as long as what was drawn is what the next row had guessed. The cells of
the other guesses are removed. The text is therefore the same as without guesses, at any
temperature, with penalties and grammars, as far as the logits are: their last bits depend on how
many rows share a step, unless the request is always exact (``engine.exactness``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from actors import messages as m
from actors.engine.batch_plan import Guessable, Slice
from actors.engine.draft_model import DraftModel
from actors.engine.request import Request
from actors.engine.speculation_policy import (
    CopyGuesser,
    DraftPace,
    SpeculationPolicy,
    StepCost,
    chances_of,
    share_guesses,
)
from actors.kv.timeline import Timeline
from actors.messages.errors import RequestRefused
from native.backend import Backend, Batch

INDEX_TOKENS = 2048
"""Of a prompt, read into the index in one step: about 3 ms."""
_NO_DRAFT = (
    "speculation 'draft' needs a model that was loaded with draft_path; use 'ngram', which needs "
    "nothing, or load the model again"
)


@dataclass(slots=True)
class Offer:
    """What a request could guess: for each token the chance that it and those before are right."""

    request: Request
    chances: list[float]
    guesses: list[int] = field(default_factory=list)
    """Filled in if they had to be computed; otherwise they are looked up once they are chosen."""


class SpeculativeDecoder:
    """Puts guesses into the steps of one engine and takes the wrong ones out again."""

    def __init__(
        self,
        backend: Backend,
        policy: SpeculationPolicy | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self._backend = backend
        self._can_cut = backend.info.can_cut
        self._policy = policy or SpeculationPolicy()
        self._cost = StepCost(self._policy.row_cost)
        self._draft_model = draft_model
        self.n_drafted = 0
        self.n_accepted = 0

    def counts(self) -> dict[str, float]:
        """Figures for a status report."""
        return {"drafted_tokens": self.n_drafted, "accepted_tokens": self.n_accepted}

    def check(self, asked: m.Complete) -> None:
        """Refuse a request that asks for what this model does not have."""
        if asked.speculation is m.Speculation.DRAFT and self._draft_model is None:
            raise RequestRefused(m.FailReason.NOT_SUPPORTED, _NO_DRAFT)

    # ── before a step ───────────────────────────────────────────────────────────────────────────

    def prepare(self, request: Request) -> bool:
        """A step is about to be planned: whether guesses may follow the request's last token."""
        state = request.guessing
        if not state.is_on:
            return False
        state.guesses = []
        if not self._can_cut:
            state.turn_off()
            return False
        return self._may_guess(request)

    def choose(self, ready: Sequence[Request], step: Guessable) -> list[int]:
        """Choose the guesses of each request of a step that may have some; how many each."""
        lines = [ready[at] for at in step.indexes]
        self._choose(lines, step.rows, step.n_sampled, step.room)
        return [len(one.guessing.guesses) for one in lines]

    def _may_guess(self, request: Request) -> bool:
        """Whether there is anything to guess with; keeps the index of its tokens up to date."""
        state = request.guessing
        if state.method is not m.Speculation.NGRAM:
            return state.candidates is not None or request.line.is_generating
        copies = state.copies = state.copies or CopyGuesser()
        line = request.line
        is_read = copies.catch_up(line.tokens, n_prompt=line.n_prompt, limit=INDEX_TOKENS)
        return is_read and copies.is_expecting and line.is_generating

    def _choose(self, lines: Sequence[Request], rows: int, n_sampled: int, room: int) -> None:
        """The guesses of each request. What is to be judged comes first: a caller asked for it."""
        for request in [one for one in lines if one.guessing.candidates is not None]:
            judged = self._sensible(request, request.guessing.unjudged(request.line.n_reply), room)
            request.guessing.guesses = judged
            room -= len(judged)
            rows += len(judged)
        offers = self._copies(lines) + self._drafts(lines, rows)
        if not offers or room <= 0:
            return
        counts = share_guesses(
            [offer.chances for offer in offers],
            rows=rows,
            n_sampled=n_sampled,
            room=room,
            cost=self._cost,
            min_gain=self._policy.min_gain,
        )
        for offer, n in zip(offers, counts, strict=True):
            if n:
                guesses = offer.guesses or self._copied(offer.request, n)
                offer.request.guessing.guesses = guesses[:n]

    def _copies(self, lines: Sequence[Request]) -> list[Offer]:
        offers = []
        for request in lines:
            copies = request.guessing.copies
            if copies is not None:
                most = min(n_guessable(request), self._policy.max_guesses)
                offers.append(Offer(request, copies.chances(most)))
        return offers

    def _copied(self, request: Request, n: int) -> list[int]:
        copies = request.guessing.copies
        return self._sensible(request, copies.guess(n), n) if copies is not None else []

    def _drafts(self, lines: Sequence[Request], rows: int) -> list[Offer]:
        draft_model = self._draft_model
        if draft_model is None:
            return []
        # With a set cost of a row, drafting counts as free.
        draft_step = 0.0 if self._policy.row_cost is not None else draft_model.step_seconds
        drafting: dict[Timeline, Request] = {}
        wanted: list[tuple[Timeline, int]] = []
        for request in lines:
            if request.guessing.method is m.Speculation.DRAFT:
                pace = request.guessing.pace = request.guessing.pace or DraftPace()
                n = pace.length(
                    request.line.n_generated,
                    rows=rows,
                    draft_step=draft_step,
                    cost=self._cost,
                    policy=self._policy,
                )
                drafting[request.line] = request
                wanted.append((request.line, min(n, n_guessable(request))))
        offers = []
        for line, guesses in draft_model.draft([one for one in wanted if one[1] > 0]).items():
            request = drafting[line]
            kept = self._sensible(request, guesses, len(guesses))
            chance = request.guessing.pace.chance if request.guessing.pace is not None else 0.0
            offers.append(Offer(request, chances_of(chance, len(kept)), kept))
        return offers

    def _sensible(self, request: Request, guesses: Sequence[int], most: int) -> list[int]:
        """As many guesses as have cells; none that ends the text, for nothing comes after it."""
        kept: list[int] = []
        for guess in guesses[: max(0, min(most, n_guessable(request)))]:
            if guess in self._backend.info.eog_tokens:
                break
            kept.append(guess)
        return kept

    def fill(self, batch: Batch, request: Request, part: Slice) -> None:
        """Add the rows of a request's guesses, behind those of its last token."""
        if not part.n_guesses:
            request.guessing.guesses = []
            return
        del request.guessing.guesses[part.n_guesses :]
        at = request.line.n_kv + part.n_tokens
        for guess in request.guessing.guesses:
            batch.add(guess, at, request.line.kv_seq, want_logits=True)
            at += 1

    # ── after a step ────────────────────────────────────────────────────────────────────────────

    def record_step(self, rows: int, seconds: float) -> None:
        """What a step cost, however many of its rows were guesses."""
        self._cost.record(rows, seconds)

    def rows(self, request: Request, row: int) -> Iterable[int]:
        """Each row that the request's next token is to be sampled from, one after another.

        The caller samples it and accepts the token before it asks for the next row. ``row`` is that
        of the request's last token.
        """
        return self._walk(request, row) if request.guessing.guesses else (row,)

    def _walk(self, request: Request, row: int) -> Iterator[int]:
        state = request.guessing
        guesses, state.guesses = state.guesses, []
        state.n_ahead = len(guesses)
        state.n_drafted += len(guesses)
        self.n_drafted += len(guesses)
        yield row
        judged = accepted = 0
        for guess in guesses:
            if request.is_finished:
                break
            judged += 1
            if request.line.tokens[-1] != guess:
                break
            accepted += 1
            request.line.decoded(1)  # its cell is there already
            state.n_ahead -= 1
            state.n_accepted += 1  # before the row is sampled, since that may end the request
            yield row + accepted
        self.n_accepted += accepted
        if state.pace is not None and judged:
            state.pace.record(judged, accepted)
        self.trim(request)

    def trim(self, request: Request) -> None:
        """Remove what is in the context beyond the accepted tokens; before the request leaves."""
        if not request.guessing.n_ahead or request.line.seq is None:
            return
        request.guessing.n_ahead = 0
        self._backend.seq_remove(request.line.seq, request.line.n_kv, -1)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        request.guessing.copies = None
        if self._draft_model is not None:
            self._draft_model.forget(request.line)

    def close(self) -> None:
        if self._draft_model is not None:
            self._draft_model.close()


def n_guessable(request: Request) -> int:
    """Guesses that could all be right: the last token of a reply needs no cell."""
    line = request.line
    if request.guessing.candidates is not None:
        return line.n_cells - len(line.tokens)
    return request.reply.max_tokens - line.n_reply - 1
