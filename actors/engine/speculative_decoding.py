"""Several tokens of one request in a step: guesses go in, and only what was really said stays.

Runs on the engine thread. A token's randomness depends on the request's seed and the token's index
alone, so guesses are proved exactly: the rows of a request are sampled one after another, as if
each had been a step, for as long as what was drawn is what the next row had guessed. The cells of
the other guesses are removed. The text is therefore the same as without guesses, at any
temperature, with penalties and grammars; but see "near ties" in actors/README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from actors import messages as m
from actors.engine.batch_plan import Slice, add_guesses
from actors.engine.draft_model import Drafter
from actors.engine.request import Request, RequestRefused
from actors.engine.speculation_policy import (
    CopyGuesser,
    DraftPace,
    SpeculationPolicy,
    StepCost,
    chances_of,
    share_guesses,
)
from actors.engine.speculation_state import NOT_CUT, n_guessable, unjudged
from native.backend import Backend, Batch

FEW_ROWS = 63
"""So many rows llama.cpp's attention computes as it does few; from 64 on by tiles, which add up in
another order. Guesses do not push a step over that edge."""
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
    """Known already if they had to be computed, looked up only when wanted otherwise."""


class Guesses:
    """Puts guesses into the steps of one engine and takes the wrong ones out again."""

    def __init__(
        self,
        backend: Backend,
        policy: SpeculationPolicy | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self._backend = backend
        self._can_cut = backend.info.can_cut
        self._policy = policy or SpeculationPolicy()
        self._cost = StepCost(self._policy.row_cost)
        self._drafter = drafter
        self.n_drafted = 0
        self.n_accepted = 0

    def counts(self) -> dict[str, float]:
        """Figures for a status report."""
        return {"drafted_tokens": self.n_drafted, "accepted_tokens": self.n_accepted}

    def check(self, asked: m.Complete) -> None:
        """Refuse a request that asks for what this model does not have."""
        if asked.speculation is m.Speculation.DRAFT and self._drafter is None:
            raise RequestRefused(m.FailReason.NOT_SUPPORTED, _NO_DRAFT)

    # ── before a step ───────────────────────────────────────────────────────────────────────────

    def add_to(self, plan: list[Slice], ready: Sequence[Request], *, most: int) -> list[Slice]:
        """Choose guesses for the requests of a step, into ``Guessing.guesses``.

        They take what the batch has left, and ``most`` tokens at most, so that nobody's stream
        waits for them longer than for somebody's prompt.
        """
        lines: list[Request] = []
        for part in plan:
            request = ready[part.index]
            state = request.guessing
            if state.is_on:
                state.guesses = []
                if not self._can_cut:
                    _goes_without(request)
                elif self._may_guess(request) and part.reaches_end:
                    lines.append(request)
        if not lines:
            return plan
        rows = sum(part.n_tokens for part in plan)
        room = min(self._backend.info.n_batch - rows, most)
        if rows < FEW_ROWS:
            room = min(room, FEW_ROWS - rows)
        self._choose(lines, rows, sum(part.reaches_end for part in plan), room)
        return add_guesses(plan, [len(one.guessing.guesses) for one in ready], room=room)

    def _may_guess(self, request: Request) -> bool:
        """Whether there is anything to guess with; keeps the index of what was said up to date."""
        state = request.guessing
        if state.method is not m.Speculation.NGRAM:
            return state.candidates is not None or request.is_generating
        copies = state.copies = state.copies or CopyGuesser()
        is_read = copies.catch_up(request.tokens, n_prompt=request.n_prompt, limit=INDEX_TOKENS)
        return is_read and copies.is_expecting and request.is_generating

    def _choose(self, lines: Sequence[Request], rows: int, said: int, room: int) -> None:
        """The guesses of each request. What is to be judged comes first: somebody asked for it."""
        for request in [one for one in lines if one.guessing.candidates is not None]:
            judged = self._sensible(request, unjudged(request), room)
            request.guessing.guesses = judged
            room -= len(judged)
            rows += len(judged)
        offers = self._copies(lines) + self._drafts(lines, rows)
        if not offers or room <= 0:
            return
        counts = share_guesses(
            [offer.chances for offer in offers],
            rows=rows,
            said=said,
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
        drafter = self._drafter
        if drafter is None:
            return []
        wanted: list[tuple[Request, int]] = []
        for request in lines:
            if request.guessing.method is m.Speculation.DRAFT:
                pace = request.guessing.pace = request.guessing.pace or DraftPace()
                n = pace.length(
                    request.n_generated,
                    rows=rows,
                    draft_step=0.0 if self._policy.row_cost is not None else drafter.step_seconds,
                    cost=self._cost,
                    policy=self._policy,
                )
                wanted.append((request, min(n, n_guessable(request))))
        offers = []
        for request, guesses in drafter.draft([one for one in wanted if one[1] > 0]).items():
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
        at = request.n_kv + part.n_tokens
        for guess in request.guessing.guesses:
            batch.add(guess, at, request.kv_seq, want_logits=True)
            at += 1

    # ── after a step ────────────────────────────────────────────────────────────────────────────

    def saw_step(self, rows: int, seconds: float) -> None:
        """What a step cost, however many of its rows were guesses."""
        self._cost.saw(rows, seconds)

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
            if request.tokens[-1] != guess:
                break
            accepted += 1
            request.n_kv += 1  # its cell is there already
            state.n_ahead -= 1
            state.n_accepted += 1  # before the row is sampled, since that may end the request
            yield row + accepted
        self.n_accepted += accepted
        if state.pace is not None and judged:
            state.pace.saw(judged, accepted)
        self.trim(request)

    def trim(self, request: Request) -> None:
        """Remove what is in the context beyond the accepted tokens; before the request leaves."""
        if not request.guessing.n_ahead or request.seq is None:
            return
        request.guessing.n_ahead = 0
        self._backend.seq_remove(request.seq, request.n_kv, -1)

    def forget(self, request: Request) -> None:
        """The request has ended."""
        request.guessing.copies = None
        if self._drafter is not None:
            self._drafter.forget(request)

    def close(self) -> None:
        if self._drafter is not None:
            self._drafter.close()


def _goes_without(request: Request) -> None:
    """Guesses could not be taken back here: the request runs on as it is, and says so."""
    if request.guessing.method is not m.Speculation.OFF:
        request.note = NOT_CUT if request.note is None else f"{request.note}; {NOT_CUT}"
        request.guessing.method = m.Speculation.OFF
