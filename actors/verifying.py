"""Several tokens of one request in a step: guesses go in, and only what was really said stays.

Runs on the engine thread. A token's randomness depends on the request's seed and the token's index
alone, so guesses are proved exactly: the rows of a request are sampled one after another, as if
each had been a step, for as long as what was drawn is what the next row had guessed. The cells of
the other guesses are removed. The text is therefore the same as without guesses, at any
temperature, with penalties and grammars; but see "near ties" in actors/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actors import messages as m
from actors.drafter import Drafter
from actors.guessing import NOT_CUT, n_guessable, unjudged
from actors.model_core import Slice, add_guesses
from actors.model_request import Request, RequestRefused
from actors.speculation import (
    CopyGuesser,
    DraftPace,
    SpeculationPolicy,
    StepCost,
    chances_of,
    share_guesses,
)
from native.backend import Backend, Batch

INDEX_TOKENS = 2048
"""Of a prompt, read into the index in one step: about 3 ms."""
Offer = tuple[list[int], list[float]]
"""Guesses, and for each the chance that it and those before it are right."""
_NO_DRAFT = (
    "speculation 'draft' needs a model that was loaded with draft_path; use 'ngram', which needs "
    "nothing, or load the model again"
)


class Guesses:
    """Puts guesses into the steps of one engine and takes the wrong ones out again."""

    def __init__(
        self,
        backend: Backend,
        policy: SpeculationPolicy | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self._backend = backend
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
        rows = sum(part.n_tokens for part in plan)
        room = min(self._backend.info.n_batch - rows, most)
        lines: list[Request] = []
        for part in plan:
            request = ready[part.index]
            request.guessing.guesses = []
            if request.guessing.is_on and self._is_able(request):
                self._read(request)
                if part.reaches_end and room > 0:
                    lines.append(request)
        if not lines:
            return plan
        wanted = self._choose(lines, rows, sum(part.reaches_end for part in plan), room)
        for request in lines:
            request.guessing.guesses = wanted.get(request, [])
        return add_guesses(plan, [len(one.guessing.guesses) for one in ready], room=room)

    def _is_able(self, request: Request) -> bool:
        """Whether guesses can be taken back; if not, the request goes on without and says so."""
        if self._backend.info.can_cut:
            return True
        if request.guessing.method is not m.Speculation.OFF:
            request.note = NOT_CUT if request.note is None else f"{request.note}; {NOT_CUT}"
            request.guessing.method = m.Speculation.OFF
        return False

    def _read(self, request: Request) -> None:
        """Keep the index of what was said before up to date, prompt and all."""
        if request.guessing.method is m.Speculation.NGRAM:
            copies = request.guessing.copies = request.guessing.copies or CopyGuesser()
            copies.catch_up(request.tokens, n_prompt=request.n_prompt, limit=INDEX_TOKENS)

    def _choose(
        self, lines: Sequence[Request], rows: int, said: int, room: int
    ) -> dict[Request, list[int]]:
        """The guesses of each request. What is to be judged comes first: somebody asked for it."""
        chosen: dict[Request, list[int]] = {}
        for request in [one for one in lines if one.guessing.candidates is not None]:
            chosen[request] = self._sensible(request, unjudged(request), room)
            room -= len(chosen[request])
            rows += len(chosen[request])
        offers = self._copies(lines) | self._drafts(lines, rows)
        counts = share_guesses(
            [chances for _, chances in offers.values()],
            rows=rows,
            said=said,
            room=room,
            cost=self._cost,
            min_gain=self._policy.min_gain,
        )
        for (request, (guesses, _)), n in zip(offers.items(), counts, strict=True):
            chosen[request] = guesses[:n]
        return chosen

    def _copies(self, lines: Sequence[Request]) -> dict[Request, Offer]:
        offers = {}
        for request in lines:
            if request.guessing.method is not m.Speculation.NGRAM or not request.is_generating:
                continue
            if request.guessing.copies is None or not request.guessing.copies.is_expecting:
                continue
            most = min(n_guessable(request), self._policy.max_guesses)
            guesses = self._sensible(request, request.guessing.copies.guess(most), most)
            offers[request] = guesses, request.guessing.copies.chances(len(guesses))
        return offers

    def _drafts(self, lines: Sequence[Request], rows: int) -> dict[Request, Offer]:
        drafter = self._drafter
        if drafter is None:
            return {}
        wanted: list[tuple[Request, int]] = []
        for request in lines:
            if request.guessing.method is m.Speculation.DRAFT and request.is_generating:
                pace = request.guessing.pace = request.guessing.pace or DraftPace()
                n = pace.length(
                    request.n_generated,
                    rows=rows,
                    draft_step=0.0 if self._policy.row_cost is not None else drafter.step_seconds,
                    cost=self._cost,
                    policy=self._policy,
                )
                wanted.append((request, min(n, n_guessable(request))))
        offers = {}
        for request, guesses in drafter.draft([one for one in wanted if one[1] > 0]).items():
            kept = self._sensible(request, guesses, len(guesses))
            chance = request.guessing.pace.chance if request.guessing.pace is not None else 0.0
            offers[request] = kept, chances_of(chance, len(kept))
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
        del request.guessing.guesses[part.n_guesses :]
        at = request.n_kv + part.n_tokens
        for guess in request.guessing.guesses:
            batch.add(guess, at, request.kv_seq, want_logits=True)
            at += 1

    # ── after a step ────────────────────────────────────────────────────────────────────────────

    def saw_step(self, rows: int, seconds: float) -> None:
        """What a step cost, however many of its rows were guesses."""
        self._cost.saw(rows, seconds)

    def rows(self, request: Request, row: int) -> Iterator[int]:
        """Each row that the request's next token is to be sampled from, one after another.

        The caller samples it and accepts the token before it asks for the next row. ``row`` is that
        of the request's last token.
        """
        guesses, request.guessing.guesses = request.guessing.guesses, []
        request.guessing.n_ahead = len(guesses)
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
            request.guessing.n_ahead -= 1
            yield row + accepted
        if guesses:
            self._note(request, len(guesses), judged, accepted)
        self.trim(request)

    def _note(self, request: Request, drafted: int, judged: int, accepted: int) -> None:
        request.guessing.n_drafted += drafted
        request.guessing.n_accepted += accepted
        self.n_drafted += drafted
        self.n_accepted += accepted
        if request.guessing.pace is not None:
            request.guessing.pace.saw(judged, accepted)

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
